"""What a sampler of the user's drew in earlier epochs, for those whose order depends on it.

One may count its epochs in `__iter__`, or shuffle a list of its own in place. In a new process it stands as at epoch 0, and
comes to stand where it stood by drawing the earlier epochs again: indices only, of which millions take seconds.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import xxhash

from outlast._types import Json


class Past:
    """The epochs that a sampler was iterated for, with how much was drawn in each.

    Attributes:
        spans: [first epoch, last epoch, draws in each, whether it was seen to end (0 or 1)], the oldest first.
        order: digest of what was drawn in the last of them; None where that is not known.
    """

    def __init__(self) -> None:
        self.spans: list[list[int]] = []
        self.order: str | None = None
        self._epoch: int | None = None
        self._draws = 0
        self._ended = False
        self._digest: xxhash.xxh3_64 | None = None

    @property
    def begun(self) -> bool:
        """Whether the sampler was iterated in this process: then it stands where it does."""
        return self._epoch is not None

    def enter(self, epoch: int) -> None:
        """Close the epoch before, and begin another."""
        if self._epoch is not None:
            self._close()
        self._epoch, self._draws, self._ended, self._digest = epoch, 0, False, xxhash.xxh3_64()

    def drew(self, count: int, indices: Any, *, ended: bool) -> None:
        """Count draws of this epoch; `indices` None: what they were is not known."""
        self._draws += count
        self._ended |= ended
        if count and self._digest is not None:
            values = None if indices is None else _numbers(indices)
            if values is None:
                self._digest = None
            else:
                self._digest.update(values)

    def digest(self) -> str | None:
        """Digest what was drawn in this epoch; None where that is not known."""
        return None if self._digest is None else self._digest.hexdigest()

    def state(self, *, ended: bool) -> Json:
        """Return it all as JSON; `ended`: the epoch is over, whether or not the sampler was asked once more."""
        return {
            "spans": [list(span) for span in self.spans],
            "order": self.order,
            "epoch": self._epoch,
            "draws": self._draws,
            "ended": self._ended or ended,
            "now": self.digest(),
        }

    def load(self, state: Json, epoch: int) -> None:
        """Take over what was saved, up to an epoch that begins, or goes on."""
        self.spans, self.order = [list(span) for span in state["spans"]], state["order"]
        if state["epoch"] is not None and state["epoch"] != epoch:
            self._epoch, self._draws, self._ended = state["epoch"], state["draws"], state["ended"]
            self._close()
            self.order = state["now"]
            self._epoch = None

    def forget(self, kept: int = 0) -> None:
        """Drop all epochs but the first `kept`: the sampler was not made to draw them."""
        epochs = list(self.epochs())[:kept]
        self.spans, self.order = [], None
        for epoch, draws, ended in epochs:
            self._add(epoch, draws, ended=ended)

    def epochs(self) -> Iterator[tuple[int, int, bool]]:
        """Give (epoch, draws, whether it ended) of each."""
        for first, last, draws, ended in self.spans:
            for epoch in range(first, last + 1):
                yield epoch, draws, bool(ended)

    @property
    def draws(self) -> int:
        """Draws of all epochs together."""
        return sum((last - first + 1) * draws for first, last, draws, _ in self.spans)

    @property
    def whole(self) -> bool:
        """Whether no epoch is missing between the first and the last: none was read from another loader."""
        return all(left[1] + 1 == right[0] for left, right in zip(self.spans, self.spans[1:], strict=False))

    def _close(self) -> None:
        assert self._epoch is not None
        self.order = self.digest()
        self._add(self._epoch, self._draws, ended=self._ended)

    def _add(self, epoch: int, draws: int, *, ended: bool) -> None:
        last = self.spans[-1] if self.spans else None
        if last is not None and last[1:] == [epoch - 1, draws, int(ended)]:
            last[1] = epoch
        else:
            self.spans.append([epoch, epoch, draws, int(ended)])


_pasts: WeakKeyDictionary[Any, Past] = WeakKeyDictionary()


def past_of(parts: list[Any]) -> Past | None:
    """Return a sampler's past; None where no epoch of it depends on earlier ones.

    That is so where it is torch's own, or is told its epoch; what it wraps likewise.

    Args:
        parts: the sampler, and those it wraps.
    """
    if all(_is_torchs(part) or callable(getattr(part, "set_epoch", None)) for part in parts):
        return None
    try:
        return _pasts.setdefault(parts[0], Past())
    except TypeError:  # it cannot be hashed, or not be referred to weakly
        return Past()


def _is_torchs(part: Any) -> bool:
    return type(part).__module__.partition(".")[0] in {"torch", "builtins"}


def _numbers(indices: Any) -> bytes | None:
    """The bytes of integers, however they are batched; None for other indices."""
    try:
        values = np.asarray(indices)
        return values.astype(np.int64).tobytes() if values.dtype.kind in "iu" else None
    except (TypeError, ValueError, RuntimeError):
        return None
