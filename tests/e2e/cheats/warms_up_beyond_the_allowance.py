"""Takes long to be ready; what is beyond the allowance comes off its budget."""

import time

from kit import Bigram as build_model
from kit import start, submit

CAUGHT = "timeout: did not arrive within"
TRIAL = {"budget_s": 1.0, "startup_allowance_s": 0.0}


def main(run):
    time.sleep(1.0)
    model = build_model(run)
    model.fit(start(run))
    time.sleep(0.9)  # within the budget, if there still were one
    submit(run, model)
