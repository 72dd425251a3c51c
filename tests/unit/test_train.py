"""The shipped train.py against its specification: toy sizes, a fake `run`, plain operators."""

from __future__ import annotations

import gc
import itertools
import math
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import CodeType, ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

TEMPLATES = Path(__file__).parents[2] / "src" / "autoresearch" / "templates"
VOCAB, CONTEXT = 64, 32
SMALL = {
    "DEPTH": 4,
    "WIDTH": 64,
    "HEAD_DIM": 32,
    "TOTAL_BATCH": 8,
    "MICRO_BATCH": 4,
    "WARMUP_STEPS": 1,
    "MOMENTUM_RAMP": 10,
}


class SubmittedError(Exception):
    """What the fake run raises where the real one never returns."""


class FakeRun:
    """A run without clock, sandbox or processes: `num_steps` steps, then the end."""

    def __init__(self, num_steps: int = 5, seed: int = 0) -> None:
        self.device = torch.device("cpu")
        self.vocab_size, self.context, self.bos = VOCAB, CONTEXT, 0
        self.budget_s, self.seed, self.threads = 1e6, seed, 1
        self.num_steps, self.step = num_steps, 0
        self.reports: list[dict[str, Any]] = []
        self.calls: list[str] = []
        self.facts: dict[str, Any] = {}

    def synthetic_rows(self, num_rows: int) -> torch.Tensor:
        """Random tokens."""
        return torch.randint(0, VOCAB, (num_rows, CONTEXT + 1)).to(torch.int16)

    @contextmanager
    def warmup(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[None]:
        """Marks beginning and end; the real one restores state, which the harness's tests cover."""
        self.calls.append("warmup")
        yield
        self.calls.append("warm")

    def start(self) -> list[torch.Tensor]:
        """Two shards of rows that can be learned: every token is the one before it plus one."""
        self.calls.append("start")
        first = torch.arange(40)[:, None] % VOCAB
        rows = ((first + torch.arange(CONTEXT + 1)) % VOCAB).to(torch.int16)
        return [rows[:30], rows[30:]]

    def proceed(self) -> bool:
        """True for `num_steps` steps."""
        self.step += 1
        return self.step <= self.num_steps

    @property
    def progress(self) -> float:
        """The share of steps done."""
        return (self.step - 1) / self.num_steps

    def report(self, **facts: Any) -> None:
        """Remembers."""
        self.reports.append(facts)

    def submit(self, model: torch.nn.Module, **facts: Any) -> None:
        """Ends main, as the real one does."""
        self.calls.append("submit")
        self.facts, self.model = facts, model
        raise SubmittedError


@cache
def compiled() -> CodeType:
    """train.py as bytecode."""
    path = TEMPLATES / "train.py"
    return compile(path.read_text(encoding="utf-8"), str(path), "exec")


@pytest.fixture
def train(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A fresh train.py with toy constants."""
    module = ModuleType("train_under_test")
    exec(compiled(), vars(module))
    for name, value in SMALL.items():
        assert hasattr(module, name)
        monkeypatch.setattr(module, name, value)
    torch.manual_seed(0)
    return module


@contextmanager
def collector_restored() -> Iterator[None]:
    """main() collects and freezes garbage: that of pytest takes half a second, so it is frozen."""
    gc.freeze()
    try:
        yield
    finally:
        gc.enable()


def run_main(train: ModuleType, run: FakeRun) -> FakeRun:
    """main() to its end."""
    with collector_restored(), pytest.raises(SubmittedError):
        train.main(run)
    return run


def random_tokens(num_rows: int = 2) -> torch.Tensor:
    """(num_rows, CONTEXT) token ids."""
    return torch.randint(0, VOCAB, (num_rows, CONTEXT))


def perturbed(model: torch.nn.Module) -> torch.nn.Module:
    """The model with every parameter moved, so that no zero hides a path."""
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.05)
    return model


def test_a_few_steps_reduce_the_loss(train: ModuleType) -> None:
    """Twelve steps on predictable rows take the loss far below that of a uniform guess."""
    run = run_main(train, FakeRun(num_steps=12))
    assert run.calls == ["warmup", "warm", "start", "submit"]
    assert run.reports[1]["loss"] == pytest.approx(math.log(VOCAB), abs=0.1)
    assert run.reports[-1]["loss"] < 2.5
    assert run.facts["num_steps"] == 12
    assert run.facts["total_tokens_M"] == pytest.approx(12 * 8 * CONTEXT / 1e6)
    assert {"num_params_M", "depth", "mfu_percent", "attention"} <= set(run.facts)


def test_same_seed_same_weights(train: ModuleType) -> None:
    """Everything random follows the seed that the run gives."""
    first, again, other = (run_main(train, FakeRun(2, seed)).model for seed in (1, 1, 2))
    assert torch.equal(first.head, again.head)
    assert not torch.equal(first.head, other.head)


def test_plain_path_needs_torch_alone(train: ModuleType) -> None:
    """On a CPU train.py imports neither triton nor the fast operators."""
    before = set(sys.modules)
    train.build_model(FakeRun())
    new = set(sys.modules) - before
    assert not [name for name in new if name.startswith(("triton", "autoresearch"))]


def test_shapes_and_dtypes(train: ModuleType) -> None:
    """Logits are (B, T, V) in float32; shorter rows are fine; int32 tokens too."""
    model = train.build_model(FakeRun())
    assert model(random_tokens(3)).shape == (3, CONTEXT, VOCAB)
    assert model(random_tokens(3)[:, :7].int()).shape == (3, 7, VOCAB)
    assert model(random_tokens()).dtype == torch.float32
    assert model.embedding.dtype == model.values.dtype == torch.bfloat16
    assert model.head.dtype == model.q.dtype == torch.float32


@pytest.mark.parametrize("depth", [1, 2, 5, 8])
def test_value_embeddings_sit_on_every_other_layer(train: ModuleType, depth: int) -> None:
    """Layer i has one when i and depth - 1 have the same parity, so the last always does."""
    train.DEPTH = depth
    model = train.build_model(FakeRun())
    assert model.value_layers == [i for i in range(depth) if i % 2 == (depth - 1) % 2]
    assert model.values.shape == (len(model.value_layers), VOCAB, 64)
    assert model(random_tokens()).isfinite().all()


def test_width_follows_depth(train: ModuleType) -> None:
    """Width 0 means 64 a layer, rounded up to whole heads."""
    train.WIDTH, train.HEAD_DIM, train.DEPTH = 0, 128, 3
    assert train.build_model(FakeRun()).width == 256
    train.DEPTH = 8
    assert train.build_model(FakeRun()).width == 512


@pytest.mark.parametrize(("wanted", "taken"), [(0, 4), (1, 1), (2, 2), (3, 1), (4, 4)])
def test_key_value_heads_divide_the_query_heads(train: ModuleType, wanted: int, taken: int) -> None:
    """Fewer key/value heads share; a number that doesn't divide is taken down to one that does."""
    train.WIDTH, train.KV_HEADS = 128, wanted
    model = train.build_model(FakeRun())
    assert model.k.shape == model.v.shape == (4, taken * 32, 128)
    assert model(random_tokens()).isfinite().all()


def test_window_pattern(train: ModuleType) -> None:
    """The pattern repeats over the layers and the last layer always sees everything."""
    train.DEPTH, train.WINDOW_PATTERN, train.SHORT_WINDOW = 6, "SSSL", 0.25
    assert train.build_model(FakeRun()).windows == [8, 8, 8, 32, 8, 32]


def test_initial_weights(train: ModuleType) -> None:
    """The spreads of the specification, and zeros where it says zeros."""
    train.WIDTH = 256
    model = train.build_model(FakeRun())
    bound = math.sqrt(3 / 256)
    assert model.embedding.float().std().item() == pytest.approx(1.0, rel=0.05)
    assert model.head.std().item() == pytest.approx(0.001, rel=0.05)
    for matrices in (model.q, model.k, model.v, model.fc, model.values.float()):
        assert matrices.abs().max().item() == pytest.approx(bound, rel=0.01)
        assert matrices.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)
    for matrices in (model.out, model.proj, model.gate):
        assert not matrices.any()
    assert model.lambda_resid.tolist() == [1.0] * 4
    assert model.lambda_x0.tolist() == pytest.approx([0.1] * 4)


def test_gate_starts_at_one(train: ModuleType) -> None:
    """With gate weights of zero the value embedding is added as it is: 2 x sigmoid(0) = 1."""
    train.DEPTH = 1
    model = perturbed(train.build_model(FakeRun()))
    seen: list[torch.Tensor] = []

    def attend(q: Any, k: Any, v: torch.Tensor, *rest: Any) -> torch.Tensor:
        seen.append(v)
        return train.sdpa(q, k, v, *rest)

    model.operators.attend = attend
    tokens = random_tokens()
    with torch.no_grad():
        model.gate.zero_()
        model(tokens)
        value = F.embedding(tokens, model.values[0]).float().view_as(seen[0])
        model.values.zero_()
        model(tokens)
    torch.testing.assert_close(seen[0] - seen[1], value)


@pytest.mark.parametrize("pattern", ["L", "S"])
def test_logits_do_not_depend_on_later_tokens(train: ModuleType, pattern: str) -> None:
    """Changing token t leaves all logits before t as they were, and changes those from t on."""
    train.WINDOW_PATTERN = pattern
    model = perturbed(train.build_model(FakeRun()))
    tokens = random_tokens(1)
    other = tokens.clone()
    other[0, 20:] = (other[0, 20:] + 1) % VOCAB
    with torch.no_grad():
        before, after = model(tokens), model(other)
    torch.testing.assert_close(before[:, :20], after[:, :20])
    assert (before[:, 20] - after[:, 20]).abs().max() > 1e-3


def test_keys_may_look_one_back(train: ModuleType) -> None:
    """With half of each key the token before's the future stays unseen."""
    model = perturbed(train.build_model(FakeRun()))
    tokens = random_tokens(1)
    other = tokens.clone()
    other[0, 20:] = (other[0, 20:] + 1) % VOCAB
    with torch.no_grad():
        plain = model(tokens)
        train.KEY_OFFSET = True
        before, after, shorter = model(tokens), model(other), model(tokens[:, :9])
    assert not torch.allclose(before, plain)
    torch.testing.assert_close(before[:, :20], after[:, :20])
    torch.testing.assert_close(before[:, :9], shorter)


@pytest.mark.parametrize(("pattern", "is_masked"), [("L", True), ("SL", False)])
def test_long_layers_keep_to_the_document(train: ModuleType, pattern: str, is_masked: bool) -> None:
    """What came before a document's first token changes nothing after it; short layers leak."""
    train.WINDOW_PATTERN, train.DOCUMENT_MASK = pattern, True
    run = FakeRun()
    model = perturbed(train.build_model(run))
    tokens = random_tokens(1).clamp(min=1)
    tokens[0, 20] = run.bos
    other = tokens.clone()
    other[0, 10] = tokens[0, 10] % (VOCAB - 1) + 1
    with torch.no_grad():
        before, after = model(tokens), model(other)
    assert (before[:, 10:20] - after[:, 10:20]).abs().max() > 1e-3
    assert torch.equal(before[:, 20:], after[:, 20:]) == is_masked
    with torch.no_grad():
        for length in (30, 21, 5):  # a short layer stays one where it sees all of a shorter row
            torch.testing.assert_close(model(tokens[:, :length]), before[:, :length])


def test_the_best_preset_keeps_to_documents() -> None:
    """Figures in the README are of preset h100 with this switched on."""
    presets = tomllib.loads((TEMPLATES / "presets.toml").read_text(encoding="utf-8"))
    assert presets["h100"]["constants"]["DOCUMENT_MASK"] is True


def test_one_back_is_half_a_key(train: ModuleType) -> None:
    """Channels that turn fast stay, slow ones come from the token before, sides stay together."""
    k = torch.arange(2 * 5 * 3 * 8.0).view(2, 5, 3, 8)
    moved = train.one_back(k)
    fast, slow = [0, 1, 4, 5], [2, 3, 6, 7]
    assert torch.equal(moved[..., fast], k[..., fast])
    assert torch.equal(moved[:, 1:, :, slow], k[:, :-1, :, slow])
    assert not moved[:, 0, :, slow].any()


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("window", [1, 5, 15, 16, 99])
def test_attention_is_the_formula(train: ModuleType, groups: int, window: int) -> None:
    """Softmax over the last `window` keys and the own one, head by head, in float64."""
    q = torch.randn(2, 16, 4, 8, dtype=torch.float64)
    k, v = (torch.randn(2, 16, groups, 8, dtype=torch.float64) for _ in range(2))
    y = train.sdpa(q, k, v, window)
    for h in range(4):
        g = h * groups // 4
        scores = q[:, :, h] @ k[:, :, g].mT / math.sqrt(8)
        back = torch.arange(16)[:, None] - torch.arange(16)
        scores = scores.masked_fill((back < 0) | (back > window), -math.inf)
        torch.testing.assert_close(y[:, :, h], scores.softmax(-1) @ v[:, :, g])


def test_rotary_scores_depend_on_distance_only(train: ModuleType) -> None:
    """The product of a rotated query and key is the same wherever the pair stands."""
    model = train.build_model(FakeRun())
    angles = torch.arange(CONTEXT, dtype=torch.float64)[:, None, None]
    angles = angles * 10000.0 ** (-torch.arange(0, 32, 2, dtype=torch.float64) / 32)
    cos, sin = angles.cos(), angles.sin()
    torch.testing.assert_close(model.cos.double(), cos, atol=4e-3, rtol=0)
    torch.testing.assert_close(model.sin.double(), sin, atol=4e-3, rtol=0)
    q, k = torch.randn(2, 1, 1, 1, 32, dtype=torch.float64).expand(2, 1, CONTEXT, 1, 32)
    q, k = train.rotate_norm(q, cos, sin)[0, :, 0], train.rotate_norm(k, cos, sin)[0, :, 0]
    scores = q @ k.mT
    torch.testing.assert_close(scores[3:, 3:], scores[:-3, :-3])
    assert q.square().mean(-1).sub(1).abs().max() < 1e-5


def test_loss_and_its_gradient(train: ModuleType) -> None:
    """One pass in chunks gives what autograd gives for softcap and cross-entropy, in float64."""
    x = (torch.randn(2, 600, 16, dtype=torch.float64) * 3).requires_grad_()
    head = torch.randn(VOCAB, 16, dtype=torch.float64).requires_grad_()
    targets = torch.randint(0, VOCAB, (2, 600))
    loss = train.head_loss(x, head, targets)
    grads = torch.autograd.grad(loss * 0.25, (x, head))
    logits = 15 * torch.tanh((x @ head.mT) / 15)
    wanted = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)  # softcap is float32 by contract
    for got, grad in zip(grads, torch.autograd.grad(wanted * 0.25, (x, head)), strict=True):
        assert (got - grad).norm() / grad.norm() < 1e-5


def test_loss_agrees_with_the_logits_shown(train: ModuleType) -> None:
    """What is trained is what is scored."""
    model = perturbed(train.build_model(FakeRun()))
    tokens, targets = random_tokens(), random_tokens()
    loss = F.cross_entropy(model(tokens).flatten(0, 1), targets.flatten())
    torch.testing.assert_close(model(tokens, targets), loss)
    assert model(tokens).abs().max() < 15


@pytest.mark.parametrize("shape", [(3, 48, 48), (2, 96, 32), (2, 32, 96)])
def test_polar_is_nearly_orthogonal(train: ModuleType, shape: tuple[int, ...]) -> None:
    """Singular vectors stay, singular values go to about 1: against the SVD in float64."""
    matrices = torch.randn(shape, dtype=torch.float64)
    U, S, Vh = torch.linalg.svd(matrices, full_matrices=False)
    strong = 0.05 * S[:, :1] < S  # five iterations lift what is not tiny
    X = train.polar(matrices, torch.float64)
    values = torch.einsum("nri,nrc,nic->ni", U, X, Vh)
    assert values[strong].min() > 0.7
    assert values[strong].max() < 1.3
    torch.testing.assert_close(U @ torch.diag_embed(values) @ Vh, X, atol=1e-6, rtol=0)
    low = train.polar(matrices, torch.bfloat16).double()
    assert (low - X).norm() / X.norm() < 0.05


def make_muon(train: ModuleType, p: torch.Tensor, lr: float = 1.0, decay: float = 0.0) -> Any:
    """An optimizer of one Muon parameter."""
    group = {"params": [p], "rule": "muon", "lr": lr, "decay": decay, "betas": (0.85, 0.95)}
    return train.MuonAdamW([group], torch.float32)


def test_normuon_keeps_the_norm_of_each_matrix(train: ModuleType) -> None:
    """Rows are evened out, but every matrix of a bank moves as far as its polar factor would."""
    p = torch.nn.Parameter(torch.zeros(4, 24, 16))
    optimizer = make_muon(train, p)
    for _ in range(3):
        before = p.detach().clone()
        p.grad = torch.randn_like(p) * torch.tensor([1.0, 1.0, 100.0, 100.0])[:, None, None]
        optimizer.step()
    momentum = optimizer.state[p]["momentum"]
    nesterov = p.grad + (momentum - p.grad) * 0.85
    wanted = train.polar(nesterov, torch.float32).norm(dim=(-2, -1))
    moved = (p - before).detach()
    torch.testing.assert_close(moved.norm(dim=(-2, -1)), wanted, rtol=1e-4, atol=0)
    rows = moved.norm(dim=-1)
    assert (rows.std(dim=-1) / rows.mean(dim=-1)).max() < 0.25
    assert optimizer.state[p]["square"].shape == (4, 24, 1)


def test_bank_is_a_batch_of_independent_matrices(train: ModuleType) -> None:
    """A matrix moves the same alone as in a bank."""
    start, grad = torch.randn(3, 8, 20), torch.randn(3, 8, 20)
    bank = torch.nn.Parameter(start.clone())
    bank.grad = grad.clone()
    make_muon(train, bank, lr=0.1, decay=0.3).step()
    for i in range(3):
        alone = torch.nn.Parameter(start[i : i + 1].clone())
        alone.grad = grad[i : i + 1].clone()
        make_muon(train, alone, lr=0.1, decay=0.3).step()
        torch.testing.assert_close(bank[i], alone[0])


def test_decay_is_cautious(train: ModuleType) -> None:
    """Weights decay only where update and weight have the same sign, and nowhere else."""
    start, grad = torch.randn(1, 12, 12), torch.randn(1, 12, 12)
    moved = []
    for decay in (0.0, 0.5):
        p = torch.nn.Parameter(start.clone())
        p.grad = grad.clone()
        make_muon(train, p, lr=0.1, decay=decay).step()
        moved.append(p.detach())
    update = (start - moved[0]) / 0.1
    wanted = moved[0] - 0.1 * 0.5 * start * (update * start >= 0)
    torch.testing.assert_close(moved[1], wanted, atol=1e-6, rtol=1e-5)


def test_adamw_is_torchs(train: ModuleType) -> None:
    """Ten steps of our rule and of torch.optim.AdamW end in the same place."""
    ours, theirs = (torch.nn.Parameter(torch.ones(5, 3)) for _ in range(2))
    group = {"params": [ours], "rule": "adamw", "lr": 0.1, "decay": 0.02, "betas": (0.8, 0.95)}
    optimizer = train.MuonAdamW([group], torch.float32)
    wanted = torch.optim.AdamW([theirs], lr=0.1, betas=(0.8, 0.95), eps=1e-10, weight_decay=0.02)
    for _ in range(10):
        ours.grad = torch.randn_like(ours)
        theirs.grad = ours.grad.clone()
        optimizer.step()
        wanted.step()
    torch.testing.assert_close(ours, theirs)


def test_groups_are_the_table(train: ModuleType) -> None:
    """Rates, betas and decays of each parameter as specified; every parameter is in one group."""
    train.WIDTH = 128
    model = train.build_model(FakeRun())
    optimizer = train.make_optimizer(model)
    names = {id(p): name for name, p in model.named_parameters()}
    groups = {names[id(p)]: group for group in optimizer.param_groups for p in group["params"]}
    assert sorted(groups) == sorted(names.values())
    s = (128 / 768) ** -0.5
    rates = {name: group["lr"] for name, group in groups.items()}
    assert rates["head"] == pytest.approx(0.004 * s)
    assert rates["embedding"] == rates["values"] == pytest.approx(0.6 * s)
    assert rates["lambda_resid"] == pytest.approx(0.005)
    assert rates["lambda_x0"] == pytest.approx(0.5)
    assert rates["q"] == rates["proj"] == pytest.approx(0.04)
    assert rates["fc"] == pytest.approx(0.04 * 2)  # 4 times as tall as wide
    assert groups["lambda_x0"]["betas"] == (0.96, 0.95)
    assert {name for name, group in groups.items() if group["rule"] == "muon"} == {
        "q", "k", "v", "out", "fc", "proj", "gate"
    }  # fmt: skip


def test_schedule(train: ModuleType) -> None:
    """Flat, then linear to the end; decay falls with progress; momentum climbs by steps."""
    optimizer = train.make_optimizer(train.build_model(FakeRun()))
    train.WARMDOWN_RATIO, train.FINAL_LR_FRAC, train.MOMENTUM_RAMP = 0.5, 0.1, 300
    at = {p: train.schedule(optimizer, p, 0) for p in (0.0, 0.5, 0.75, 1.0)}
    assert at == pytest.approx({0.0: 1.0, 0.5: 1.0, 0.75: 0.55, 1.0: 0.1})
    train.schedule(optimizer, 0.25, 150)
    muon = next(group for group in optimizer.param_groups if group["rule"] == "muon")
    assert muon["betas"] == pytest.approx((0.9, 0.95))
    assert muon["decay"] == pytest.approx(0.2 * 0.75)
    train.schedule(optimizer, 0.25, 5000)
    assert muon["betas"][0] == pytest.approx(0.95)
    train.WARMUP_RATIO = 0.2
    assert train.learning_rate(0.1) == pytest.approx(0.5)
    train.WARMDOWN_RATIO = 0.0
    assert train.learning_rate(1.0) == pytest.approx(1.0)


def test_batch_always_splits(train: ModuleType) -> None:
    """Any total and micro-batch give whole micro-batches of about that total."""
    for total, micro in itertools.product(range(1, 40), range(1, 50)):
        rows, accumulation = train.split_batch(total, micro)
        assert rows <= micro
        assert total <= rows * accumulation < total + accumulation


def test_accumulation_does_not_change_the_gradient(train: ModuleType) -> None:
    """Four micro-batches of two rows make the same step as one of eight."""
    results = []
    for micro, accumulation in ((8, 1), (2, 4)):
        torch.manual_seed(3)
        model = train.build_model(FakeRun())
        optimizer = train.make_optimizer(model)
        rows = train.Rows(FakeRun().start(), torch.device("cpu"), 5)
        loss = train.train_step(model, optimizer, rows, micro, accumulation)
        results.append((loss, model.fc.detach(), model.head.detach()))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)


def test_rows_come_once_an_epoch(train: ModuleType) -> None:
    """A draw goes over the end of an epoch without losing or repeating a row; the seed decides."""
    shards = [torch.arange(7)[:, None].to(torch.int16).expand(7, 3)]
    rows = train.Rows(shards, torch.device("cpu"), 0)
    seen = torch.cat([rows.draw(5)[0][:, 0] for _ in range(7)])
    for epoch in seen.split(7):
        assert epoch.sort().values.tolist() == list(range(7))
    again = train.Rows(shards * 1, torch.device("cpu"), 0)
    assert torch.equal(again.draw(7)[0][:, 0], seen[:7])
    assert train.Rows(shards, torch.device("cpu"), 0).draw(20)[0].shape == (20, 2)


def test_high_token_ids_survive_int16(train: ModuleType) -> None:
    """The largest id that the format allows, 32767, comes back as itself."""
    shards = [torch.tensor([[1, 32767, 2]]).to(torch.int16)]
    inputs, targets = train.Rows(shards, torch.device("cpu"), 0).draw(1)
    assert inputs.tolist() == [[1, 32767]]
    assert targets.tolist() == [[32767, 2]]


def test_out_of_memory_halves_the_micro_batch(
    train: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    """The total batch stays, the run goes on, and the reader is told."""
    limit = 3
    real = train.train_step

    def train_step(model: Any, optimizer: Any, rows: Any, micro: int, accumulation: int) -> Any:
        if micro > limit:
            raise torch.OutOfMemoryError("no")
        return real(model, optimizer, rows, micro, accumulation)

    train.train_step, train.MICRO_BATCH = train_step, 8
    run = run_main(train, FakeRun(num_steps=2))
    assert run.facts["total_tokens_M"] == pytest.approx(2 * 8 * CONTEXT / 1e6)
    text = capsys.readouterr().out
    assert "out of memory with 8 rows at once: now 4 x 2" in text
    assert "out of memory with 4 rows at once: now 2 x 4" in text
    limit = 0
    with pytest.raises(torch.OutOfMemoryError):
        train.warm_up(FakeRun(), run.model, train.make_optimizer(run.model))


def test_slow_step_cuts_the_batch(
    train: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch of which fewer than MIN_STEPS fit into the budget gets smaller, and says so."""
    clock = itertools.count(step=10)
    monkeypatch.setattr(train.time, "perf_counter", lambda: float(next(clock)))
    run = FakeRun()
    run.budget_s = 20.0  # a step takes 10 s, four must fit: half the batch
    model = train.build_model(run)
    assert math.prod(train.warm_up(run, model, train.make_optimizer(model))) == 4
    assert "cutting the batch to 4 rows" in capsys.readouterr().out


LEADS: dict[str, dict[str, Any]] = {
    "pairs": {"BIGRAM_ROWS": 509},
    "gates": {"HEAD_GATE": True},
    "both": {"BIGRAM_ROWS": 509, "HEAD_GATE": True},
}


def with_leads(train: ModuleType, name: str) -> ModuleType:
    """The constants of one lead set."""
    for constant, value in LEADS[name].items():
        assert hasattr(train, constant)
        setattr(train, constant, value)
    return train


def new_parameters(train: ModuleType, model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """Those that the plain model does not have."""
    plain = {"embedding", "values", "head", "q", "k", "v", "out", "fc", "proj", "gate"}
    plain |= {"lambda_resid", "lambda_x0"}
    return {name: p for name, p in model.named_parameters() if name not in plain}


@pytest.mark.parametrize("name", LEADS)
def test_leads_learn(train: ModuleType, name: str) -> None:
    """Every parameter of a lead gets a gradient and moves; each is in one group; the loss falls."""
    with_leads(train, name)
    model = perturbed(train.build_model(FakeRun()))
    optimizer = train.make_optimizer(model)
    inside = [p for group in optimizer.param_groups for p in group["params"]]
    assert sorted(map(id, inside)) == sorted(map(id, model.parameters()))
    added = new_parameters(train, model)
    before = {name: p.detach().clone() for name, p in added.items()}
    rows = train.Rows(FakeRun().start(), torch.device("cpu"), 5)
    train.train_step(model, optimizer, rows, 4, 2)
    assert added
    assert all((p != before[name]).any() for name, p in added.items())
    run = run_main(train, FakeRun(num_steps=4))
    assert run.reports[-1]["loss"] < 3.9
    trained = new_parameters(train, run.model)
    assert all(p.isfinite().all() for p in trained.values())


@pytest.mark.parametrize("name", LEADS)
def test_leads_are_causal(train: ModuleType, name: str) -> None:
    """As without them: logits before a changed token stay, in training's shape and shorter."""
    model = perturbed(with_leads(train, name).build_model(FakeRun()))
    tokens = random_tokens(2)
    with torch.no_grad():
        before = model(tokens)
        for t in (1, 13, CONTEXT - 1):
            other = tokens.clone()
            other[:, t:] = (other[:, t:] + 1) % VOCAB
            torch.testing.assert_close(model(other)[:, :t], before[:, :t])
        torch.testing.assert_close(model(tokens[:, :7]), before[:, :7])
        torch.testing.assert_close(model(tokens[:1]), before[:1])  # rows know nothing of each other


@pytest.mark.parametrize("name", LEADS)
def test_leads_start_as_nothing(train: ModuleType, name: str) -> None:
    """With all other weights the same, the first logits are those of the plain model."""
    tokens = random_tokens()
    torch.manual_seed(7)
    plain = train.build_model(FakeRun())
    wanted = plain(tokens)
    torch.manual_seed(7)
    model = with_leads(train, name).build_model(FakeRun())
    weights = model.state_dict()
    assert all(torch.equal(p, weights[key]) for key, p in plain.state_dict().items())
    torch.testing.assert_close(model(tokens), wanted)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_leads_fit_shallow_models(train: ModuleType, depth: int) -> None:
    """Fewer blocks than a lead would like are no error."""
    train.DEPTH = depth
    run = run_main(with_leads(train, "both"), FakeRun(num_steps=2))
    assert run.model(random_tokens()).isfinite().all()


def test_bigrams_are_two_tokens(train: ModuleType) -> None:
    """A row depends on both tokens and their order, on no others; the first has its own."""
    size = 2**17
    tokens = torch.randint(0, 32768, (3, 50))
    rows = train.bigram_rows(tokens, size)
    assert (rows[:, 0] == size - 1).all()
    assert rows[:, 1:].max() < size - 1
    assert rows.min() >= 0
    for t in range(1, 50):
        assert torch.equal(train.bigram_rows(tokens[:, t - 1 : t + 1], size)[:, -1], rows[:, t])
    assert (train.bigram_rows(tokens.flip(1), size).flip(1)[:, :-1] != rows[:, 1:]).any()
    assert torch.equal(train.bigram_rows(tokens.int(), size), rows.int())


def test_bigrams_spread(train: ModuleType) -> None:
    """As many rows are used as random ones would be."""
    size = 2**17
    pairs = torch.cartesian_prod(torch.arange(300), torch.arange(300))
    used = train.bigram_rows(pairs, size)[:, -1].unique().numel()
    assert used > 0.95 * size * (1 - math.exp(-len(pairs) / size))


def test_gates_start_open(train: ModuleType) -> None:
    """At first a gate changes nothing: what heads see and what pairs add pass as they are."""
    train.BIGRAM_ROWS, train.HEAD_GATE = 509, True
    model = train.build_model(FakeRun())
    x, pairs = torch.randn(2, 8, model.width), torch.randn(2, 8, model.width)
    entered = train.enter(x, pairs, model.bigram_gate[0])
    torch.testing.assert_close(entered, train.norm(x) + pairs)
    seen = torch.randn(2, 8, model.num_heads, model.head_dim)
    gated = train.gate_heads(seen, x[..., : train.GATE_CHANNELS], model.head_gate[0])
    torch.testing.assert_close(gated, seen)


def test_the_second_matrix_has_a_rate_of_its_own(train: ModuleType) -> None:
    """PROJ_LR scales the step of the MLP's second matrix and no other."""

    def rates() -> dict[str, float]:
        model = train.build_model(FakeRun())
        names = {id(p): name for name, p in model.named_parameters()}
        groups = train.make_optimizer(model).param_groups
        return {names[id(group["params"][0])]: group["lr"] for group in groups}

    plain = rates()
    train.PROJ_LR = 1.5
    assert rates() == {**plain, "proj": pytest.approx(1.5 * plain["proj"])}


def test_tables_have_betas_of_their_own(train: ModuleType) -> None:
    """TABLE_BETA2 reaches every table, and no other parameter."""
    train.TABLE_BETA2, train.BIGRAM_ROWS = 0.995, 509
    model = train.build_model(FakeRun())
    optimizer = train.make_optimizer(model)
    names = {id(p): name for name, p in model.named_parameters()}
    slow = {names[id(g["params"][0])] for g in optimizer.param_groups if g["betas"][1] == 0.995}
    assert slow == {"embedding", "values", "bigrams"}


def test_tables_may_be_float32(train: ModuleType) -> None:
    """Then the optimizer's copies are too, but rows still travel in the precision of the model."""
    train.TABLES_BF16, train.PRECISION, train.BIGRAM_ROWS = False, "bfloat16", 509
    model = train.build_model(FakeRun())
    optimizer, lookup, seen = train.make_optimizer(model), model.operators.lookup, []

    def watched(tokens: torch.Tensor, *tables: torch.Tensor) -> Any:
        seen.extend(table.dtype for table in tables)
        return lookup(tokens, *tables)

    model.operators.lookup = watched
    rows = train.Rows(FakeRun().start(), torch.device("cpu"), 5)
    train.train_step(model, optimizer, rows, 4, 1)
    assert set(seen) == {torch.bfloat16}
    for table in (model.embedding, model.values):
        assert table.dtype == optimizer.state[table]["square"].dtype == torch.float32
    assert model.bigrams.dtype == torch.bfloat16


def test_rare_bigrams_learn_slowly(train: ModuleType) -> None:
    """A row's first step is a share 1 / (1 + BIGRAM_PRIOR) of Adam's; what is not seen stays."""
    train.BIGRAM_PRIOR, train.BIGRAM_ROWS = 3.0, 509
    model = train.build_model(FakeRun()).float()  # exact
    optimizer = train.make_optimizer(model)
    table = model.bigrams
    (group,) = (g for g in optimizer.param_groups if g["params"][0] is table)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    table.grad[:2] = 1.0  # Adam's update of a constant gradient is 1
    optimizer.step()
    table.grad[1] = 0.0
    before = table.detach().clone()
    optimizer.step()
    torch.testing.assert_close(before[:2], torch.full_like(before[:2], -group["lr"] / 4))
    moved = before[0] - table[0]
    torch.testing.assert_close(moved, torch.full_like(moved, group["lr"] * 2 / 5))
    assert not table[2:].any()
    assert optimizer.state[table]["seen"][:3].flatten().tolist() == [2.0, 1.0, 0.0]


def test_momentum_moves_on_in_the_cool_down(train: ModuleType) -> None:
    """Up by steps, flat, then linearly to MOMENTUM_FINAL as rates fall."""
    optimizer = train.make_optimizer(train.build_model(FakeRun()))
    muon = next(group for group in optimizer.param_groups if group["rule"] == "muon")
    train.MOMENTUM_END, train.MOMENTUM_FINAL, train.WARMDOWN_RATIO = 0.97, 0.90, 0.5
    wanted = {(0.1, 5): 0.91, (0.5, 99): 0.97, (0.75, 99): 0.935, (1.0, 99): 0.9}
    for (progress, step), momentum in wanted.items():
        train.schedule(optimizer, progress, step)
        assert muon["betas"][0] == pytest.approx(momentum)


@pytest.mark.parametrize("bad", [math.nan, math.inf, 101.0])
def test_divergence_fails_fast(train: ModuleType, bad: float) -> None:
    """NaN, infinity or a loss over 100 ends the run with an error that says where."""
    train.train_step = lambda *_: torch.tensor(bad)
    train.WARMUP_STEPS = 0
    run = FakeRun(num_steps=50)
    with collector_restored(), pytest.raises(FloatingPointError, match="at step 0: diverged"):
        train.main(run)


def test_state_dict_round_trip(train: ModuleType) -> None:
    """Weights loaded into a fresh model give the same logits; tables of positions are not saved."""
    model = perturbed(train.build_model(FakeRun()))
    fresh = train.build_model(FakeRun(seed=1))
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters()}
    fresh.load_state_dict(model.state_dict())
    tokens = random_tokens()
    with torch.inference_mode():
        assert torch.equal(model.eval()(tokens), fresh.eval()(tokens))


def test_flops_of_the_default_size(train: ModuleType) -> None:
    """The published 239.1 MFLOP a token, and 40.9 for attention when masked keys don't count."""
    for name, value in {"DEPTH": 8, "WIDTH": 0, "HEAD_DIM": 128}.items():
        setattr(train, name, value)
    with torch.device("meta"):
        model = train.GPT(8192, 2048, 0)
    attention = model.flops_per_token() - 6 * sum(
        p.numel() for p in (model.q, model.k, model.v, model.out, model.fc, model.proj, model.head)
    )
    assert model.flops_per_token() / 1e6 == pytest.approx(239.1, abs=0.1)
    assert attention / 1e6 == pytest.approx(62.9, abs=0.1)
    masked = model.flops_per_token() - model.flops_per_token(is_exact=True)
    assert (attention - masked) / 1e6 == pytest.approx(40.9, abs=0.1)


def test_presets_name_constants_that_exist(train: ModuleType) -> None:
    """Every preset sets known constants of the right type and says what it is for."""
    presets = tomllib.loads((TEMPLATES / "presets.toml").read_text())
    wanted = {"demo", "laptop", "h100", "reference", "gpu-24gb", "gpu-12gb", "mps"}
    assert wanted <= set(presets)
    for preset in presets.values():
        assert preset["about"]
        for name, value in preset["constants"].items():
            assert type(value) is type(getattr(train, name)), name


def test_a_model_is_made_as_it_is_written(train: ModuleType) -> None:
    """Tied tables are one parameter, and a buffer has its values."""

    class Edited(train.GPT):  # type: ignore[name-defined,misc]
        def __init__(self, *given: int) -> None:
            super().__init__(*given)
            self.head = self.embedding
            self.register_buffer("kept", torch.arange(3.0))

    train.GPT = Edited
    run = SimpleNamespace(device=torch.device("cpu"), vocab_size=64, context=16, bos=0)
    model = train.build_model(run)
    assert model.head is model.embedding
    assert model.kept.tolist() == [0, 1, 2]


def test_what_no_group_trains_is_an_error_unless_it_is_frozen(train: ModuleType) -> None:
    """Frozen parameters of a group stay as they are."""
    run = SimpleNamespace(device=torch.device("cpu"), vocab_size=64, context=16, bos=0)
    model = train.build_model(run)
    model.extra = torch.nn.Parameter(torch.ones(3))
    with pytest.raises(ValueError, match="no group trains extra: add a row"):
        train.make_optimizer(model)
    model.extra.requires_grad_(False)
    model.q.requires_grad_(False)
    optimizer = train.make_optimizer(model)
    before = model.q.clone(), model.out.clone()
    tokens = torch.randint(0, 64, (2, 17))
    for _ in range(2):
        model(tokens[:, :-1], tokens[:, 1:]).backward()
        optimizer.step()
    assert torch.equal(model.q, before[0])
    assert not torch.equal(model.out, before[1])
