"""Whole runs behind Landlock, the second sandbox level."""

from __future__ import annotations

import pytest
from lab import HONEST, TORCH_BIGRAM, Lab, stub

from autoresearch.system.sandbox import landlock_problem, open_sandbox
from autoresearch.values.records import Outcome

pytestmark = pytest.mark.skipif(bool(landlock_problem()), reason=landlock_problem() or "works")


@pytest.fixture
def lab(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Lab:
    """The shared referee, with candidates behind Landlock."""
    monkeypatch.setattr(lab.host, "sandbox", open_sandbox("landlock"))
    return lab


def test_an_honest_run_is_scored_and_names_its_level(lab: Lab) -> None:
    """As behind bubblewrap, audit included."""
    measurement = lab.run(HONEST, is_audited=True)
    assert measurement.outcome is Outcome.SCORED, measurement.reason
    assert measurement.sandbox == "landlock"


def test_the_answers_and_the_record_are_out_of_reach(lab: Lab) -> None:
    """Validation and holdout by path, by the scorer's descriptors, the snapshot to write."""
    data = lab.host.dataset
    targets = [str(data.folder / "validation.bin"), str(data.holdout_path), str(lab.folder)]
    source = stub(
        main=f"""
        import glob, os
        run.start()
        found = []
        for path in [*{targets!r}, *glob.glob("/proc/[0-9]*/fd/*"), *glob.glob("/proc/*/environ")]:
            try:
                found.append(os.listdir(path) if os.path.isdir(path) else open(path, "rb").read(1))
            except OSError:
                pass
        try:
            open(__file__, "a")
            found.append("snapshot")
        except OSError:
            pass
        print("found", found, flush=True)
        run.submit(Unigram.train(run))
        """
    )
    measurement = lab.run(source)
    assert measurement.outcome is Outcome.SCORED, measurement.reason
    assert "found []" in lab.stdout(measurement)


def test_torch_trains_and_answers(torch_lab: Lab) -> None:
    """The real harness, with torch."""
    measurement = torch_lab.run(TORCH_BIGRAM)
    assert measurement.outcome is Outcome.SCORED, (measurement, torch_lab.stdout(measurement))
    assert measurement.sandbox == "landlock"
