"""The tree of errors and what the command line returns for each."""

from __future__ import annotations

import inspect

import pytest

from autoresearch.values import errors


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (errors.AutoresearchError, 1),
        (errors.UserError, 2),
        (errors.DataError, 2),
        (errors.WorkspaceError, 2),
        (errors.TrialFailed, 1),
        (errors.SandboxUnavailable, 1),
        (errors.TrustViolation, 3),
        (errors.Interrupted, 130),
    ],
)
def test_exit_codes(kind: type[errors.AutoresearchError], code: int) -> None:
    """0 ok, 1 failed, 2 usage, 3 trust violation, 130 interrupted."""
    assert kind.exit_code == code


def test_every_error_is_in_the_tree_of_the_docstring() -> None:
    """The tree at the top of the module is the documentation; nothing is missing from it."""
    kinds = [kind for _, kind in inspect.getmembers(errors, inspect.isclass)]
    own = [kind for kind in kinds if kind.__module__ == errors.__name__]
    assert own
    for kind in own:
        assert issubclass(kind, errors.AutoresearchError)
        assert kind.__name__ in (errors.__doc__ or "")


def test_trial_failed_carries_its_reason() -> None:
    """The loop reads the outcome and the reason; a person reads the message."""
    error = errors.TrialFailed("crash", "train.py raised ValueError")
    assert (error.outcome, error.reason, str(error)) == (
        "crash",
        "train.py raised ValueError",
        "train.py raised ValueError",
    )
