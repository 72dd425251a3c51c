"""A small GPT, trained for a fixed number of seconds. This is the file that research edits.

It reads from top to bottom: constants, operators, model, optimizer, data, schedule, main. Two names are the interface:
`build_model(run)` gives a module whose call turns tokens (B, T) into logits (B, T, V), and `main(run)` trains it and
hands it over with `run.submit(model)`, which does not return. The score is bits per byte on text that this file never
sees; the clock is not ours either, so everything below is a function of `run.progress`, from 0 to 1.

Letters in shapes: B rows, T tokens a row, C channels (width), H heads, G key/value heads, D channels a head, V vocabulary,
L layers. Matrices of one shape are one parameter (L, rows, columns), so that the optimizer handles them as one batch.
"""

import gc
import math
import time

import torch
import torch.nn.functional as F
from torch import nn

# ----------------------------------------------------------------------------------------------------------------------
# Constants: value, meaning, unit, range to search ({...}: choices; no range: not searched)

# Model
DEPTH = 8  # transformer blocks [2, 12]
WIDTH = 0  # channels of the residual stream, rounded up to whole heads; 0: 64 x DEPTH
HEAD_DIM = 128  # channels an attention head {32, 64, 128}
KV_HEADS = 0  # key/value heads, rounded down to a divisor of the query heads; 0: as many as query heads
MLP_RATIO = 4  # hidden channels of the MLP, times width [2, 6]
WINDOW_PATTERN = "SSSL"  # short and long attention by layer, repeating; the last is long {"SSSL", "SSSSL", "SL", "L"}
SHORT_WINDOW = 0.5  # how far back an S layer sees, share of the context [0.0625, 1.0] log
LONG_WINDOW = 1.0  # how far back an L layer sees, share of the context
ROTARY_BASE = 10000.0  # longest rotary wavelength over 2 pi, tokens [1000.0, 1000000.0] log
QK_GAIN = 1.0  # factor on normed queries and keys: sharpness of attention [0.8, 1.6]
VALUE_EVERY = 2  # layers from one value embedding to the next, counted from the last layer [1, 4]
GATE_CHANNELS = 32  # channels of the block input that a value embedding's gate looks at
LAMBDA_RESID = 1.0  # start of the residual scalars, factor
LAMBDA_X0 = 0.1  # start of the scalars that mix the embedding back in, factor [0.01, 0.5] log
SOFTCAP = 15.0  # logits stay within +-this, nats [8.0, 40.0] log
INIT_SCALE = 1.0  # factor on the initial spread of the block matrices and value tables [0.3, 1.5] log
TABLES_BF16 = True  # embedding tables and their Adam moments in bfloat16, else float32 {True, False}

# Optimizer (embedding and head rates are for width 768 and scale with width^-0.5)
EMBEDDING_LR = 0.6  # Adam step size of the token embedding [0.03, 1.5] log
VALUE_LR = 0.6  # Adam step size of the value embeddings [0.03, 1.5] log
HEAD_LR = 0.004  # Adam step size of the head [0.0005, 0.05] log
SCALAR_LR = 0.5  # Adam step size of lambda_x0; lambda_resid takes a hundredth [0.05, 1.0] log
MATRIX_LR = 0.04  # Muon step size, times sqrt(rows / columns) of tall matrices [0.005, 0.2] log
ADAM_BETA1 = 0.8  # Adam momentum, decay a step [0.6, 0.95]
ADAM_BETA2 = 0.95  # Adam second moment, decay a step [0.9, 0.995]
ADAM_EPS = 1e-10  # Adam floor of the denominator, gradient units
MOMENTUM_START = 0.85  # Muon momentum of the first step, decay a step
MOMENTUM_END = 0.95  # Muon momentum after the ramp, decay a step [0.85, 0.98]
MOMENTUM_RAMP = 300  # length of the ramp, steps [20, 600] log
NORMUON_BETA2 = 0.95  # NorMuon second moment, decay a step
POLAR_STEPS = 5  # Polar Express iterations {3, 4, 5}
MATRIX_DECAY = 0.2  # cautious weight decay of matrices at the start, falls to 0 [0.0, 0.5]
EMBEDDING_DECAY = 0.0  # weight decay of the token embedding, times its step size [0.0, 0.01]
VALUE_DECAY = 0.0  # weight decay of the value embeddings, times their step size [0.0, 0.01]
HEAD_DECAY = 0.0  # weight decay of the head, times its step size [0.0, 0.05]

# Schedule and batch
WARMUP_RATIO = 0.0  # rising learning rate, share of the budget [0.0, 0.1]
WARMDOWN_RATIO = 0.5  # falling learning rate, share of the budget [0.2, 0.9]
FINAL_LR_FRAC = 0.0  # learning rate at the end, share of the peak [0.0, 0.1]
TOTAL_BATCH = 256  # rows an optimizer step; x context 2048 = 2^19 tokens [8, 512] log
MICRO_BATCH = 128  # rows at once; smaller if memory demands it, with the same total

# Machine
PRECISION = "auto"  # what activations are in: bfloat16 where the chip is fast at it, else float32 {"auto"}
ATTENTION = "auto"  # rung of the ladder fa4 > fa3 > cudnn, flex > sdpa, or the best there is {"auto"}
KERNELS = True  # the fast operators of autoresearch.inside.ops on CUDA, else plain torch {True}
COMPILE = True  # torch.compile on CUDA; elsewhere it costs more than it gives {True}
WARMUP_STEPS = 3  # steps on random tokens before the clock starts, then undone
PEAK_FLOPS = 989.5e12  # what MFU is a share of, FLOP/s: H100 SXM, dense bfloat16
COLLECT_EVERY = 5000  # steps between garbage collections (one costs about half a second at full size)

POLAR_COEFFICIENTS = (  # Polar Express, arXiv 2505.16932: (a, b, c) of each iteration
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)


# ----------------------------------------------------------------------------------------------------------------------
# Operators


def norm(x):
    """RMSNorm without a gain."""
    return F.rms_norm(x, (x.size(-1),), eps=1e-6)


def rotate(x, cos, sin):
    """Rotary embedding, half-split layout: x (B, T, heads, D); cos, sin (T, 1, D / 2)."""
    left, right = x.chunk(2, dim=-1)
    return torch.cat([left * cos + right * sin, right * cos - left * sin], dim=-1)


def sdpa(q, k, v, window):
    """Causal attention that sees `window` tokens back: q (B, T, H, D), k and v (B, T, G, D) -> (B, T, H, D)."""
    T, H, G = q.size(1), q.size(2), k.size(2)
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    if G < H:
        k, v = k.repeat_interleave(H // G, dim=1), v.repeat_interleave(H // G, dim=1)
    if window >= T - 1:
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    else:
        back = torch.arange(T, device=q.device)[:, None] - torch.arange(T, device=q.device)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=(back >= 0) & (back <= window))
    return y.transpose(1, 2)


def relu2_mlp(x, fc, proj):
    """C -> 4C -> C with ReLU squared: x (B, T, C), fc (4C, C), proj (C, 4C)."""
    return F.linear(F.relu(F.linear(x, fc)).square(), proj)


def softcap(logits):
    """Smooth clipping to +-SOFTCAP, in float32."""
    return SOFTCAP * torch.tanh(logits.float() / SOFTCAP)


class HeadLoss(torch.autograd.Function):
    """Head, softcap and cross-entropy at once: x (N, C), head (V, C), targets (N,) -> mean loss in nats.

    The gradient is made on the way forward, chunk by chunk, so that logits never exist as a whole and stay in the cache.
    """

    @staticmethod
    def forward(ctx, x, head, targets):
        size = 512 if x.device.type == "cpu" else 2**15
        weight = head.to(x.dtype)
        dx, dhead, total = torch.empty_like(x), torch.zeros_like(head), torch.zeros((), device=x.device)
        for rows, wanted, drows in zip(x.split(size), targets.split(size), dx.split(size), strict=True):
            wanted = wanted[:, None]
            tanh = F.linear(rows, weight).float().div_(SOFTCAP).tanh_()
            logp = torch.log_softmax(tanh * SOFTCAP, dim=-1)
            total -= logp.gather(1, wanted).sum()
            grad = logp.exp_().scatter_add_(1, wanted, torch.full_like(wanted, -1, dtype=logp.dtype))
            grad = grad.mul_(tanh.square_().neg_().add_(1)).div_(len(x)).to(x.dtype)  # d tanh = 1 - tanh^2
            drows.copy_(grad @ weight)
            dhead += grad.mT @ rows
        ctx.save_for_backward(dx, dhead)
        return total / len(x)

    @staticmethod
    def backward(ctx, scale):
        dx, dhead = ctx.saved_tensors
        return dx * scale, dhead * scale, None


def head_loss(x, head, targets):
    """Mean cross-entropy of softcapped logits in nats: x (B, T, C), head (V, C), targets (B, T)."""
    return HeadLoss.apply(x.flatten(0, 1), head, targets.flatten())


def polar(matrices, dtype):
    """The orthogonal polar factor of each matrix (N, rows, columns), nearly: all singular values go to about 1.

    Why: it is the steepest descent step under a spectral-norm constraint. Arithmetic in `dtype` is enough.
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
    """The operators in use: plain torch, and what the machine has better.

    `attend`, `mlp` and `head_loss` have the signatures of `sdpa`, `relu2_mlp` and `head_loss`.
    """

    def __init__(self, device, head_dim):
        self.attend, self.mlp, self.head_loss = sdpa, relu2_mlp, head_loss
        self.names = {"attention": "sdpa", "mlp": "torch", "loss": "torch"}
        if device.type == "cuda" and KERNELS:
            try:
                from autoresearch.inside import ops  # the package's only use here; without it all works, slower
            except ImportError as error:
                self.names["note"] = f"no fast operators: {error}"
                return
            ops.install(self, attention=ATTENTION, head_dim=head_dim, softcap=SOFTCAP)

    def __str__(self):
        return ", ".join(f"{part} {name}" for part, name in self.names.items())


# ----------------------------------------------------------------------------------------------------------------------
# Model


def pick_precision(device):
    """bfloat16 where the chip multiplies it faster than float32."""
    if PRECISION != "auto":
        return getattr(torch, PRECISION)
    has_fast_bf16 = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    return torch.bfloat16 if has_fast_bf16 else torch.float32


def block(x, x0, cos, sin, resid, mix, weights, value, window, ops):
    """One layer: x, x0 (B, T, C); resid, mix scalars; value None or the value embedding of each token (B, T, G, D)."""
    q_kv, out, fc, proj, gate = weights
    B, T, C = x.shape
    D = 2 * cos.size(-1)
    G = (q_kv.size(0) - C) // (2 * D)
    x = resid * x + mix * x0
    h = norm(x)
    q, k, v = F.linear(h, q_kv).split([C, G * D, G * D], dim=-1)
    q, k, v = q.view(B, T, -1, D), k.view(B, T, G, D), v.view(B, T, G, D)
    if value is not None:  # the gate starts at exactly 1: its weights are zero
        v = v + 2 * torch.sigmoid(F.linear(h[..., : gate.size(-1)], gate))[..., None] * value
    q, k = norm(rotate(q, cos, sin)) * QK_GAIN, norm(rotate(k, cos, sin)) * QK_GAIN
    x = x + F.linear(ops.attend(q, k, v, window).reshape(B, T, C), out)
    return x + ops.mlp(norm(x), fc, proj)


class GPT(nn.Module):
    """Decoder-only transformer: pre-norm, no biases, rotary positions, value embeddings, untied head."""

    def __init__(self, vocab_size, context):
        super().__init__()
        L, D, V = DEPTH, HEAD_DIM, vocab_size
        C = math.ceil((WIDTH or 64 * DEPTH) / D) * D
        H = C // D
        G = math.gcd(H, KV_HEADS) if KV_HEADS else H
        self.context, self.num_heads, self.head_dim, self.width = context, H, D, C
        reach = {"S": max(1, round(SHORT_WINDOW * context)), "L": max(1, round(LONG_WINDOW * context))}
        self.windows = [reach[WINDOW_PATTERN[i % len(WINDOW_PATTERN)]] for i in range(L)]
        self.windows[-1] = reach["L"]
        self.value_layers = [i for i in range(L) if (L - 1 - i) % VALUE_EVERY == 0]

        tables = torch.bfloat16 if TABLES_BF16 else torch.float32
        self.embedding = nn.Parameter(torch.empty(V, C, dtype=tables))
        self.values = nn.Parameter(torch.empty(len(self.value_layers), V, G * D, dtype=tables))
        self.head = nn.Parameter(torch.empty(V, C))
        self.q = nn.Parameter(torch.empty(L, C, C))
        self.kv = nn.Parameter(torch.empty(L, 2, G * D, C))
        self.out = nn.Parameter(torch.empty(L, C, C))
        self.fc = nn.Parameter(torch.empty(L, MLP_RATIO * C, C))
        self.proj = nn.Parameter(torch.empty(L, C, MLP_RATIO * C))
        self.gate = nn.Parameter(torch.empty(len(self.value_layers), G, min(GATE_CHANNELS, C)))
        self.lambda_resid = nn.Parameter(torch.empty(L))
        self.lambda_x0 = nn.Parameter(torch.empty(L))
        self.register_buffer("cos", torch.empty(context, 1, D // 2, dtype=torch.bfloat16), persistent=False)
        self.register_buffer("sin", torch.empty(context, 1, D // 2, dtype=torch.bfloat16), persistent=False)
        self.block = block  # main() compiles it, and the loss

    @torch.no_grad()
    def initialize(self, operators, precision):
        """Fill what __init__ left empty."""
        self.operators, self.precision, self.loss = operators, precision, operators.head_loss
        bound = INIT_SCALE * math.sqrt(3 / self.width)
        nn.init.normal_(self.embedding, std=1.0)
        nn.init.normal_(self.head, std=0.001)
        for matrices in (self.q, self.kv, self.fc, self.values):
            nn.init.uniform_(matrices, -bound, bound)
        for matrices in (self.out, self.proj, self.gate):
            nn.init.zeros_(matrices)
        self.lambda_resid.fill_(LAMBDA_RESID)
        self.lambda_x0.fill_(LAMBDA_X0)
        steps = torch.arange(0, self.head_dim, 2, device=self.cos.device, dtype=torch.float32)
        frequencies = ROTARY_BASE ** (-steps / self.head_dim)
        angles = torch.arange(self.context, device=self.cos.device, dtype=torch.float32)[:, None, None] * frequencies
        self.cos.copy_(angles.cos())
        self.sin.copy_(angles.sin())

    def forward(self, tokens, targets=None):
        """Logits (B, T, V) in float32, or the mean loss in nats if there are targets."""
        B, T = tokens.shape
        dtype = self.precision
        cos, sin = self.cos[:T].to(dtype), self.sin[:T].to(dtype)
        resid, mix = self.lambda_resid.unbind(), self.lambda_x0.unbind()
        q_kv = torch.cat([self.q.to(dtype), self.kv.to(dtype).flatten(1, 2)], dim=1).unbind()
        out, fc, proj = self.out.to(dtype).unbind(), self.fc.to(dtype).unbind(), self.proj.to(dtype).unbind()
        tables, gates = self.values.unbind(), self.gate.to(dtype).unbind()

        x = x0 = norm(F.embedding(tokens, self.embedding).to(dtype))
        for i, window in enumerate(self.windows):
            value = gate = None
            if i in self.value_layers:
                j = self.value_layers.index(i)
                value = F.embedding(tokens, tables[j]).to(dtype).view(B, T, -1, self.head_dim)
                gate = gates[j]
            weights = (q_kv[i], out[i], fc[i], proj[i], gate)
            x = self.block(x, x0, cos, sin, resid[i], mix[i], weights, value, window, self.operators)
        x = norm(x)
        return softcap(F.linear(x, self.head.to(dtype))) if targets is None else self.loss(x, self.head, targets)

    def flops_per_token(self, is_exact=False):
        """Forward and backward FLOPs by the usual formula, which counts masked keys up to the window; exact does not."""
        T = self.context
        matrices = (self.q, self.kv, self.out, self.fc, self.proj, self.gate, self.head)
        keys = 0.0
        for window in self.windows:
            window = min(window, T)
            seen = sum(min(t, window) + 1 for t in range(T)) / T
            keys += seen if is_exact else window
        return 6 * sum(p.numel() for p in matrices) + 12 * self.width * keys


def build_model(run):
    """The model on run.device, with fresh weights."""
    torch.set_float32_matmul_precision("high")
    with torch.device("meta"):
        model = GPT(run.vocab_size, run.context)
    model.to_empty(device=run.device)
    model.initialize(Operators(run.device, HEAD_DIM), pick_precision(run.device))
    return model


# ----------------------------------------------------------------------------------------------------------------------
# Optimizer


def adamw_rule(p, grad, mean, square, rate, decay, beta1, beta2, correction1, correction2):
    """AdamW on one parameter; the scalars are 0-d tensors, so that compiled code serves every step."""
    g = grad.float()
    m = mean + (g - mean) * (1 - beta1)
    s = square + (g * g - square) * (1 - beta2)
    mean.copy_(m)
    square.copy_(s)
    update = (m / correction1) / ((s / correction2).sqrt() + ADAM_EPS)
    p.copy_(p * (1 - rate * decay) - rate * update)


def muon_rule(p, grad, momentum, square, rate, decay, beta, beta2, dtype):
    """Nesterov momentum, polar factor, NorMuon's normalisation, cautious decay: p (N, rows, columns)."""
    momentum.copy_(momentum + (grad - momentum) * (1 - beta))
    update = polar(grad + (momentum - grad) * beta, dtype).float()
    # NorMuon, arXiv 2510.05491: even out rows (columns of wide matrices), keep the norm of the whole
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

    def __init__(self, groups, polar_dtype):
        super().__init__(groups, defaults={"decay": 0.0, "step": 0})
        self.adamw_rule, self.muon_rule, self.polar_dtype = adamw_rule, muon_rule, polar_dtype
        for group in self.param_groups:
            group["peak_lr"], group["peak_decay"] = group["lr"], group["decay"]
            for p in group["params"]:
                if group["rule"] == "adamw":
                    self.state[p] = {"mean": torch.zeros_like(p), "square": torch.zeros_like(p)}
                    continue
                N, rows, columns = p.flatten(0, -3).shape
                shape = (N, rows, 1) if rows >= columns else (N, 1, columns)
                momentum = torch.zeros_like(p, memory_format=torch.contiguous_format)
                self.state[p] = {"momentum": momentum, "square": torch.zeros(shape, device=p.device)}

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            group["step"] += 1
            beta1, beta2 = group["betas"]
            values = [group["lr"], group["decay"], beta1, beta2]
            if group["rule"] == "adamw":
                values += [1 - beta1 ** group["step"], 1 - beta2 ** group["step"]]
            scalars = [torch.tensor(value, dtype=torch.float32) for value in values]  # on the host: no copy, no wait
            for p in group["params"]:
                if p.grad is None:  # a gradient of None is a gradient of zero that nobody computed
                    continue
                state = self.state[p]
                if group["rule"] == "adamw":
                    self.adamw_rule(p, p.grad, state["mean"], state["square"], *scalars)
                else:
                    flat = [t.flatten(0, -3) for t in (p, p.grad, state["momentum"])]
                    self.muon_rule(*flat, state["square"], *scalars, self.polar_dtype)


def make_optimizer(model):
    """The table of rules: who learns how fast, and why so differently.

    The embedding sees every token and must move fast; the head is a linear probe that wants stability.
    """
    s = (model.width / 768) ** -0.5
    betas = (ADAM_BETA1, ADAM_BETA2)

    def adamw(p, lr, decay=0.0, betas=betas):
        return {"params": [p], "rule": "adamw", "lr": lr, "decay": decay, "betas": betas}

    groups = [
        adamw(model.head, HEAD_LR * s, HEAD_DECAY),
        adamw(model.embedding, EMBEDDING_LR * s, EMBEDDING_DECAY),
        adamw(model.values, VALUE_LR * s, VALUE_DECAY),
        adamw(model.lambda_resid, SCALAR_LR * 0.01),
        adamw(model.lambda_x0, SCALAR_LR, betas=(0.96, 0.95)),
    ]
    for p in (model.q, model.kv, model.out, model.fc, model.proj, model.gate):
        lr = MATRIX_LR * max(1.0, p.size(-2) / p.size(-1)) ** 0.5
        betas_muon = (MOMENTUM_START, NORMUON_BETA2)
        groups.append({"params": [p], "rule": "muon", "lr": lr, "decay": MATRIX_DECAY, "betas": betas_muon})
    return MuonAdamW(groups, polar_dtype=model.precision)


# ----------------------------------------------------------------------------------------------------------------------
# Data


class Rows:
    """All training rows on the device, drawn in a seeded random order, every row once before any comes again.

    A row has context + 1 tokens: inputs are all but the last, targets all but the first.
    """

    def __init__(self, shards, device, seed):
        num_rows = sum(len(shard) for shard in shards)
        if device.type == "cpu" and len(shards) == 1:
            self.rows = shards[0]  # mapped memory is as good as any
        else:
            self.rows = torch.empty(num_rows, shards[0].size(1), dtype=torch.int16, device=device)
            for part, shard in zip(self.rows.split([len(shard) for shard in shards]), shards, strict=True):
                part.copy_(shard)
        self.generator = torch.Generator(device).manual_seed(seed)
        self.order = torch.empty(0, dtype=torch.int64, device=device)

    def draw(self, num_rows):
        """Inputs and targets, (num_rows, context) each; nothing here waits for the device."""
        while len(self.order) < num_rows:
            again = torch.randperm(len(self.rows), generator=self.generator, device=self.rows.device)
            self.order = torch.cat([self.order, again])
        picked, self.order = self.order[:num_rows], self.order[num_rows:]
        tokens = self.rows[picked].long()  # int16 holds any id: the vocabulary is 32768 at most
        return tokens[:, :-1], tokens[:, 1:]


# ----------------------------------------------------------------------------------------------------------------------
# Schedule


def learning_rate(progress):
    """Multiplier of every learning rate: up, flat, down to FINAL_LR_FRAC."""
    if progress < WARMUP_RATIO:
        return progress / WARMUP_RATIO
    left = (1.0 - progress) / WARMDOWN_RATIO if WARMDOWN_RATIO else 1.0
    return min(1.0, FINAL_LR_FRAC + (1.0 - FINAL_LR_FRAC) * max(0.0, left))


def schedule(optimizer, progress, step):
    """Set what changes with time: rates by the clock, Muon's momentum by steps. Returns the multiplier."""
    multiplier = learning_rate(progress)
    ramp = min(1.0, step / max(1, MOMENTUM_RAMP))
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * multiplier
        if group["rule"] == "muon":
            group["decay"] = group["peak_decay"] * (1.0 - progress)
            momentum = MOMENTUM_START + (MOMENTUM_END - MOMENTUM_START) * ramp
            group["betas"] = (momentum, group["betas"][1])
    return multiplier


def split_batch(total_rows, micro_rows):
    """(micro-batch rows, micro-batches a step): their product is the total, or a little above where it won't divide."""
    accumulation = math.ceil(total_rows / micro_rows)
    return math.ceil(total_rows / accumulation), accumulation


# ----------------------------------------------------------------------------------------------------------------------
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
    """Compile one block (not all: they are alike), the loss and the two rules."""
    torch._dynamo.config.recompile_limit = 64  # a variant for each window, value embedding, micro-batch
    model.block = torch.compile(model.block, dynamic=False, fullgraph=True)
    model.loss = torch.compile(model.loss, dynamic=False)
    optimizer.adamw_rule = torch.compile(adamw_rule, dynamic=False, fullgraph=True)
    optimizer.muon_rule = torch.compile(muon_rule, dynamic=False, fullgraph=True)


def warm_up(run, model, optimizer):
    """Steps on random rows until everything is compiled; finds the micro-batch that fits. Off the clock."""
    micro_rows, accumulation = split_batch(TOTAL_BATCH, MICRO_BATCH)
    steps = 0
    while steps < WARMUP_STEPS:
        rows = Rows([run.synthetic_rows(micro_rows)], run.device, run.seed)
        try:
            train_step(model, optimizer, rows, micro_rows, accumulation)
            steps += 1
            continue
        except torch.OutOfMemoryError:
            if micro_rows == 1:
                raise
        # out here the traceback, and with it the failed step's activations, is gone
        optimizer.zero_grad(set_to_none=True)
        gc.collect()
        if run.device.type == "cuda":
            torch.cuda.empty_cache()
        smaller, accumulation = split_batch(TOTAL_BATCH, micro_rows // 2)
        print(f"out of memory with {micro_rows} rows at once: taking {smaller} x {accumulation}", flush=True)
        micro_rows = smaller
    return micro_rows, accumulation


class LateLoss:
    """Losses read without waiting: on CUDA the one of three steps ago, which `run.proceed` has already waited for."""

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
    print(f"{num_params / 1e6:.2f}M parameters, depth {DEPTH}, width {model.width}, {model.precision}", flush=True)
    print(f"operators: {model.operators}; windows {model.windows}", flush=True)
    with run.warmup(model, optimizer):
        micro_rows, accumulation = warm_up(run, model, optimizer)
    step_tokens = micro_rows * accumulation * run.context
    print(f"{micro_rows} rows x {accumulation} a step, {step_tokens} tokens", flush=True)
    percent, percent_exact = (100 * model.flops_per_token(exact) / PEAK_FLOPS for exact in (False, True))
    gc.collect()
    gc.freeze()
    gc.disable()

    rows = Rows(run.start(), run.device, run.seed)
    losses, smooth, weight = LateLoss(run.device), 0.0, 0.0
    step, tokens_per_s, started = 0, 0.0, time.perf_counter()
    while run.proceed():
        late = losses.get(step)
        if late is not None:
            if not late < 100:  # NaN too
                raise FloatingPointError(f"loss {late} at step {step - losses.lag}: diverged")
            smooth, weight = 0.95 * smooth + 0.05 * late, 0.95 * weight + 0.05
        progress = run.progress
        multiplier = schedule(optimizer, progress, step)
        losses.put(step, train_step(model, optimizer, rows, micro_rows, accumulation))
        step += 1
        if step % COLLECT_EVERY == 0:
            gc.collect()
        tokens_per_s = step * step_tokens / (time.perf_counter() - started)
        run.report(
            step=step,
            tokens=step * step_tokens,
            loss=smooth / weight if weight else None,
            lr=multiplier,
            tokens_per_s=tokens_per_s,
            mfu_percent=percent * tokens_per_s,
            remaining_s=run.budget_s * (1 - progress),
        )
    run.submit(
        model,
        num_steps=step,
        total_tokens_M=step * step_tokens / 1e6,
        num_params_M=num_params / 1e6,
        depth=DEPTH,
        width=model.width,
        mfu_percent=percent * tokens_per_s,
        mfu_exact_percent=percent_exact * tokens_per_s,
        attention=model.operators.names["attention"],
    )
