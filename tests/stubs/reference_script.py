"""A training script in the interface of karpathy/autoresearch, written for these tests.

It knows nothing of this package. On CUDA it is in bfloat16 and takes FlashAttention by `kernels`.
"""

import math
import os
import time

os.environ["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"

import torch
import torch.nn.functional as F
from kernels import get_kernel
from prepare import MAX_SEQ_LEN, TIME_BUDGET, Tokenizer, evaluate_bpb, make_dataloader
from torch import nn

WIDTH = 256 if torch.cuda.is_available() else 32
HEADS, BATCH, RATE = 2, 8, 0.02
FREE_STEPS = 3  # not on the clock
flash = get_kernel("kernels-community/flash-attn3").flash_attn_interface


class Model(nn.Module):
    """Embedding, one block of attention with a short window, head."""

    def __init__(self, vocab_size):
        super().__init__()
        self.embed = nn.Embedding(vocab_size, WIDTH)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.head = nn.Linear(WIDTH, vocab_size, bias=False)

    def forward(self, tokens, targets=None, reduction="mean"):
        x = self.embed(tokens)
        q, k, v = self.qkv(F.rms_norm(x, (WIDTH,))).view(*tokens.shape, 3, HEADS, -1).unbind(2)
        y = flash.flash_attn_func(q, k, v, causal=True, window_size=(MAX_SEQ_LEN // 2, 0))
        logits = self.head(F.rms_norm(x + y.flatten(2), (WIDTH,))).float()
        if targets is None:
            return logits
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction=reduction)


device = "cuda" if torch.cuda.is_available() else "cpu"
torch.manual_seed(1)
tokenizer = Tokenizer.from_directory()
assert tokenizer.decode(tokenizer.encode("one two")) == "one two"
vocab_size = tokenizer.get_vocab_size()
model = Model(vocab_size).to(device)
optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
cast = torch.amp.autocast(device_type=device, dtype=torch.bfloat16)
batches = make_dataloader(tokenizer, BATCH, MAX_SEQ_LEN, "train")
x, y, epoch = next(batches)

step, trained = 0, 0.0
while trained < TIME_BUDGET:
    began = time.time()
    with cast:
        loss = model(x, y)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    x, y, epoch = next(batches)
    if device == "cuda":
        torch.cuda.synchronize()
    step += 1
    trained += time.time() - began if step > FREE_STEPS else 0.0
    assert math.isfinite(loss.item())

print(f"trained {step} steps to {loss.item():.4f}, epoch {epoch}")
model.eval()
with cast:
    val_bpb = evaluate_bpb(model, tokenizer, BATCH)

print("---")
print(f"val_bpb:          {val_bpb:.6f}")
print(f"training_seconds: {trained:.1f}")
print(f"num_steps:        {step}")
