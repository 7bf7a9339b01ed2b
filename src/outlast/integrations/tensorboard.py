"""TensorBoard: event files in one folder, which attempts add to."""

from __future__ import annotations

import os
import struct
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from outlast._errors import ConfigError
from outlast.agent.protocol import Ending
from outlast.integrations._need import need
from outlast.trainer.tracker import Row, TrackedRun

_HEADER = struct.Struct("<Q4x")
"""Of a record: length of its data, and a check sum of that."""
_CHECK_BYTES = 4
"""After its data."""
_LOOKED_AT = 64
"""Last records of a file that are read until one has metrics; others are its first, and what a crash left broken."""
_ID_SHOWN = 8


class TensorBoard:
    """Shows a run in TensorBoard.

    Args:
        log_dir: a folder. The run gets one in it, of its name and the first 8 digits of its id.

    Raises:
        ConfigError: tensorboard is not installed, or `log_dir` is a URL.
    """

    def __init__(self, log_dir: str | os.PathLike[str]) -> None:
        need("tensorboard", "tensorboard", "TensorBoard")
        if "://" in os.fspath(log_dir):
            msg = f"TensorBoard({os.fspath(log_dir)!r}): expected a folder; what this disk loses is written anew at the next start"
            raise ConfigError(msg)
        self._log_dir = Path(log_dir)
        self._writer: Any = None

    def open(self, run: TrackedRun) -> int | None:
        """Begin another file; those that are there say at which step the run is."""
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        if self._writer is not None:
            self._writer.close()
        folder = self._log_dir / f"{run.name}-{run.id[:_ID_SHOWN]}"
        newest = sorted(folder.glob("events.out.tfevents.*"), key=lambda path: path.stat().st_mtime_ns)[::-1]
        last = next((step for step in map(_last_step, newest) if step is not None), None)
        self._writer = EventFileWriter(str(folder))
        return last

    def write(self, rows: Sequence[Row]) -> None:
        """Add one record for each row, so that a step is there whole or not at all."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        for row in rows:
            values = [
                Summary.Value(tag=name, simple_value=float(value)) for name, value in row.values.items()
            ]
            self._writer.add_event(Event(step=row.step, wall_time=row.time_s, summary=Summary(value=values)))
        self._writer.flush()

    def close(self, outcome: Ending) -> None:  # noqa: ARG002 - a folder knows no states
        """Close the file."""
        if self._writer is not None:
            self._writer.close()


def _last_step(path: Path) -> int | None:
    """The last step of which a file holds metrics, None if it holds none; the records between are not read."""
    from google.protobuf.message import DecodeError
    from tensorboard.compat.proto.event_pb2 import Event

    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        places: deque[tuple[int, int]] = deque(maxlen=_LOOKED_AT)
        at = 0
        while at + _HEADER.size <= size:
            file.seek(at)
            (length,) = _HEADER.unpack(file.read(_HEADER.size))
            end = at + _HEADER.size + length + _CHECK_BYTES
            if end > size:
                break  # the process was killed as it wrote this
            places.append((at + _HEADER.size, length))
            at = end
        for start, length in reversed(places):
            file.seek(start)
            try:
                event = Event.FromString(file.read(length))
            except DecodeError:
                continue
            if event.HasField("summary"):
                return int(event.step)
    return None
