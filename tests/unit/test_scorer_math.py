"""Bits per byte, and how the scorer deals with a presenter, here a thread at the other end."""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from autoresearch.referee.scorer import Scorer, ScoringFailed, _nats, bits_per_byte, serve
from autoresearch.wire.channel import Channel, ChannelClosed

VOCAB, CONTEXT, CHUNK, ROWS = 20, 6, 4, 10
Answer = Callable[[Channel, torch.Tensor, torch.Tensor], None]


def test_bits_per_byte_against_plain_arithmetic() -> None:
    """Sums in float64 over targets that have bytes, both table and special tokens respected."""
    nats = torch.rand(50, 40)
    num_bytes = torch.randint(0, 5, (50, 40))
    pairs = list(zip(nats.flatten().tolist(), num_bytes.flatten().tolist(), strict=True))
    total = math.fsum(n for n, b in pairs if b)
    expected = total / math.log(2) / sum(b for _, b in pairs)
    assert bits_per_byte(nats, num_bytes) == pytest.approx(expected, rel=1e-12)


def test_special_tokens_count_on_neither_side() -> None:
    """However badly a model predicts them."""
    nats, num_bytes = torch.tensor([1.0, 1e6]), torch.tensor([2, 0])
    assert bits_per_byte(nats, num_bytes) == pytest.approx(0.5 / math.log(2))


def test_small_terms_are_not_lost_in_a_large_sum() -> None:
    """A float32 sum over this many tokens would be off in the third digit."""
    nats = torch.full((1000, 1000), 0.1)
    num_bytes = torch.ones(1000, 1000, dtype=torch.int64)
    expected = float(np.float32(0.1)) / math.log(2)
    assert bits_per_byte(nats, num_bytes) == pytest.approx(expected, rel=1e-9)


@given(offset=st.floats(-1e12, 1e12), scale=st.floats(0.0, 50.0))
def test_an_offset_of_the_logits_gains_nothing(offset: float, scale: float) -> None:
    """Never under the entropy: at 1e9 a float32 has steps of 64, which could swallow it."""
    torch.manual_seed(0)
    plain = torch.randn(2, 3, VOCAB) * scale
    targets = torch.randint(VOCAB, (2, 3))
    shifted = plain + offset  # rounds the logits; what they say after that is what is scored
    exact = -torch.log_softmax(shifted.double(), dim=-1).gather(-1, targets[..., None])[..., 0]
    assert torch.allclose(_nats(shifted, targets).double(), exact, rtol=1e-4, atol=1e-4)


def test_equal_logits_cost_the_whole_entropy() -> None:
    """Whatever their height."""
    for height in (0.0, 1e4, 1e9, -3e38, 3e38):
        nats = _nats(torch.full((1, 5, VOCAB), height), torch.zeros(1, 5, dtype=torch.long))
        assert torch.allclose(nats, torch.tensor(math.log(VOCAB)))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_no_numbers_give_nats_that_are_none(bad: float) -> None:
    """One of them anywhere spoils its token."""
    logits = torch.zeros(1, 1, VOCAB)
    logits[0, 0, 3] = bad
    for target in (0, 3):
        assert not torch.isfinite(_nats(logits, torch.tensor([[target]]))).any()


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, object]:
    """A dataset of random rows, as the referee describes it to the scorer."""
    rng = np.random.default_rng(0)
    rows = rng.integers(1, VOCAB, (ROWS, CONTEXT + 1)).astype("<u2")
    rows[:, 0] = 0
    rows.tofile(tmp_path / "rows.bin")
    np.save(tmp_path / "bytes.npy", np.array([0, *[2] * (VOCAB - 1)], dtype=np.uint16))
    np.save(tmp_path / "decoded.npy", np.array([0, *[4] * (VOCAB - 1)], dtype=np.uint16))
    return {
        "rows_path": str(tmp_path / "rows.bin"),
        "token_bytes_path": str(tmp_path / "bytes.npy"),
        "token_bytes_decoded_path": str(tmp_path / "decoded.npy"),
        "chunk_rows": CHUNK,
        "context": CONTEXT,
        "vocab_size": VOCAB,
        "device": "cpu",
        "threads": 1,
    }


@pytest.fixture
def scorer(settings: dict[str, object]) -> Iterator[Scorer]:
    """A scorer with buffers made."""
    scorer = Scorer(settings)
    scorer.make_buffers()
    yield scorer
    scorer.tokens = scorer.logits = torch.empty(0)
    for buffer in scorer._host_buffers:
        buffer.close()


def soon() -> float:
    """A deadline that an honest presenter keeps easily."""
    return time.monotonic() + 20.0


def present(scorer: Scorer, answer: Answer, seen: list[torch.Tensor] | None = None) -> Channel:
    """The scorer's end of a channel whose other end answers every `forward`."""
    ours, theirs = Channel.pair()
    channel = Channel(theirs)
    tokens, logits = scorer.tokens, scorer.logits

    def loop() -> None:
        try:
            while True:
                channel.receive()
                if seen is not None:
                    seen.append(tokens.clone())
                answer(channel, tokens, logits)
        except ChannelClosed:
            channel.close()

    threading.Thread(target=loop, daemon=True).start()
    return ours


def bigram(channel: Channel, tokens: torch.Tensor, logits: torch.Tensor) -> None:
    """An honest model: the next token is likely the same plus one."""
    logits.zero_()
    logits.scatter_(-1, ((tokens + 1) % VOCAB).long()[..., None], 3.0)
    channel.send("done")


def test_scoring_shows_each_row_once_in_order_and_nothing_else(scorer: Scorer) -> None:
    """Inputs only: the last token of a row is nowhere; the last chunk is filled up with zeros."""
    seen: list[torch.Tensor] = []
    channel = present(scorer, bigram, seen)
    result = scorer.score(channel, 1, soon())
    channel.close()
    shown = torch.cat(seen)
    assert shown.shape == (12, CONTEXT)
    assert torch.equal(shown[:ROWS], scorer.rows[:, :-1])
    assert not shown[ROWS:].any()
    logits = torch.zeros(ROWS, CONTEXT, VOCAB)
    logits.scatter_(-1, ((scorer.rows[:, :-1] + 1) % VOCAB).long()[..., None], 3.0)
    nats = torch.nn.functional.cross_entropy(
        logits.reshape(-1, VOCAB), scorer.rows[:, 1:].reshape(-1).long(), reduction="sum"
    )
    expected = nats.item() / math.log(2) / (2 * ROWS * CONTEXT)
    assert result["val_bpb"] == pytest.approx(expected, rel=1e-6)
    assert result["val_bpb_decoded"] == pytest.approx(expected / 2, rel=1e-6)
    assert result["num_tokens"] == ROWS * CONTEXT


def nothing(channel: Channel, tokens: torch.Tensor, logits: torch.Tensor) -> None:
    """Says done without having written."""
    channel.send("done")


def all_but_one(channel: Channel, tokens: torch.Tensor, logits: torch.Tensor) -> None:
    """Leaves a single logit out."""
    last = logits[0, 2, 5].clone()
    logits.zero_()
    logits[0, 2, 5] = last
    channel.send("done")


def infinite(channel: Channel, tokens: torch.Tensor, logits: torch.Tensor) -> None:
    """Is infinitely sure of everything."""
    logits.fill_(math.inf)
    channel.send("done")


def leave(channel: Channel, tokens: torch.Tensor, logits: torch.Tensor) -> None:
    """Closes its end."""
    raise ChannelClosed


def ramble(channel: Channel, tokens: torch.Tensor, logits: torch.Tensor) -> None:
    """Sends what is no message."""
    channel._socket.sendall(b"\xff" * 64)


def sulk(channel: Channel, tokens: torch.Tensor, logits: torch.Tensor) -> None:
    """Does not answer."""


def saying(kind: str) -> Answer:
    """A presenter that answers with `kind` and some text."""
    return lambda channel, tokens, logits: channel.send(kind, text="validation text", code="x")


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (nothing, "not_finite"),
        (all_but_one, "not_finite"),
        (infinite, "not_finite"),
        (leave, "presenter_died"),
        (ramble, "presenter_broke_protocol"),
        (saying("wrong_shape"), "wrong_shape"),
        (saying("failed_forward"), "failed_forward"),
        (saying("anything else"), "presenter_broke_protocol"),
    ],
)
def test_what_a_presenter_does_wrong_becomes_a_fixed_code(
    scorer: Scorer, answer: Answer, code: str
) -> None:
    """None of its words gets through."""
    channel = present(scorer, answer)
    with pytest.raises(ScoringFailed) as failure:
        scorer.score(channel, 1, soon())
    channel.close()
    assert str(failure.value) == code
    assert scorer.nats == {}


def test_a_presenter_that_does_not_answer_times_out(scorer: Scorer) -> None:
    """At the deadline."""
    channel = present(scorer, sulk)
    with pytest.raises(ScoringFailed, match="scoring_timeout"):
        scorer.score(channel, 1, time.monotonic() + 0.05)
    channel.close()


def test_the_buffer_is_read_once(scorer: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written after the answer changes no score: the scorer has its own copy by then."""
    channel = present(scorer, bigram)
    honest = scorer.score(channel, 1, soon())["val_bpb"]
    channel.close()

    class Scribbler:
        """The buffer of a presenter that writes the targets in as soon as it was copied."""

        def __init__(self, real: torch.Tensor) -> None:
            self.real = real

        def fill_(self, value: float) -> None:
            self.real.fill_(value)

        def __getitem__(self, index: slice) -> torch.Tensor:
            part = self.real[index]

            class Part:
                def clone(self) -> torch.Tensor:
                    copy = part.clone()
                    part.fill_(math.inf)
                    return copy

            return Part()

    channel = present(scorer, bigram)
    monkeypatch.setattr(scorer, "logits", Scribbler(scorer.logits))
    assert scorer.score(channel, 2, soon())["val_bpb"] == honest
    channel.close()


def test_each_presentation_has_buffers_of_its_own(scorer: Scorer) -> None:
    """Neither contents nor attributes of the old ones reach the next presenter."""
    os.pwrite(scorer._host_buffers[1].fd, b"a note for the next one", 0)
    os.setxattr(scorer._host_buffers[0].fd, "user.note", b"and another")
    scorer.tokens[:] = 7
    tokens_fd, logits_fd = scorer.make_buffers()
    assert not any(os.pread(logits_fd, 1 << 20, 0))
    assert not any(os.pread(tokens_fd, 1 << 20, 0))
    assert os.listxattr(tokens_fd) == os.listxattr(logits_fd) == []


def test_presenters_can_write_logits_but_not_tokens_nor_sizes(scorer: Scorer) -> None:
    """Pulling a buffer away would kill the scorer."""
    tokens, logits = scorer._host_buffers
    os.pwrite(logits.fd, b"fine", 0)
    for attempt in (
        lambda: os.pwrite(tokens.fd, b"x", 0),
        lambda: os.ftruncate(tokens.fd, 0),
        lambda: os.ftruncate(logits.fd, 0),
    ):
        with pytest.raises(PermissionError):
            attempt()


def test_an_audit_compares_with_the_first_presentation(scorer: Scorer) -> None:
    """Honest: no finding. Reading the next token: the future. Not scored before: an error."""

    def peek(channel: Channel, tokens: torch.Tensor, logits: torch.Tensor) -> None:
        logits.zero_()
        ahead = torch.roll(tokens, -1, dims=1).long()
        logits.scatter_(-1, ahead[..., None], 12.0)
        channel.send("done")

    for run_id, (answer, finding) in enumerate([(bigram, ""), (peek, "future")]):
        channel = present(scorer, answer)
        scorer.score(channel, run_id, soon())
        report = scorer.audit(channel, run_id, 5, soon())
        channel.close()
        assert report["finding"] == finding, report
    with pytest.raises(ScoringFailed, match="unknown_run"):
        scorer.audit(channel, 99, 5, soon())


def test_only_the_last_presentations_are_remembered(scorer: Scorer) -> None:
    """Memory stays bounded over a session."""
    channel = present(scorer, bigram)
    for run_id in range(10):
        scorer.score(channel, run_id, soon())
    channel.close()
    assert list(scorer.nats) == list(range(2, 10))


def test_generated_tokens_follow_the_model(scorer: Scorer) -> None:
    """Cold it takes the likeliest, warm it draws, by seed; never special ones."""
    channel = present(scorer, bigram)
    assert scorer.generate(channel, [0, 3], 8, 0.0, 1, soon()) == [4, 5, 6, 7, 8, 9, 10, 11]
    warm = [scorer.generate(channel, [0, 3], 12, 2.0, seed, soon()) for seed in (1, 1, 2)]
    channel.close()
    assert warm[0] == warm[1] != warm[2]
    assert all(0 < token < VOCAB for token in warm[2])


def test_the_service_answers_until_the_referee_goes(settings: dict[str, object]) -> None:
    """load, prepare, score, audit, generate; a failure is a code, the next question is answered."""
    ours, theirs = Channel.pair()
    service = Channel(theirs)
    ended: list[bool] = []

    def run() -> None:
        try:
            serve(service)
        except ChannelClosed:
            ended.append(True)
        service.close()

    thread = threading.Thread(target=run)
    thread.start()
    ours.send("load", **settings)
    assert ours.receive(20.0).body == {"num_rows": ROWS}

    def ask(kind: str, **body: object) -> tuple[str, dict[str, object]]:
        ours.send("prepare")
        buffers = ours.receive(20.0)
        assert buffers.kind == "prepared"
        mine, others = Channel.pair()
        answering = threading.Thread(target=answer, args=(mine, *buffers.fds))
        answering.start()
        ours.send(kind, [others.fileno()], limit_s=20.0, **body)
        others.close()
        message = ours.receive(20.0)
        answering.join()
        mine.close()
        buffers.close()
        return message.kind, message.body

    def answer(channel: Channel, tokens_fd: int, logits_fd: int) -> None:
        try:
            while True:
                channel.receive()
                size = os.fstat(logits_fd).st_size
                os.pwrite(logits_fd, np.zeros(size // 4, dtype=np.float32).tobytes(), 0)
                channel.send("done")
        except ChannelClosed:
            pass

    assert ask("audit", run_id=1, seed=0) == ("failed", {"code": "unknown_run"})
    kind, body = ask("score", run_id=1)
    assert kind == "scored"
    assert body["val_bpb"] == pytest.approx(math.log2(VOCAB) / 2, rel=1e-6)
    kind, body = ask("audit", run_id=1, seed=0)
    assert (kind, body["finding"]) == ("audited", "")
    kind, body = ask("generate", prompt=[0], count=3, temperature=1.0, seed=0)
    assert (kind, len(body["tokens"])) == ("generated", 3)
    ours.close()
    thread.join()
    assert ended == [True]
