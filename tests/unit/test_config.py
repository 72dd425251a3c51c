"""autoresearch.toml: what is refused, and with which words."""

from __future__ import annotations

import contextlib
import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoresearch.values.config import Config, TrialSettings, override, parse_config
from autoresearch.values.errors import UserError


def test_nothing_means_defaults() -> None:
    """An empty file is a valid one."""
    assert parse_config("") == Config()


def test_values_are_read() -> None:
    """Tables and keys end up where they belong; an integer is fine where a float is expected."""
    config = parse_config('preset = "demo"\n[trial]\nbudget_s = 8\n[judge]\npolicy = "greedy"\n')
    assert (config.preset, config.trial.budget_s, config.judge.policy) == ("demo", 8.0, "greedy")
    assert isinstance(config.trial.budget_s, float)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "[trial]\nbugdet_s = 3",
            r"unknown key 'trial.bugdet_s', valid here: budget_s, busy_device",
        ),
        ("[tirals]", r"unknown key 'tirals', valid here: agent, artifacts, confirm, data"),
        ("trial = 3", r"trial must be a table \[trial\], it is 3"),
        ("[trial]\nbudget_s = 'long'", r"trial.budget_s is 'long', expected a number \(seconds"),
        ("[trial]\nbudget_s = true", r"trial.budget_s is True, expected a number"),
        ("[trial]\nbudget_s = 0.1", r"trial.budget_s is 0.1, expected at least 0.5"),
        ("[trial]\nbudget_s = nan", r"trial.budget_s is nan, expected a finite number"),
        ("[trial]\nbudget_s = inf", r"trial.budget_s is inf, expected a finite number"),
        (f"[session]\nmax_hours = 1{'0' * 400}", r"session.max_hours is 10+, expected a finite"),
        ("[hybrid]\nshare = 7.0", r"hybrid.share is 7.0, expected at most 1 \(share of"),
        ("[judge]\naudit_frac = 50", r"judge.audit_frac is 50, expected at most 1"),
        ("[judge]\nimplausible_gain_frac = 5", r"implausible_gain_frac is 5, expected at most 1"),
        ("[trial]\nthreads = 1.5", r"trial.threads is 1.5, expected a whole number"),
        ("[confirm]\nat_end = 1", r"confirm.at_end is 1, expected true or false"),
        ("preset = 1", r"preset is 1, expected a text in quotes"),
        ("[researcher]\nkind = 'tpee'", r"researcher.kind is 'tpee', expected one of 'tpe', 'cma"),
        (
            "[session]\ntag = 'a b'",
            r"session.tag is 'a b', expected a name made of letters.*'main'",
        ),
        ("[judge]\npolicy = 'vibes'", r"expected one of 'greedy', 'screen', 'confirm-all'"),
        ("[data]\nvocab_size = 5", r"data.vocab_size is 5, expected at least 260"),
        ("[data", r"autoresearch.toml is not valid TOML: .* \(at end of document\); mend it there"),
        ("x\ny", r"autoresearch.toml is not valid TOML: .* \(at line 1, column 2\); mend it there"),
    ],
)
def test_mistakes_are_named(text: str, message: str) -> None:
    """The message holds the key, the value seen and what was expected."""
    with pytest.raises(UserError, match=message):
        parse_config(text)


def test_all_mistakes_are_told_at_once() -> None:
    """Nobody should have to run the command three times to learn of three typos."""
    with pytest.raises(UserError) as caught:
        parse_config("x = 1\n[trial]\ny = 2\nbudget_s = 0\n", "here.toml")
    message = str(caught.value)
    assert message.startswith("here.toml: ")
    assert all(name in message for name in ("'x'", "'trial.y'", "trial.budget_s"))


@given(st.text(max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    """No input gives anything but a Config or a UserError."""
    with contextlib.suppress(UserError):
        assert isinstance(parse_config(text), Config)


def test_override_replaces_single_values() -> None:
    """`--budget 5` changes one value and leaves the rest."""
    changed = override(Config(), trial={"budget_s": 5.0})
    assert changed.trial == dataclasses.replace(TrialSettings(), budget_s=5.0)
    assert changed.data == Config().data


def test_every_setting_has_help() -> None:
    """The help is what `init` writes beside each value."""
    for field in dataclasses.fields(Config):
        table = getattr(Config(), field.name)
        inner = dataclasses.fields(table) if dataclasses.is_dataclass(table) else (field,)
        assert all(each.metadata["help"].strip() for each in inner)
