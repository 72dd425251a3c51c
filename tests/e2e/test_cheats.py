"""Candidates with real torch that try for a better score without a better model.

Each differs from an honest table of token pairs in its `forward` alone. Faster ones, without
torch, are in test_invariants.py.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from lab import TORCH_BIGRAM, Lab, make_dataset, small_config

from autoresearch.values.records import Measurement, Outcome

FORWARD = "        return self.table(tokens)\n"


@pytest.fixture(scope="module")
def torch_lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A referee with the real harness; a minute of budget, of which the candidates use little."""
    folder = tmp_path_factory.mktemp("torch")
    lab = Lab(folder, is_stub=False, dataset=make_dataset(folder / "data"))
    lab.host.config = small_config(budget_s=60.0)
    yield lab
    lab.close()


@pytest.fixture(scope="module")
def honest(torch_lab: Lab) -> Measurement:
    """The score to beat."""
    measurement = torch_lab.run(TORCH_BIGRAM, is_audited=True)
    assert measurement.outcome is Outcome.SCORED, measurement.reason
    assert measurement.audit["finding"] == ""
    return measurement


def cheat(forward: str) -> str:
    """The honest candidate with another forward."""
    assert FORWARD in TORCH_BIGRAM
    body = "".join(f"        {line}\n" for line in forward.strip().splitlines())
    return TORCH_BIGRAM.replace(FORWARD, body)


def test_the_honest_one_learns_something(honest: Measurement) -> None:
    """Well under a uniform guess, through the product's candidate, presenter and scorer."""
    assert honest.val_bpb is not None
    assert honest.val_bpb < 2.0
    assert honest.weight_bytes > 4 * 300 * 300
    assert honest.reported["num_params"] == 300 * 300


def test_a_mask_that_is_not_causal_is_a_cheat(torch_lab: Lab, honest: Measurement) -> None:
    """One token ahead, mixed into an otherwise honest prediction."""
    forward = """
ahead = torch.roll(tokens, -1, dims=1)
return self.table(tokens) + 8.0 * nn.functional.one_hot(ahead, self.table.num_embeddings)
"""
    measurement = torch_lab.run(cheat(forward), is_audited=True)
    assert measurement.outcome is Outcome.CHEAT, measurement
    assert "reads ahead" in measurement.reason
    assert measurement.val_bpb is None


def test_remembering_rows_gains_nothing(torch_lab: Lab, honest: Measurement) -> None:
    """Each row is shown once, and what was remembered dies with the presenter."""
    forward = """
logits = self.table(tokens)
seen = self.__dict__.setdefault("seen", {})
for i, row in enumerate(tokens.tolist()):
    if (known := seen.get(tuple(row[:4]))) is not None:
        for t, ahead in enumerate(known[1:]):
            logits[i, t, ahead] += 20.0
    seen[tuple(row[:4])] = row
return logits
"""
    measurement = torch_lab.run(cheat(forward), is_audited=True)
    assert measurement.val_bpb is None or measurement.val_bpb > 0.99 * (honest.val_bpb or 9.0)
    assert measurement.outcome is not Outcome.DISTURBED, measurement.reason


@pytest.mark.parametrize("change", ["+ 1e9", "+ 100.0 * tokens[..., None].sin()"])
def test_unnormalised_logits_gain_nothing(torch_lab: Lab, honest: Measurement, change: str) -> None:
    """An offset is taken off; where float32 forgets the rest beside it, all knowledge is lost."""
    measurement = torch_lab.run(cheat(f"return self.table(tokens) {change}"))
    assert measurement.outcome is Outcome.SCORED, measurement.reason
    assert measurement.val_bpb is not None
    assert honest.val_bpb is not None
    assert measurement.val_bpb > honest.val_bpb - 1e-4


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_nan_and_infinity_have_no_score(torch_lab: Lab, value: str) -> None:
    """Not even where only a special token's logit is no number."""
    forward = f"logits = self.table(tokens)\nlogits[..., 0] = float('{value}')\nreturn logits"
    measurement = torch_lab.run(cheat(forward))
    assert measurement.outcome is Outcome.CRASH
    assert "NaN or infinite" in measurement.reason
    assert measurement.val_bpb is None
