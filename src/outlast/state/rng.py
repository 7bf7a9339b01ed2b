"""The generators that a training script draws from without naming them."""

from __future__ import annotations

import random
from collections.abc import Mapping

import numpy as np
import torch

from outlast._types import Json
from outlast.state.table import TensorTable
from outlast.state.tree import decode, encode


def capture_rng(table: TensorTable) -> Json:
    """Encode the state of python's, numpy's global and torch's CPU generators, and of every CUDA device's.

    CUDA's are left out while CUDA is not initialised: nothing was drawn from them then, and asking would start it.
    """
    started = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]  # torch has no annotation there
    cuda = torch.cuda.get_rng_state_all() if started else []
    return {
        "python": encode(random.getstate(), "rng/python", table),
        "numpy": encode(np.random.get_state(legacy=False), "rng/numpy", table),  # noqa: NPY002 - the global one is what scripts draw from
        "torch": encode(torch.get_rng_state(), "rng/torch", table),
        "cuda": encode(cuda, "rng/cuda", table),
    }


def restore_rng(tree: Json, tensors: Mapping[str, torch.Tensor]) -> list[str]:
    """Set every generator to its saved state.

    Returns:
        A line for each that could not be set, because this machine has fewer CUDA devices, or more.
    """
    python, numpy, cpu, cuda = (decode(tree[name], tensors) for name in ("python", "numpy", "torch", "cuda"))
    random.setstate(python)
    np.random.set_state(numpy)  # noqa: NPY002 - see above
    torch.set_rng_state(cpu)
    here = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for index, state in enumerate(cuda[:here]):
        torch.cuda.set_rng_state(state, index)
    if cuda and len(cuda) != here:
        return [
            f"rng/cuda: saved for {len(cuda)} CUDA devices, here {here}: the first {min(len(cuda), here)} were set"
        ]
    return []
