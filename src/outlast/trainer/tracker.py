"""What an experiment tracker must do: three calls, made one at a time in a thread of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from outlast.agent.protocol import Ending


@dataclass(frozen=True)
class TrackedRun:
    """The run that is tracked.

    Attributes:
        id: made with the run and the same on every machine, 16 hex digits; another one for each run of `resume="never"`.
        name: last part of the run's place.
        attempt: which start of this run this is, from 1.
    """

    id: str
    name: str
    attempt: int


@dataclass(frozen=True)
class Row:
    """All metrics of one step.

    Attributes:
        time_s: when the last of them was logged, in seconds since 1970.
    """

    step: int
    time_s: float
    values: dict[str, float]


class Tracker(Protocol):
    """Shows a run's metrics to people. It may fail and it may hang: neither training nor saving waits for it."""

    def open(self, run: TrackedRun) -> int | None:
        """Continue what this tracker knows of the run, or begin; called again after a failure.

        Returns:
            The last step that it has, whole; None where it has none.
        """
        ...

    def write(self, rows: Sequence[Row]) -> None:
        """Take rows whose steps follow what `open` returned and what was written since; no step comes twice."""
        ...

    def close(self, outcome: Ending) -> None:
        """Finish; this process ends. `preempted`: the run goes on elsewhere. `superseded`: it does so already."""
        ...
