"""The llm researcher before it asks anybody: its models, its key, its price, its refusals."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from askers import HashedLlm, make_desk

from autoresearch.search.history import History
from autoresearch.search.researchers import Unusable
from autoresearch.search.researchers.llm import LlmResearcher, read_models
from autoresearch.values.errors import UserError

SOURCE = "RATE = 0.02  # step size [0.001, 1.0] log\n"


def test_models_and_weights_are_read() -> None:
    """Names may hold colons and slashes; a name alone has weight 1."""
    assert read_models("a/b:8b 3, c") == [("a/b:8b", 3.0), ("c", 1.0)]


@pytest.mark.parametrize("text", ["a 0", "a -1", "a b", "a 1 2", "a nan", "a inf"])
def test_odd_weights_are_named(text: str) -> None:
    """The message shows how it should look."""
    with pytest.raises(UserError, match=r"expected a name and a weight above 0, such as"):
        read_models(text)
    with pytest.raises(UserError, match=r"llm.models is empty"):
        read_models(" , ")


def test_models_are_drawn_by_weight_and_a_retry_keeps_its_model() -> None:
    """The draw hangs on seed and turn alone."""
    researcher = HashedLlm(make_desk(llm={"models": "a 3, b 1"}), seed=5)
    names = [researcher._pick(History(refusals=(None,) * n)) for n in range(80)]  # type: ignore[arg-type]
    assert 45 <= names.count("a") <= 75
    retry = History(refusals=(None,) * 8, refusals_in_a_row=1)  # type: ignore[arg-type]
    assert researcher._pick(retry) == names[7]


def test_a_missing_key_is_told_before_the_night() -> None:
    """With the command that sets it; a server of one's own needs none."""
    desk = dataclasses.replace(make_desk(), environment={})
    with pytest.raises(UserError, match=r"OPENAI_API_KEY is empty.*export OPENAI_API_KEY="):
        LlmResearcher(desk)
    assert LlmResearcher(make_desk(llm={"key_variable": ""})).name == "llm"


def test_a_cap_in_dollars_needs_a_price() -> None:
    """The owner's price will do, or no cap."""
    spending: dict[str, Any] = {"session_usd": 1.0}
    llm = {"models": "my-own/model"}
    with pytest.raises(UserError, match=r"no price is known for the model 'my-own/model'"):
        LlmResearcher(make_desk(llm=llm, spending=spending))
    priced = {**spending, "input_usd": 1.0}
    assert LlmResearcher(make_desk(llm=llm, spending=priced)).name == "llm"


class Leaky(HashedLlm):
    """A model that tells the key it has heard of."""

    def _ask(self, model: str, prompt: str, turn: int) -> str:
        return "DESCRIPTION: x\n```python\nKEY = 'sk-a-stub-key'\n```\n"


def test_an_answer_with_a_key_is_refused() -> None:
    """It reaches neither git nor the ledger."""
    with pytest.raises(Unusable, match="must not get into git") as caught:
        Leaky(make_desk()).propose(History(), "base", SOURCE)
    assert caught.value.kind == "secret"
    assert "sk-a-stub-key" not in caught.value.edit
