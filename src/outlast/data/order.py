"""The order of an epoch: which sample stands at which position.

A pure function of (seed, epoch, length), so that a run resumes at position 1,000,000 as cheaply as at 0, and every
rank and every worker can compute its own part without being told.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from outlast.data.seeds import Use, derive, mix_array

_SORTED_UP_TO = 1 << 16
"""Up to this length (512 KiB of indices) the order is a sort by random keys: exactly uniform, where a Feistel
network over so few bits would not be."""

_ROUNDS = 10
"""Feistel rounds. Luby and Rackoff (1988) need 4 for a proof on wide halves; on halves of 8 bits and more, tests of
uniformity no longer see a difference from 6 on."""


@dataclass(frozen=True)
class Order:
    """Map positions of an epoch to indices of the data set, in O(1) memory.

    With `shuffle` it is a permutation keyed by (seed, epoch): a sort by random keys for short data sets, else a Feistel
    network over the next power of two, applied again while it leads outside the range (cycle-walking: Black and
    Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002). Without it, position p holds index p.

    Attributes:
        seed: the run's seed, any integer.
        epoch: number of the epoch, from 0.
        length: samples in the data set.
        shuffle: whether the order is random.
    """

    seed: int
    epoch: int
    length: int
    shuffle: bool = True

    def indices(self, start: int, stop: int) -> npt.NDArray[np.int64]:
        """Return the indices at positions start to stop - 1, in their order.

        Raises:
            IndexError: the positions are not within the epoch.
        """
        if not 0 <= start <= stop <= self.length:
            msg = f"positions {start} to {stop} are not within an epoch of {self.length} samples"
            raise IndexError(msg)
        if not self.shuffle:
            return np.arange(start, stop, dtype=np.int64)
        if self.length <= _SORTED_UP_TO:
            return self._sorted[start:stop].copy()
        return self._walk(np.arange(start, stop, dtype=np.uint64)).astype(np.int64)

    @cached_property
    def _sorted(self) -> npt.NDArray[np.int64]:
        base = np.uint64(derive(Use.ORDER, self.seed, self.epoch, self.length))
        keys = mix_array(mix_array(np.arange(self.length, dtype=np.uint64) + base))
        return np.argsort(keys, kind="stable").astype(np.int64)

    @cached_property
    def _keys(self) -> list[np.uint64]:
        return [
            np.uint64(derive(Use.ORDER, self.seed, self.epoch, self.length, number))
            for number in range(_ROUNDS)
        ]

    def _walk(self, x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        x = self._feistel(x)
        outside = np.flatnonzero(x >= self.length)
        while outside.size:
            x[outside] = self._feistel(x[outside])
            outside = outside[x[outside] >= self.length]
        return x

    def _feistel(self, x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        bits = (self.length - 1).bit_length()
        low_bits = np.uint64(bits // 2)
        low_mask = np.uint64((1 << (bits // 2)) - 1)
        high_mask = np.uint64((1 << (bits - bits // 2)) - 1)
        high, low = x >> low_bits, x & low_mask
        for number, key in enumerate(self._keys):
            if number % 2 == 0:
                high = high ^ (mix_array(low + key) & high_mask)
            else:
                low = low ^ (mix_array(high + key) & low_mask)
        return (high << low_bits) | low
