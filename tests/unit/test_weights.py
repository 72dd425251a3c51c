"""Weights in shared memory: the library's own format, nothing lost, nothing taken on trust."""

import os
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch import Tensor, nn

from autoresearch.inside.weights import Parcel, load_weights

DTYPES = [torch.float32, torch.bfloat16, torch.float64, torch.float16, torch.int64, torch.uint8]


@pytest.fixture
def fd() -> Iterator[int]:
    """An empty file in memory."""
    number = os.memfd_create("weights")
    yield number
    os.close(number)


def bag(tensors: dict[str, Tensor]) -> nn.Module:
    """A module that holds these."""
    model = nn.Module()
    for name, tensor in tensors.items():
        model.register_buffer(name, tensor)
    return model


def content(fd: int) -> bytes:
    """The whole file."""
    return os.pread(fd, os.fstat(fd).st_size, 0)


shapes = st.lists(st.integers(0, 5), max_size=3)
models = st.dictionaries(
    st.text("abc_", min_size=1, max_size=4), st.tuples(st.sampled_from(DTYPES), shapes), max_size=5
)


@settings(max_examples=30, deadline=None)
@given(models)
def test_the_library_reads_what_is_written(kinds: dict[str, tuple[torch.dtype, list[int]]]) -> None:
    """Every type and shape, empty ones too; and what the library writes is read."""
    tensors = {n: (torch.randn(shape) * 50).to(dtype) for n, (dtype, shape) in kinds.items()}
    fd = os.memfd_create("weights")
    try:
        size_bytes = Parcel(fd).write(bag(tensors))
        assert size_bytes == os.fstat(fd).st_size
        read = load(content(fd))
        assert read.keys() == tensors.keys()
        assert all(torch.equal(read[n], tensors[n]) for n in tensors)
        os.ftruncate(fd, 0)
        os.pwrite(fd, save(tensors), 0)
        blank = bag({n: torch.zeros_like(t) for n, t in tensors.items()})
        load_weights(blank, fd)
        assert all(torch.equal(t, tensors[n]) for n, t in blank.state_dict().items())
    finally:
        os.close(fd)


class Tied(nn.Module):
    """An embedding that is the head too, and a matrix that is stored transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embedding.weight
        self.turned = nn.Parameter(torch.randn(3, 5).t())


class Compiled(nn.Module):
    """The names that torch.compile gives, without its seconds."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._orig_mod = model


def test_shared_and_compiled_weights_arrive(fd: int) -> None:
    """Shared memory is written once; torch.compile's prefix is neither written nor needed."""
    model = Tied()
    Parcel(fd).write(Compiled(model))
    assert sorted(load(content(fd))) == ["embedding.weight", "turned"]
    for other in (Tied(), Compiled(Tied())):
        load_weights(other, fd)
        assert all(map(torch.equal, other.parameters(), model.parameters()))


def test_the_place_is_used_again(fd: int) -> None:
    """After a rehearsal the bytes are those of the last call, also where the model changed size."""
    model, parcel = nn.Linear(5, 3), Parcel(fd)
    parcel.make_room(model)()
    assert parcel.rehearse(model) > 0
    before = content(fd)
    with torch.no_grad():
        model.weight += 1
    parcel.write(model)
    assert len(content(fd)) == len(before)
    assert torch.equal(load(content(fd))["weight"], model.weight)
    for size in (50, 2):
        other = nn.Linear(size, size)
        parcel.write(other)
        assert torch.equal(load(content(fd))["bias"], other.bias)


def test_loaded_weights_do_not_write_back(fd: int) -> None:
    """What a presenter does to its model stays in its process."""
    Parcel(fd).write(nn.Linear(5, 3))
    before, model = content(fd), nn.Linear(5, 3)
    load_weights(model, fd)
    with torch.no_grad():
        model.weight.zero_()
    assert content(fd) == before


def test_a_type_without_a_name_is_an_error(fd: int) -> None:
    """With the tensor's name and type."""
    with pytest.raises(ValueError, match=r"odd is torch\.complex64"):
        Parcel(fd).write(bag({"odd": torch.zeros(2, dtype=torch.complex64)}))


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\x00" * 7,
        (1 << 40).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"[}",
        save({"weight": torch.zeros(3, 5)}),  # a name is missing
        save({"weight": torch.zeros(3, 5), "bias": torch.zeros(4)}),
        save({"weight": torch.zeros(3, 5), "bias": torch.zeros(3), "more": torch.zeros(1)}),
        save({"weight": torch.zeros(3, 5), "bias": torch.zeros(3)})[:-1],
        save({"weight": torch.zeros(3, 5), "bias": torch.zeros(3)}).replace(b"[3,5]", b"[3,6]"),
    ],
)
def test_damaged_bytes_are_refused(fd: int, payload: bytes) -> None:
    """Whatever is wrong with them, as an exception."""
    os.pwrite(fd, payload, 0)
    with pytest.raises((ValueError, RuntimeError, KeyError, AttributeError)):
        load_weights(nn.Linear(5, 3), fd)
