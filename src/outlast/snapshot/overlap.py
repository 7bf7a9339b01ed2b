"""A copy that runs under the next forward and backward, and the proof that nothing changed what it copied.

At the safe point the fingerprint of every tensor is queued in front of all that training does next. Steps that call
their hooks wait for the copy. Whatever else changes the state (clipping, an EMA swap, a merge, a write past torch, a
captured graph) makes the fingerprint of the copy another one, and the copy is thrown away.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

from outlast.snapshot.fingerprint import Launched, launch
from outlast.snapshot.moves import Copier, Copying, Move
from outlast.snapshot.prints import Print, fingerprint

_COMPARERS = 4
"""Threads that fingerprint a copy (6 GB/s each): as fast as it was copied."""


class Overlapped:
    """Copies that run under what training does next."""

    def __init__(self, moves: Sequence[Move], copying: Copying, before: Launched) -> None:
        self._moves = moves
        self._copying = copying
        self._before = before

    def hold_back(self) -> None:
        """The state is about to be changed: let that wait until it is copied."""
        self._copying.hold_back()

    def is_done(self) -> bool:
        """Whether all is copied."""
        return self._copying.is_done()

    def wait(self) -> Callable[[], list[str]]:
        """Wait until all is copied; returns what compares the copies.

        That takes seconds for tens of gigabytes, asks no device, and may run in any thread. It returns the names of
        what is not as it was at the safe point.
        """
        self._copying.wait()
        copies = [(move.name, move.target) for move in self._moves]
        before = self._before.values()
        return lambda: _changed(copies, before)


def begin(moves: Sequence[Move], copier: Copier) -> Overlapped:
    """Begin at a safe point; the sources must be contiguous.

    Raises:
        torch.OutOfMemoryError: a device has not the 64 MiB that fingerprints take; nothing was copied.
    """
    # In this order: the copy may wait for the fingerprints, and what training does next comes after both were queued.
    before = launch([move.source for move in moves])
    return Overlapped(moves, copier.begin(moves), before)


def _changed(copies: Sequence[tuple[str, torch.Tensor]], before: Sequence[Print]) -> list[str]:
    with ThreadPoolExecutor(_COMPARERS, "outlast-compare") as pool:
        after = pool.map(_print_of, [copy for _, copy in copies])
        return [name for (name, _), was, now in zip(copies, before, after, strict=True) if was != now]


def _print_of(copy: torch.Tensor) -> Print:
    return fingerprint(copy.view(-1).view(torch.uint8).numpy())
