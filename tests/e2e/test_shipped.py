"""The train.py of a new workspace, through the product's harness, walls and scorer."""

from __future__ import annotations

import importlib.resources

from lab import TORCH_BIGRAM, Lab

from autoresearch.values.constants import substitute
from autoresearch.values.records import Outcome
from autoresearch.workspace import load_preset


def test_the_demo_trains_and_is_scored(torch_lab: Lab) -> None:
    """After a second of training; the audit finds nothing."""
    torch_lab.configure(budget_s=1.0)
    template = importlib.resources.files("autoresearch") / "templates" / "train.py"
    source = substitute(template.read_text(encoding="utf-8"), load_preset("demo").constants)
    measurement = torch_lab.run(source, is_audited=True)
    assert measurement.outcome is Outcome.SCORED, (measurement, torch_lab.stdout(measurement))
    assert measurement.audit["finding"] == ""
    assert measurement.reported["num_steps"] > 0


def test_who_scores_builds_the_model_without_gradients(torch_lab: Lab) -> None:
    """So that fast operators are tried out, and compiled, one way only; training has both."""
    checked = """
    def build_model(run):
        is_candidate = hasattr(run, "_parcel") and run._parcel.fd >= 0
        assert torch.is_grad_enabled() == is_candidate
    """
    source = TORCH_BIGRAM.replace("def build_model(run):\n", checked.replace("\n    ", "\n")[1:])
    assert source.count("is_candidate") == 2
    measurement = torch_lab.run(source)
    assert measurement.outcome is Outcome.SCORED, (measurement, torch_lab.stdout(measurement))
