"""Never says that it is ready."""

import time

from kit import Bigram as build_model
from kit import train

CAUGHT = "timeout: was not ready to train or timeout: did not start"
TRIAL = {"startup_limit_s": 2.0}


def main(run):
    time.sleep(60.0)  # as good as compiling
    train(run, build_model(run))
