"""A small GPT, trained for a fixed number of seconds. This is the file that research edits.

It reads from top to bottom: constants, operators, model, optimizer, data, schedule, main. Two names
are the interface: `build_model(run)` gives a module whose call turns tokens (B, T) into logits
(B, T, V), and `main(run)` trains it and hands it over with `run.submit(model)`, which does not
return. The score is bits per byte of text that this file never sees. The clock is not ours either:
everything below is a function of `run.progress`, from 0 to 1.

Letters in shapes: B rows, T tokens a row, C channels (width), H heads, G key/value heads, D
channels a head, V vocabulary, L layers. Matrices of one kind are one parameter (L, rows, columns),
so that the optimizer handles them as one batch, without stacking and copying.
"""

import gc
import math
import time
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

# --------------------------------------------------------------------------------------------------
# Constants: value, meaning, unit, range to search ({...}: choices; no range: not searched)

# Model
DEPTH = 8  # transformer blocks
WIDTH = 0  # channels of the residual stream, rounded up to whole heads; 0: 64 x DEPTH
HEAD_DIM = 128  # channels an attention head
KV_HEADS = 0  # key/value heads, taken down to a divisor of the query heads; 0: as many as those
MLP_RATIO = 4  # hidden channels of the MLP, times width [2, 6]
WINDOW_PATTERN = "SSSL"  # short and long layers in turn, last long {"SSSL", "SSSSL", "SL", "L"}
SHORT_WINDOW = 0.5  # how far back an S layer sees, share of the context [0.0625, 1.0] log
LONG_WINDOW = 1.0  # how far back an L layer sees, share of the context
DOCUMENT_MASK = False  # layers that see all of the context see their own document alone
ROTARY_BASE = 10000.0  # longest rotary wavelength over 2 pi, tokens [1000.0, 1000000.0] log
KEY_OFFSET = False  # the slower half of each key is that of the token before {True, False}
QK_GAIN = 1.0  # factor on normed queries and keys: sharpness of attention [0.8, 1.6]
VALUE_EVERY = 2  # layers from one value embedding to the next, counted from the last layer [1, 4]
HEAD_GATE = False  # each head's output times twice the sigmoid of a gate {True, False}
GATE_CHANNELS = 32  # channels of the block input that gates look at
LAMBDA_RESID = 1.0  # start of the residual scalars, factor, not 0
LAMBDA_X0 = 0.1  # start of the scalars that mix the embedding back in, factor [0.01, 0.5] log
SOFTCAP = 15.0  # logits stay within +-this, nats [8.0, 40.0] log
INIT_SCALE = 1.0  # factor on the first spread of block matrices and value tables [0.3, 1.5] log
BIGRAM_ROWS = 0  # rows of the table of token pairs, 0: none; worth trying 2**17 to 2**19
TABLES_BF16 = True  # tables and moments in bfloat16, else float32 but for pairs {True, False}

# Optimizer (rates of tables and head are for width 768 and scale with width^-0.5)
EMBEDDING_LR = 0.6  # Adam step size of the token embedding [0.03, 1.5] log
VALUE_LR = 0.6  # Adam step size of the value embeddings [0.03, 1.5] log
BIGRAM_LR = 0.1  # Adam step size of pairs, which start at 0; worth trying 0.03 to 0.6
HEAD_LR = 0.004  # Adam step size of the head [0.001, 0.05] log
SCALAR_LR = 0.5  # Adam step size of lambda_x0; other scalars take a hundredth [0.05, 1.0] log
MATRIX_LR = 0.04  # Muon step size, times sqrt(rows / columns) of tall matrices [0.005, 0.2] log
PROJ_LR = 1.0  # factor on that for the MLP's second matrix [0.5, 2.0] log
ADAM_BETA1 = 0.8  # Adam momentum, decay a step [0.6, 0.95]
ADAM_BETA2 = 0.95  # Adam second moment, decay a step [0.9, 0.995]
TABLE_BETA2 = 0.95  # the same for embedding tables: rare tokens want long memory [0.9, 0.999]
ADAM_EPS = 1e-10  # Adam floor of the denominator, gradient units
MOMENTUM_START = 0.85  # Muon momentum of the first step, decay a step
MOMENTUM_END = 0.95  # Muon momentum after the ramp, decay a step [0.85, 0.98]
MOMENTUM_RAMP = 300  # length of the ramp, steps [20, 600] log
MOMENTUM_FINAL = 0.95  # Muon momentum at the end of the cool-down, decay a step [0.8, 0.98]
NORMUON_BETA2 = 0.95  # NorMuon second moment, decay a step
POLAR_STEPS = 5  # Polar Express iterations {3, 4, 5}
MATRIX_DECAY = 0.2  # cautious weight decay of matrices at the start, falls to 0 [0.0, 0.5]
EMBEDDING_DECAY = 0.0  # weight decay of the token embedding, times its step size [0.0, 0.01]
VALUE_DECAY = 0.0  # weight decay of the value embeddings, times their step size [0.0, 0.01]
BIGRAM_PRIOR = 20.0  # sightings after which a pair has half its step size; worth trying up to 500
BIGRAM_DECAY = 0.0  # weight decay of pairs, times their step size; for text read twice up to 0.03
HEAD_DECAY = 0.0  # weight decay of the head, times its step size [0.0, 0.05]

# Schedule and batch
WARMUP_RATIO = 0.0  # rising learning rate, share of the budget [0.0, 0.1]
WARMDOWN_RATIO = 0.5  # falling learning rate, share of the budget [0.2, 0.9]
FINAL_LR_FRAC = 0.0  # learning rate at the end, share of the peak [0.0, 0.1]
TOTAL_BATCH = 256  # rows an optimizer step; x context 2048 = 2^19 tokens [8, 256] log
MICRO_BATCH = 128  # rows at once; smaller if memory demands it, with the same total

# Machine
PRECISION = "auto"  # activations: "float32", "bfloat16"; auto: bfloat16 if the chip is fast at it
FLOAT8 = False  # train with products of what is normed in float8 on Hopper, on the way forward
ATTENTION = "auto"  # rung: "fa4" > "fa3" > "cudnn" > "flex" > "sdpa"; auto: the best there is
KERNELS = True  # the fast operators of autoresearch.inside.ops on CUDA; False: plain torch
COMPILE = True  # torch.compile on CUDA; elsewhere it costs more than it gives
WARMUP_STEPS = 3  # steps on random tokens before the clock starts, undone afterwards
MIN_STEPS = 4  # steps that the budget must hold; a larger total batch is cut so that they fit
PEAK_FLOPS = 989.5e12  # what MFU is a share of, FLOP/s: H100 SXM, dense bfloat16
COLLECT_EVERY = 5000  # steps between garbage collections (one can cost half a second)

POLAR_COEFFICIENTS = (  # Polar Express, arXiv 2505.16932: (a, b, c) of each iteration
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)


# --------------------------------------------------------------------------------------------------
# Operators: plain torch. On CUDA autoresearch.inside.ops computes the same, but for what is edited


def norm(x):
    """RMSNorm without a gain."""
    return F.rms_norm(x, (x.size(-1),), eps=1e-6)


def rotate_norm(x, cos, sin):
    """Rotary embedding (half-split), then norm: x (B, T, heads, D); cos, sin (T, 1, D / 2)."""
    left, right = x.chunk(2, dim=-1)
    return norm(torch.cat([left * cos + right * sin, right * cos - left * sin], dim=-1))


def one_back(k):
    """k (B, T, G, D) with the slower half of the rotary channels from the token before, or 0.

    Then one layer can find what came after an earlier copy of a token, which otherwise takes two.
    """
    k = k.unflatten(-1, (2, 2, -1))  # sides that turn together, fast and slow, D / 4
    slow = F.pad(k[..., 1, :], (0, 0, 0, 0, 0, 0, 1, -1))
    return torch.stack([k[..., 0, :], slow], dim=-2).flatten(-3)


def split_heads(qkv, cos, sin, num_heads, opening, value, offset):
    """What attention takes: qkv (B, T, (H + 2 G) D) -> q (B, T, H, D), k and v (B, T, G, D).

    A layer with a value embedding adds value (B, T, G D) to v, times twice the sigmoid of opening
    (B, T, G), else both are None. With an offset half of a key is that of the token before.
    """
    qkv = qkv.unflatten(-1, (-1, 2 * cos.size(-1)))
    G = (qkv.size(2) - num_heads) // 2
    q, k, v = qkv.split([num_heads, G, G], dim=2)
    if value is not None:
        v = v + (2 * torch.sigmoid(opening))[..., None] * value.view(v.shape)
    k = one_back(k) if offset else k
    q, k = rotate_norm(q, cos, sin), rotate_norm(k, cos, sin)
    return q * QK_GAIN, k * QK_GAIN, v


def count_documents(tokens, bos):
    """Which document of its row a token is in: (B, T) -> (B, T), 0 to 7; the later ones are one."""
    return F.pad((tokens[:, 1:] == bos).cumsum(1), (1, 0)).clamp(max=7)


def sdpa(q, k, v, window, documents=None):
    """Causal attention, `window` tokens back: q (B, T, H, D), k, v (B, T, G, D) -> (B, T, H, D).

    Window -1 is all that came before; of the own document, if documents (B, T) are not None.
    """
    T, H, G = q.size(1), q.size(2), k.size(2)
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    if G < H:
        k, v = k.repeat_interleave(H // G, dim=1), v.repeat_interleave(H // G, dim=1)
    if window >= T - 1 or (window < 0 and documents is None):
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    else:
        back = torch.arange(T, device=q.device)[:, None] - torch.arange(T, device=q.device)
        mask = (back >= 0) & (back <= window)
        if window < 0:
            mask = (back >= 0) & (documents[:, None, :, None] == documents[:, None, None])
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return y.transpose(1, 2)


def gate_heads(seen, first, weights):
    """Each head's output times twice the sigmoid of a gate: (B, T, H, D), (B, T, n), (H, n)."""
    return seen * (2 * torch.sigmoid(F.linear(first, weights)))[..., None]


def add_norm(x, y=None, mixed=None, resid=None, front=0):
    """x + y, or resid (x + y + mixed); that normed; the first channels of this."""
    x = x if y is None else x + y
    x = x if mixed is None else resid * (x + mixed)
    h = norm(x)
    return x, h, h[..., :front]


def share(x, factors):
    """x, and x times each of factors (L,), for add_norm alone to read: on CUDA it is never made."""
    return x, [factor * x for factor in factors.unbind()]


def relu2_mlp(x, fc, proj):
    """C -> 4C -> C with ReLU squared: x (B, T, C), fc (4C, C), proj (C, 4C)."""
    return F.linear(F.relu(F.linear(x, fc)).square(), proj)


def lookup(tokens, embedding, values):
    """Rows of all tables: tokens (B, T), (V, C), (n, V, G D) -> (B, T, C) and n x (B, T, G D)."""
    return F.embedding(tokens, embedding), [F.embedding(tokens, table) for table in values]


def bigram_rows(tokens, num_rows):
    """Rows of the table of pairs, by a hash of each token and the one before: (B, T) -> (B, T).

    The first token, which has none before, has the last row.
    """
    mixed = (36313 * tokens[:, 1:]) ^ (27191 * tokens[:, :-1])
    return F.pad(mixed % (num_rows - 1), (1, 0), value=num_rows - 1)


def softcap(logits):
    """Smooth clipping to +-SOFTCAP, in float32."""
    return SOFTCAP * torch.tanh(logits.float() / SOFTCAP)


class HeadLoss(torch.autograd.Function):
    """Head, softcap and cross-entropy in one: x (N, C), head (V, C), targets (N,) -> mean nats.

    The gradient is made on the way forward, chunk by chunk: the logits never exist as a whole, and
    a chunk of them stays in the cache.
    """

    @staticmethod
    def forward(ctx, x, head, targets):
        size = 512 if x.device.type == "cpu" else 2**15
        weight = head.to(x.dtype)
        dx, dhead = torch.empty_like(x), torch.zeros_like(head)
        total = torch.zeros((), device=x.device)
        for i in range(0, len(x), size):
            rows, wanted = x[i : i + size], targets[i : i + size, None]
            tanh = F.linear(rows, weight).float().div_(SOFTCAP).tanh_()
            logp = torch.log_softmax(tanh * SOFTCAP, dim=-1)
            total -= logp.gather(1, wanted).sum()
            grad = logp.exp_()
            grad.scatter_add_(1, wanted, torch.full_like(wanted, -1, dtype=grad.dtype))
            grad.mul_(tanh.square_().neg_().add_(1)).div_(len(x))  # the slope of tanh: 1 - tanh^2
            grad = grad.to(x.dtype)
            dx[i : i + size] = grad @ weight
            dhead += grad.mT @ rows
        ctx.save_for_backward(dx, dhead)
        return total / len(x)

    @staticmethod
    def backward(ctx, scale):
        dx, dhead = ctx.saved_tensors
        return dx * scale, dhead * scale, None


def head_loss(x, head, targets):
    """Mean cross-entropy of softcapped logits: x (B, T, C), head (V, C), targets (B, T) -> nats."""
    return HeadLoss.apply(x.flatten(0, 1), head, targets.flatten())


def polar(matrices, dtype):
    """Nearly the orthogonal polar factor of each matrix (N, rows, columns), by Polar Express.

    It is the steepest descent step under a spectral-norm constraint: all singular values become
    about 1, so that small directions of the gradient count as much as large ones.
    """
    X = matrices.to(dtype)
    X = X / (X.norm(dim=(-2, -1), keepdim=True) * 1.02 + 1e-6)
    is_tall = X.size(-2) > X.size(-1)
    for a, b, c in POLAR_COEFFICIENTS[:POLAR_STEPS]:
        A = X.mT @ X if is_tall else X @ X.mT  # the smaller of the two
        S = torch.baddbmm(A, A, A, beta=b, alpha=c)
        X = torch.baddbmm(X, X, S, beta=a) if is_tall else torch.baddbmm(X, S, X, beta=a)
    return X


class Operators:
    """The operators in use: those above, replaced by what the machine has better."""

    def __init__(self, device, model):
        self.split_heads, self.attend, self.mlp = split_heads, sdpa, relu2_mlp
        self.lookup, self.head_loss, self.softcap = lookup, head_loss, softcap
        self.add_norm, self.linear, self.linear_normed = add_norm, F.linear, F.linear
        self.window, self.find_documents, self.share = int, count_documents, share
        self.names = {"attend": "sdpa"}
        if device.type == "cuda" and KERNELS:
            try:  # the only use of the package here: without it all works, slower
                from autoresearch.inside import ops
            except ImportError as error:
                self.names["note"] = f"no fast operators: {error}"
                return
            shape = {"context": model.context, "vocab_size": len(model.head), "width": model.width}
            shape |= {"num_heads": model.num_heads, "kv_heads": model.k.size(1) // HEAD_DIM}
            shape |= {"head_dim": HEAD_DIM, "windows": model.windows, "has_offset": KEY_OFFSET}
            shape |= {"value_layers": model.value_layers, "has_head_gate": HEAD_GATE}
            shape |= {"front": GATE_CHANNELS, "has_documents": DOCUMENT_MASK, "has_float8": FLOAT8}
            factors = {"softcap": SOFTCAP, "gain": QK_GAIN}
            ops.install(self, device, ops.Shape(**shape), attention=ATTENTION, **factors)

    def attend_heads(self, qkv, cos, sin, num_heads, opening, value, window, offset, documents):
        """See split_heads. A faster one may have `window` as a tensor, for this alone to read."""
        heads = self.split_heads(qkv, cos, sin, num_heads, opening, value, offset)
        return self.attend(*heads, window, documents)

    def __str__(self):
        return ", ".join(f"{part} {name}" for part, name in self.names.items())


# --------------------------------------------------------------------------------------------------
# Model


def pick_precision(device):
    """bfloat16 where the chip multiplies it faster than float32."""
    if PRECISION != "auto":
        return getattr(torch, PRECISION)
    has_fast_bf16 = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    return torch.bfloat16 if has_fast_bf16 else torch.float32


def block(x, y, mixed, resid, cos, sin, weights, value, window, documents, ops):
    """One layer: x, y (B, T, C); mixed of share, resid a scalar; value (B, T, G D) or None.

    The stream comes and goes as x + y: what the MLP adds is added with the next norm, in one pass.
    """
    qkv, out, fc, proj, gate, head_gate = weights
    num_heads = x.size(-1) // (2 * cos.size(-1))
    front = 0 if gate is None and head_gate is None else GATE_CHANNELS
    x, h, first = ops.add_norm(x, y, mixed, resid, front)
    # gates start at exactly 1: their weights are zero
    opening = None if gate is None else F.linear(first, gate)
    heads = ops.linear_normed(h, qkv)
    where = (window, KEY_OFFSET, documents)
    seen = ops.attend_heads(heads, cos, sin, num_heads, opening, value, *where)
    if head_gate is not None:
        seen = gate_heads(seen, first, head_gate)
    x, h, _ = ops.add_norm(x, ops.linear(seen.flatten(2), out))
    return x, ops.mlp(h, fc, proj)


def enter(embedded, bigrams, gate):
    """What enters the first block: embedded (B, T, C), normed, and what pairs add, or None.

    Pairs (B, T, C) are added times twice the sigmoid of a gate a token, weights (1, n).
    """
    x = norm(embedded)
    if bigrams is None:
        return x
    return x + bigrams * (2 * torch.sigmoid(F.linear(x[..., :GATE_CHANNELS], gate)))


class GPT(nn.Module):
    """Decoder-only: pre-norm, no biases, rotary positions, value embeddings, untied head."""

    def __init__(self, vocab_size, context, bos):
        super().__init__()
        L, D, V = DEPTH, HEAD_DIM, vocab_size
        C = math.ceil((WIDTH or 64 * DEPTH) / D) * D
        H = C // D
        G = math.gcd(H, KV_HEADS) if KV_HEADS else H
        self.context, self.num_heads, self.head_dim, self.width = context, H, D, C
        self.bos = bos  # the token that begins a document
        reach = {"S": round(SHORT_WINDOW * context), "L": round(LONG_WINDOW * context)}
        self.windows = [reach[WINDOW_PATTERN[i % len(WINDOW_PATTERN)]] for i in range(L)]
        self.windows[-1] = reach["L"]
        self.value_layers = [i for i in range(L) if (L - 1 - i) % VALUE_EVERY == 0]

        tables = torch.bfloat16 if TABLES_BF16 else torch.float32
        self.embedding = nn.Parameter(torch.empty(V, C, dtype=tables))
        self.values = nn.Parameter(torch.empty(len(self.value_layers), V, G * D, dtype=tables))
        self.head = nn.Parameter(torch.empty(V, C))
        self.q = nn.Parameter(torch.empty(L, C, C))
        self.k = nn.Parameter(torch.empty(L, G * D, C))
        self.v = nn.Parameter(torch.empty(L, G * D, C))
        self.out = nn.Parameter(torch.zeros(L, C, C))
        self.fc = nn.Parameter(torch.empty(L, MLP_RATIO * C, C))
        self.proj = nn.Parameter(torch.zeros(L, C, MLP_RATIO * C))
        self.gate = nn.Parameter(torch.zeros(L, G, GATE_CHANNELS))  # used where value_layers says
        self.head_gate = nn.Parameter(torch.zeros(L, H, GATE_CHANNELS)) if HEAD_GATE else None
        self.lambda_resid = nn.Parameter(torch.empty(L))
        self.lambda_x0 = nn.Parameter(torch.empty(L))
        self.bigrams = self.bigram_gate = None
        if BIGRAM_ROWS:
            self.bigrams = nn.Parameter(torch.zeros(BIGRAM_ROWS, C, dtype=torch.bfloat16))
            self.bigram_gate = nn.Parameter(torch.zeros(1, 1, GATE_CHANNELS))
        for name in ("cos", "sin"):
            table = torch.empty(context, 1, D // 2, dtype=torch.bfloat16)
            self.register_buffer(name, table, persistent=False)
        self.enter, self.block = enter, block  # main() compiles them

    @torch.no_grad()
    def initialize(self, operators, precision):
        """Fill what __init__ left empty; the rest starts at zero."""
        self.operators, self.precision = operators, precision
        bound = INIT_SCALE * math.sqrt(3 / self.width)
        nn.init.normal_(self.embedding, std=1.0)
        nn.init.normal_(self.head, std=0.001)
        for matrices in (self.q, self.k, self.v, self.fc, self.values):
            nn.init.uniform_(matrices, -bound, bound)
        self.lambda_resid.fill_(LAMBDA_RESID)
        self.lambda_x0.fill_(LAMBDA_X0)
        device = self.cos.device
        steps = torch.arange(0, self.head_dim, 2, device=device, dtype=torch.float32)
        positions = torch.arange(self.context, device=device, dtype=torch.float32)
        angles = positions[:, None, None] * ROTARY_BASE ** (-steps / self.head_dim)
        self.cos.copy_(angles.cos())
        self.sin.copy_(angles.sin())

    def forward(self, tokens, targets=None):
        """Logits (B, T, V) in float32, or the mean loss in nats if there are targets."""
        T, L, dtype, ops = tokens.size(1), len(self.windows), self.precision, self.operators
        cos, sin = self.cos[:T].to(dtype), self.sin[:T].to(dtype)
        qkv = torch.cat([bank.to(dtype) for bank in (self.q, self.k, self.v)], dim=1)
        banks = (qkv, self.out.to(dtype), self.fc.to(dtype), self.proj.to(dtype))
        matrices = list(zip(*(bank.unbind() for bank in banks), strict=True))
        resid = self.lambda_resid.unbind()
        gates = self.gate.to(dtype).unbind()
        kept = torch.bfloat16 if TABLES_BF16 else dtype
        embedded, looked_up = ops.lookup(tokens, self.embedding.to(kept), self.values.to(kept))
        values = {i: (looked_up[n].to(dtype), gates[i]) for n, i in enumerate(self.value_layers)}

        bigrams, gate = None, None
        if BIGRAM_ROWS:
            rows, empty = bigram_rows(tokens, BIGRAM_ROWS), self.bigrams.new_empty(0, 1, 1)
            bigrams = ops.lookup(rows, self.bigrams, empty)[0].to(dtype)
            gate = self.bigram_gate[0].to(dtype)
        documents = ops.find_documents(tokens, self.bos) if DOCUMENT_MASK else None
        x0 = self.enter(embedded.to(dtype), bigrams, gate)
        x, mixed = ops.share(x0, self.lambda_x0 / self.lambda_resid)  # resid is a factor of all
        y = None
        for i in range(L):
            value, gate = values.get(i, (None, None))
            head_gate = self.head_gate[i].to(dtype) if HEAD_GATE else None
            weights = (*matrices[i], gate, head_gate)
            window = self.windows[i] if self.windows[i] < self.context - 1 else -1
            rest = (weights, value, ops.window(window), documents, ops)
            x, y = self.block(x, y, mixed[i], resid[i], cos, sin, *rest)
        x = ops.add_norm(x, y)[1]
        if targets is not None:
            return ops.head_loss(x, self.head, targets)
        return ops.softcap(ops.linear_normed(x, self.head.to(dtype)))

    def flops_per_token(self, is_exact=False):
        """Forward and backward FLOPs; the exact count leaves out keys that windows mask."""
        T = self.context
        matrices = (self.q, self.k, self.v, self.out, self.fc, self.proj, self.head)
        size, keys = sum(p.numel() for p in matrices), 0.0
        for window in self.windows:
            window = min(window, T)
            keys += sum(min(t, window) + 1 for t in range(T)) / T if is_exact else window
        return 6 * size + 12 * self.width * keys


def build_model(run):
    """The model on run.device, with fresh weights."""
    torch.set_float32_matmul_precision("high")
    with run.device:
        model = GPT(run.vocab_size, run.context, run.bos)
    model.initialize(Operators(run.device, model), pick_precision(run.device))
    return model


# --------------------------------------------------------------------------------------------------
# Optimizer


def adamw_rule(p, grad, mean, square, seen, rate, decay, beta1, beta2, correction1, correction2):
    """AdamW on one parameter. Scalars are 0-d tensors: one compiled kernel serves every step.

    Adam gives a row that is seen once the step of one that is seen always, and so learns rare
    pairs by heart; `seen` (rows, 1), if not None, counts how often each had a gradient.
    """
    g = grad.float()
    if seen is not None:
        seen.add_(g.abs().amax(dim=-1, keepdim=True) > 0)
        rate = rate * seen / (seen + BIGRAM_PRIOR)
    m = mean + (g - mean) * (1 - beta1)
    s = square + (g * g - square) * (1 - beta2)
    mean.copy_(m)
    square.copy_(s)
    update = (m / correction1) / ((s / correction2).sqrt() + ADAM_EPS)
    p.copy_(p * (1 - rate * decay) - rate * update)


def muon_rule(p, grad, momentum, square, rate, decay, beta, beta2, dtype):
    """Nesterov momentum, polar factor, NorMuon, cautious decay: p (N, rows, columns)."""
    momentum.copy_(momentum + (grad - momentum) * (1 - beta))
    update = polar(grad + (momentum - grad) * beta, dtype).float()
    # NorMuon, arXiv 2510.05491: even out rows (columns, if wide), keep the norm of each matrix
    dim = -1 if p.size(-2) >= p.size(-1) else -2
    mean_square = update.square().mean(dim=dim, keepdim=True)
    square.copy_(square + (mean_square - square) * (1 - beta2))
    scale = square.clamp_min(1e-10).rsqrt()
    before = mean_square.sum(dim=(-2, -1), keepdim=True)
    after = (mean_square * scale.square()).sum(dim=(-2, -1), keepdim=True)
    update = update * scale * (before / after.clamp_min(1e-10)).sqrt()
    # cautious: decay only where it pulls the way the update does
    p.copy_(p - rate * update - rate * decay * p * (update * p >= 0))


class MuonAdamW(torch.optim.Optimizer):
    """One optimizer, an update rule per parameter group. All state is there from the start."""

    def __init__(self, groups, dtype):
        super().__init__(groups, defaults={"decay": 0.0, "step": 0, "is_counted": False})
        self.adamw_rule, self.muon_rule = adamw_rule, muon_rule
        self.dtype = dtype  # of the polar step
        for group in self.param_groups:
            group["peak_lr"], group["peak_decay"] = group["lr"], group["decay"]
            for p in group["params"]:
                if group["rule"] == "adamw":
                    self.state[p] = {"mean": torch.zeros_like(p), "square": torch.zeros_like(p)}
                    if group["is_counted"]:
                        self.state[p]["seen"] = torch.zeros(len(p), 1, device=p.device)
                    continue
                N, rows, columns = p.shape
                vector = (N, rows, 1) if rows >= columns else (N, 1, columns)
                square = torch.zeros(vector, device=p.device)
                self.state[p] = {"momentum": torch.zeros_like(p), "square": square}

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            group["step"] += 1
            beta1, beta2 = group["betas"]
            scalars = [group["lr"], group["decay"], beta1, beta2]
            if group["rule"] == "adamw":
                scalars += [1 - beta1 ** group["step"], 1 - beta2 ** group["step"]]
            # on the host: kernels take them as arguments, nothing is copied and nothing waits
            scalars = [torch.tensor(scalar, dtype=torch.float32) for scalar in scalars]
            for p in (p for p in group["params"] if p.grad is not None):
                state = self.state[p]
                if group["rule"] == "adamw":
                    moments = (state["mean"], state["square"], state.get("seen"))
                    self.adamw_rule(p, p.grad, *moments, *scalars)
                    continue
                self.muon_rule(p, p.grad, state["momentum"], state["square"], *scalars, self.dtype)


def make_optimizer(model):
    """The table of rules: who learns how fast, and why so differently.

    The embedding sees every token and must move fast; the head is a linear probe: it wants calm.
    """
    s = (model.width / 768) ** -0.5
    betas, table_betas = (ADAM_BETA1, ADAM_BETA2), (ADAM_BETA1, TABLE_BETA2)

    def adamw(p, lr, decay=0.0, betas=betas):
        return {"params": [p], "rule": "adamw", "lr": lr, "decay": decay, "betas": betas}

    groups = [
        adamw(model.head, HEAD_LR * s, HEAD_DECAY),
        adamw(model.embedding, EMBEDDING_LR * s, EMBEDDING_DECAY, table_betas),
        adamw(model.values, VALUE_LR * s, VALUE_DECAY, table_betas),
        adamw(model.lambda_resid, SCALAR_LR * 0.01),
        adamw(model.lambda_x0, SCALAR_LR, betas=(0.96, 0.95)),
    ]
    if BIGRAM_ROWS:
        group = adamw(model.bigrams, BIGRAM_LR * s, BIGRAM_DECAY, table_betas)
        groups.append({**group, "is_counted": True})
    gates = [p for p in (model.gate, model.head_gate, model.bigram_gate) if p is not None]
    for p in (model.q, model.k, model.v, model.out, model.fc, model.proj, *gates):
        lr = MATRIX_LR * max(1.0, p.size(-2) / p.size(-1)) ** 0.5
        lr *= PROJ_LR if p is model.proj else 1.0
        group = {"params": [p], "rule": "muon", "lr": lr, "decay": MATRIX_DECAY}
        groups.append({**group, "betas": (MOMENTUM_START, NORMUON_BETA2)})
    known = {p for group in groups for p in group["params"]}
    if left := [n for n, p in model.named_parameters() if p.requires_grad and p not in known]:
        raise ValueError(f"no group trains {', '.join(left)}: add a row, or requires_grad_(False)")
    return MuonAdamW(groups, model.precision)


# --------------------------------------------------------------------------------------------------
# Data


class Rows:
    """All training rows on the device, drawn in random order, each once before any comes again.

    A row has context + 1 tokens: inputs are all but the last, targets all but the first.
    """

    def __init__(self, shards, device, seed):
        num_rows = sum(len(shard) for shard in shards)
        if device.type == "cpu" and len(shards) == 1:
            self.rows = shards[0]  # mapped memory is as good as any
        else:
            self.rows = torch.empty(num_rows, shards[0].size(1), dtype=torch.int16, device=device)
            parts = self.rows.split([len(shard) for shard in shards])
            for part, shard in zip(parts, shards, strict=True):
                part.copy_(shard)
        self.generator = torch.Generator(device).manual_seed(seed)
        self.order = torch.empty(0, dtype=torch.int64, device=device)

    def draw(self, num_rows):
        """Inputs and targets, (num_rows, context) each; nothing here waits for the device."""
        while len(self.order) < num_rows:
            num, device = len(self.rows), self.rows.device
            again = torch.randperm(num, generator=self.generator, device=device)
            self.order = torch.cat([self.order, again])
        picked, self.order = self.order[:num_rows], self.order[num_rows:]
        tokens = self.rows[picked].long()  # int16 holds any id: the vocabulary is 32768 at most
        return tokens[:, :-1], tokens[:, 1:]


# --------------------------------------------------------------------------------------------------
# Schedule


def learning_rate(progress):
    """Multiplier of every learning rate: up, flat, down to FINAL_LR_FRAC."""
    if progress < WARMUP_RATIO:
        return progress / WARMUP_RATIO
    left = (1.0 - progress) / WARMDOWN_RATIO if WARMDOWN_RATIO else 1.0
    return min(1.0, FINAL_LR_FRAC + (1.0 - FINAL_LR_FRAC) * max(0.0, left))


def schedule(optimizer, progress, step):
    """Set what changes by clock and by steps. Returns the learning rate's multiplier."""
    multiplier = learning_rate(progress)
    ramp = min(1.0, step / max(1, MOMENTUM_RAMP))
    cooled = max(0.0, 1.0 - (1.0 - progress) / WARMDOWN_RATIO) if WARMDOWN_RATIO else 0.0
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * multiplier
        if group["rule"] == "muon":
            group["decay"] = group["peak_decay"] * (1.0 - progress)
            momentum = MOMENTUM_START + (MOMENTUM_END - MOMENTUM_START) * ramp
            momentum += (MOMENTUM_FINAL - MOMENTUM_END) * cooled
            group["betas"] = (momentum, group["betas"][1])
    return multiplier


def split_batch(total_rows, micro_rows):
    """(micro-batch rows, micro-batches a step); their product is the total, or just above it."""
    accumulation = math.ceil(total_rows / micro_rows)
    return math.ceil(total_rows / accumulation), accumulation


# --------------------------------------------------------------------------------------------------
# Main


def train_step(model, optimizer, rows, micro_rows, accumulation):
    """One optimizer step; returns the mean loss as a 0-d tensor on the device."""
    total = 0.0
    for _ in range(accumulation):
        loss = model(*rows.draw(micro_rows))
        (loss / accumulation).backward()
        total = total + loss.detach()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return total / accumulation


def compile_parts(model, optimizer):
    """Compile one block (not all: they are alike), the entry, the loss, the two rules."""
    torch._dynamo.config.recompile_limit = 64  # one for each window, micro-batch, matrix shape
    whole = partial(torch.compile, dynamic=False, fullgraph=True)
    model.enter, model.block = whole(enter), whole(block)
    if model.operators.head_loss is head_loss:
        model.operators.head_loss = torch.compile(head_loss, dynamic=False)
    optimizer.adamw_rule, optimizer.muon_rule = whole(adamw_rule), whole(muon_rule)


def warm_up(run, model, optimizer):
    """Steps on random rows, off the clock: compile, find what fits; returns rows x batches."""
    total_rows, micro_rows, accumulation = TOTAL_BATCH, *split_batch(TOTAL_BATCH, MICRO_BATCH)
    steps, fastest_s = 0, math.inf
    while steps < WARMUP_STEPS:
        rows = Rows([run.synthetic_rows(micro_rows)], run.device, run.seed)
        started = time.perf_counter()
        try:
            train_step(model, optimizer, rows, micro_rows, accumulation).item()
            steps, fastest_s = steps + 1, min(fastest_s, time.perf_counter() - started)
            continue
        except torch.OutOfMemoryError:
            if micro_rows == 1:
                raise
        # out here the traceback, and with it the failed step's activations, is gone
        optimizer.zero_grad(set_to_none=True)
        gc.collect()
        if run.device.type == "cuda":
            torch.cuda.empty_cache()
        smaller, accumulation = split_batch(total_rows, micro_rows // 2)
        print(f"out of memory with {micro_rows} rows at once: now {smaller} x {accumulation}")
        micro_rows = smaller
    if steps and fastest_s * MIN_STEPS > run.budget_s:
        total_rows = max(1, int(total_rows * run.budget_s / (fastest_s * MIN_STEPS)))
        print(f"a step takes {fastest_s:.2f} s: cutting the batch to {total_rows} rows")
        micro_rows, accumulation = split_batch(total_rows, micro_rows)
    return micro_rows, accumulation


class LateLoss:
    """Losses read without waiting: on CUDA that of three steps ago, which is certainly finished.

    `run.proceed` keeps the queue to two steps, so this costs no wait.
    """

    def __init__(self, device):
        self.lag = 3 if device.type == "cuda" else 1
        self.ring = torch.zeros(4, pin_memory=device.type == "cuda")

    def put(self, step, loss):
        self.ring[step % 4].copy_(loss, non_blocking=True)

    def get(self, step):
        """Before step `step`: the newest loss that is certainly here, or None."""
        return self.ring[(step - self.lag) % 4].item() if step >= self.lag else None


def main(run):
    """Train until the time is up, then hand over the weights."""
    torch.manual_seed(run.seed)
    model = build_model(run)
    optimizer = make_optimizer(model)
    if COMPILE and run.device.type == "cuda":
        compile_parts(model, optimizer)
    num_params = sum(p.numel() for p in model.parameters())
    print(f"{num_params / 1e6:.2f}M parameters, depth {DEPTH}, width {model.width}")
    print(f"{model.precision}; {model.operators}; windows {model.windows}", flush=True)
    with run.warmup(model, optimizer):
        micro_rows, accumulation = warm_up(run, model, optimizer)
    step_tokens = micro_rows * accumulation * run.context
    print(f"{micro_rows} rows x {accumulation}, {step_tokens} tokens a step")
    percent = 100 * model.flops_per_token() / PEAK_FLOPS  # MFU of one token a second
    percent_exact = 100 * model.flops_per_token(is_exact=True) / PEAK_FLOPS
    gc.collect()
    gc.freeze()
    gc.disable()

    rows = Rows(run.start(), run.device, run.seed)
    losses, smooth, weight = LateLoss(run.device), 0.0, 0.0
    step, tokens_per_s = 0, 0.0
    started = time.perf_counter()
    while run.proceed():
        loss = losses.get(step)
        if loss is not None:
            if not loss < 100:  # NaN too
                raise FloatingPointError(f"loss {loss} at step {step - losses.lag}: diverged")
            smooth, weight = 0.95 * smooth + 0.05 * loss, 0.95 * weight + 0.05
        progress = run.progress
        multiplier = schedule(optimizer, progress, step)
        losses.put(step, train_step(model, optimizer, rows, micro_rows, accumulation))
        step += 1
        if step % COLLECT_EVERY == 0:
            gc.collect()
        tokens_per_s = step * step_tokens / (time.perf_counter() - started)
        facts = {"step": step, "tokens": step * step_tokens, "lr": multiplier}
        facts |= {"loss": smooth / weight if weight else None, "tokens_per_s": tokens_per_s}
        facts |= {"mfu_percent": percent * tokens_per_s}
        run.report(**facts, remaining_s=run.budget_s * (1 - progress))
    facts = {"num_steps": step, "total_tokens_M": step * step_tokens / 1e6, "depth": DEPTH}
    facts |= {"num_params_M": num_params / 1e6, "mfu_percent": percent * tokens_per_s}
    facts |= {"width": model.width, "mfu_exact_percent": percent_exact * tokens_per_s}
    run.submit(model, **facts, attention=model.operators.names["attend"])
