"""The first call of a function must compute what later ones do: a resumed process makes it in a step that another one made long before.

On CPUs, PyTorch hands square roots, logarithms and the like to a library that finds the right kernel at a function's first call. Where several
threads make that call together, as in the first step of Adam, one of them may compute its part with a kernel of far lower accuracy, for
that once (pytorch/pytorch 188792; oneMKL 2024.2, which PyTorch is built with). The step then differs from the undisturbed run's.
"""

from __future__ import annotations

import torch

UNARY = (
    "acos", "asin", "atan", "cos", "erf", "erfc", "erfinv", "exp", "expm1", "log", "log10", "log1p", "log2", "sin", "sqrt", "tan", "tanh",
    "trunc",
)  # fmt: skip
"""What `aten/src/ATen/cpu/vml.h` takes from the library, and their neighbours."""


def settle_first_calls() -> None:
    """Call each on one element, for which no second thread is needed. Takes milliseconds, and draws no random number."""
    for dtype in (torch.float32, torch.float64):
        one = torch.full((1,), 0.5, dtype=dtype, device="cpu")
        for name in UNARY:
            getattr(torch, name)(one)
