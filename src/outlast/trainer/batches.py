"""What `run.batches` and `run.enumerate` return: an iterable with a length, so that tqdm can show it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Batches(Generic[T]):
    """Iterates once; `len` is the number of batches in a whole epoch, wherever this attempt began."""

    def __init__(self, iterate: Callable[[], Iterator[T]], length: Callable[[], int]) -> None:
        self._iterate = iterate
        self._length = length

    def __iter__(self) -> Iterator[T]:
        return self._iterate()

    def __len__(self) -> int:
        return self._length()
