"""The train.py of a new workspace, through the product's harness, walls and scorer."""

from __future__ import annotations

import importlib.resources

from lab import Lab

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
