"""The seam between what is copied out of live tensors and how."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch


@dataclass(frozen=True)
class Move:
    """A tensor, and where in an arena its bits go.

    Attributes:
        source: the live tensor's memory as integers, any strides.
        target: a look at the arena, contiguous; same shape and dtype.
    """

    name: str
    source: torch.Tensor
    target: torch.Tensor

    @property
    def nbytes(self) -> int:
        """Bytes that are copied."""
        return self.target.numel() * self.target.element_size()


class Copying(Protocol):
    """Copies under way; for the thread that began them.

    A device must not be asked anything by another thread: where a CUDA graph is being captured that breaks the capture.
    Whoever holds it keeps the sources' memory from being used for anything else.
    """

    def hold_back(self) -> None:
        """Let what the current streams are given from here on wait until all is copied; returns at once."""

    def is_done(self) -> bool:
        """Whether all is copied."""

    def wait(self) -> None:
        """Return once all is copied."""


class Copier(Protocol):
    """Copies out of live tensors, while this process goes on."""

    def takes(self, tensor: torch.Tensor) -> bool:
        """Whether it can copy a tensor of this kind."""

    def begin(self, moves: Sequence[Move]) -> Copying:
        """Begin to copy what the sources hold once all that is queued on their current streams is done."""
