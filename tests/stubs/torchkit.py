"""What the gallery's candidates with torch share: a small transformer, a short training."""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn import functional as F

STEPS, BATCH_ROWS, WIDTH = 40, 32, 32


class Attention(nn.Module):
    """Two heads; `is_causal` is what a cheat would change."""

    def __init__(self, width: int, is_causal: bool = True) -> None:
        super().__init__()
        self.is_causal = is_causal
        self.project = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, width) to the same."""
        q, k, v = (part.unflatten(-1, (2, -1)) for part in self.project(x).chunk(3, dim=-1))
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        answer = F.scaled_dot_product_attention(q, k, v, is_causal=self.is_causal)
        return self.out(answer.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention and a small perceptron."""

    def __init__(self, width: int, is_causal: bool = True) -> None:
        super().__init__()
        self.attention = Attention(width, is_causal)
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, width) to the same."""
        x = x + self.attention(self.norms[0](x))
        return x + self.down(F.relu(self.up(self.norms[1](x))).square())


class Transformer(nn.Module):
    """Two blocks between an embedding and a head; positions are learned."""

    def __init__(self, run: Any, width: int = WIDTH) -> None:
        super().__init__()
        self.embed = nn.Embedding(run.vocab_size, width)
        self.places = nn.Parameter(0.02 * torch.randn(run.context, width))
        self.blocks = nn.ModuleList([Block(width), Block(width)])
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, run.vocab_size)

    def trunk(self, tokens: Tensor) -> Tensor:
        """(B, T) to (B, T, width)."""
        x = self.embed(tokens) + self.places[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T) to (B, T, V)."""
        return self.head(self.trunk(tokens))


def loss_of(model: nn.Module, rows: Tensor) -> Tensor:
    """Nats a token."""
    logits = model(rows[:, :-1]).float()
    return F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())


def train(
    run: Any, model: nn.Module, *, steps: int = STEPS, context: int = 0, after_step: Any = None
) -> NoReturn:
    """AdamW for `steps` steps, or as many as fit; rows cut to `context` tokens (0: none).

    `after_step(model)` is called after each.
    """
    torch.manual_seed(run.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    shards = run.start()
    rows = torch.cat([shard.long() for shard in shards]).to(run.device)
    for _ in range(steps):
        if not run.proceed():
            break
        batch = rows[torch.randint(len(rows), (BATCH_ROWS,), device=run.device)]
        loss = loss_of(model, batch[:, : context + 1] if context else batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if after_step is not None:
            after_step(model)
    run.submit(model)
