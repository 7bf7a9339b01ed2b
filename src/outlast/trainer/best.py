"""The best value so far of the metric that `keep_best` names."""

from __future__ import annotations

import math
from collections.abc import Mapping

from outlast._types import Best, Json


class BestSoFar:
    """Sees what is logged.

    Attributes:
        due: a value that is the best so far, and in no snapshot yet; None while there is none.
    """

    def __init__(self, best: Best | None) -> None:
        self._best = best
        self._value: float | None = None
        self.due: float | None = None

    def see(self, values: Mapping[str, float]) -> bool:
        """Look at metrics; whether one of them is the best so far. Nan and infinities never are."""
        best = self._best
        value = values.get(best.metric) if best is not None else None
        if best is None or value is None or not math.isfinite(value):
            return False
        known = self._value
        if known is not None and not (value < known if best.mode == "min" else value > known):
            return False
        self._value = self.due = float(value)
        return True

    @property
    def position(self) -> Json:
        """The best so far, to be saved; None where there is none."""
        best = self._best
        if best is None or self._value is None:
            return None
        return {"metric": best.metric, "mode": best.mode, "value": self._value}

    def resume(self, position: Json) -> None:
        """Go on from a saved one, if it is of this metric and meant the same way."""
        best = self._best
        if (
            best is not None
            and position
            and (position["metric"], position["mode"]) == (best.metric, best.mode)
        ):
            self._value = float(position["value"])
