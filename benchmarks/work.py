"""The work that every peer is measured under: a GPT-like model, AdamW, all cores busy."""

from __future__ import annotations

import os
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

NO_GUARD: AbstractContextManager[Any] = nullcontext()


@dataclass(frozen=True)
class Shape:
    """Sizes of the model and of a batch: `batch` x `context` tokens decide how long a step takes."""

    layers: int = 12
    width: int = 768
    vocab: int = 42_880
    context: int = 64
    batch: int = 2


ISSUE = Shape()
"""151 million parameters: 1.81 GB of state with AdamW's two moments."""
SMALL = Shape(layers=4, width=256, vocab=8_192, context=64, batch=2)
"""7 million parameters, to try the scripts out."""
LARGE = Shape(layers=24, width=1536, vocab=50_304, context=512, batch=8)
"""834 million parameters: 10 GB of state, for a GPU."""


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = width // 64
        self.before = nn.LayerNorm(width)
        self.between = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        q, k, v = (
            part.view(batch, length, self.heads, -1).transpose(1, 2)
            for part in self.qkv(self.before(x)).chunk(3, dim=-1)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(F.gelu(self.up(self.between(x))))


class Gpt(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.tokens = nn.Embedding(shape.vocab, shape.width)
        self.places = nn.Embedding(shape.context, shape.width)
        self.blocks = nn.Sequential(*(Block(shape.width) for _ in range(shape.layers)))
        self.last = nn.LayerNorm(shape.width)
        self.head = nn.Linear(shape.width, shape.vocab, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        places = torch.arange(tokens.shape[1], device=tokens.device)
        return self.head(self.last(self.blocks(self.tokens(tokens) + self.places(places))))


class Work:
    """A training loop's body.

    Attributes:
        objects: what is saved, by name.
        state_bytes: of all of them.
    """

    def __init__(self, shape: Shape, device: str = "cpu") -> None:
        torch.set_num_threads(os.cpu_count() or 1)
        torch.manual_seed(0)
        self.device = device
        self.shape = shape
        self.model = Gpt(shape).to(device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=True)
        self.objects: dict[str, Any] = {"model": self.model, "optimizer": self.optimizer}
        self.step()
        self.state_bytes = sum(t.nbytes for t in tensors(self.state()))

    def step(self, guard: AbstractContextManager[Any] = NO_GUARD) -> None:
        """Take one training step on random tokens; `guard` is held while the weights change."""
        tokens = torch.randint(self.shape.vocab, (self.shape.batch, self.shape.context + 1))
        tokens = tokens.to(self.device)
        logits = self.model(tokens[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        self.optimizer.zero_grad()
        loss.backward()
        with guard:
            self.optimizer.step()
        if self.device != "cpu":
            torch.cuda.synchronize()

    def state(self) -> dict[str, Any]:
        """What a script without Outlast hands to a saver: the live tensors."""
        return {name: each.state_dict() for name, each in self.objects.items()}


class Filler:
    """A state of any size in any number of tensors; a step multiplies matrices on all cores and changes every tensor.

    Attributes as `Work`'s.
    """

    STEP_S = 0.4
    SIDE = 1024

    def __init__(self, nbytes: int, count: int) -> None:
        torch.set_num_threads(os.cpu_count() or 1)
        torch.manual_seed(0)
        self.model = nn.Module()
        for number in range(count):
            self.model.register_buffer(f"t{number}", torch.rand(max(1, nbytes // count // 4)))
        self.objects: dict[str, Any] = {"model": self.model}
        self.state_bytes = sum(t.nbytes for t in tensors(self.state()))
        self._square = torch.randn(self.SIDE, self.SIDE)
        self._times = 1
        took = min(self._multiply() for _ in range(20))
        self._times = max(1, round(self.STEP_S / took))

    def step(self, guard: AbstractContextManager[Any] = NO_GUARD) -> None:
        self._multiply()
        with guard:
            torch._foreach_mul_(list(self.model.buffers()), 1.0001)

    def state(self) -> dict[str, Any]:
        return {name: each.state_dict() for name, each in self.objects.items()}

    def _multiply(self) -> float:
        started = time.perf_counter()
        for _ in range(self._times):
            torch.mm(self._square, self._square)
        return time.perf_counter() - started


def work_of(sizes: dict[str, int], device: str) -> Work | Filler:
    """Make the work that sizes describe: a `Shape`, or a number of bytes and of tensors."""
    return Filler(**sizes) if "nbytes" in sizes else Work(Shape(**sizes), device)


def tensors(value: Any) -> list[torch.Tensor]:
    """Every tensor in nested dicts and lists."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        return [t for each in value.values() for t in tensors(each)]
    if isinstance(value, (list, tuple)):
        return [t for each in value for t in tensors(each)]
    return []
