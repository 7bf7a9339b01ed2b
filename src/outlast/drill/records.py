"""Record files: what a script itself wrote down, one durable line for each optimizer step and each epoch's tail.

The bundled example writes them, and `recorder.py` does for any other script. A drill believes these lines and the
bytes on the store, and nothing that Outlast says.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from outlast._types import Json, settle


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One line. Without `tail` it is an optimizer step; `step` is the counter that is saved with the model."""

    pid: int
    time: float
    """Seconds since the epoch, by the clock that also stamps the store's files."""
    step: int
    epoch: int | None = None
    samples: tuple[Json, ...] = ()
    """Ids of the samples (or digests of the batches) that this step used, in order."""
    lr: str | None = None
    weights: str | None = None
    tail: Literal["begin", "end"] | None = None
    tails: int | None = None
    valid: str | None = None
    best: str | None = None


class Follower:
    """Reads a record file while it grows; `lines` holds every whole line so far."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: list[Line] = []
        self._at = 0

    def poll(self) -> list[Line]:
        """Return the lines that are new since the last call; a line still being written waits."""
        try:
            size = self.path.stat().st_size
        except FileNotFoundError:
            return []
        if size <= self._at:
            return []
        with self.path.open("rb") as file:
            file.seek(self._at)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._at += len(whole)
        new = [line for line in map(_parse, whole.splitlines()) if line is not None]
        self.lines += new
        return new

    @property
    def step(self) -> int:
        """The counter of the last optimizer step; 0 before the first."""
        return last_step(self.lines)


def read_lines(path: Path) -> list[Line]:
    """Return every whole line of a record file."""
    follower = Follower(path)
    follower.poll()
    return follower.lines


def last_step(lines: list[Line]) -> int:
    """Return the counter of the last optimizer step in `lines`; 0 if there is none."""
    return next((line.step for line in reversed(lines) if line.tail is None), 0)


def _parse(data: bytes) -> Line | None:
    try:
        return msgspec.json.decode(data, type=Line)
    except msgspec.DecodeError:
        return None  # cut by a kill: the process had not told anybody that this line exists


settle(Line)
