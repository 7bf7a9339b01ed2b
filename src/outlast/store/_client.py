"""How long a store in a bucket is patient: with a request that stands still, with a fault, and in all."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from obstore.exceptions import BaseError

from outlast._errors import ConfigError, StoreUnavailable
from outlast.store._faults import translated

PATIENCE_VARIABLE = "OUTLAST_STORE_PATIENCE_S"

Result = TypeVar("Result")


@dataclass(frozen=True)
class Patience:
    """How long a store is asked before it counts as out of reach.

    What bounds a request is a time in which nothing moved, not its size. The first try of an operation is cut off early,
    so that one request that hangs costs seconds; those after it wait longer, so that a store or a line that is only slow
    is not given up. The default of a minute outlasts the usual "slow down" of S3.
    """

    total_s: float = 60.0

    @classmethod
    def from_environment(cls) -> Patience:
        """Read `$OUTLAST_STORE_PATIENCE_S`, in seconds."""
        text = os.environ.get(PATIENCE_VARIABLE, "")
        if not text:
            return cls()
        try:
            total_s = float(text)
        except ValueError:
            total_s = 0.0
        if not 0 < total_s < float("inf"):
            msg = f"{PATIENCE_VARIABLE}={text!r}: expected a number of seconds above 0, e.g. 60"
            raise ConfigError(msg)
        return cls(total_s)

    @property
    def quick_s(self) -> float:
        """How long a request of the first try may stand still: 5 s of the default minute."""
        return self.total_s / 12

    @property
    def request_s(self) -> float:
        """How long a request may stand still."""
        return self.total_s / 4

    @property
    def repeat_s(self) -> float:
        """No request is repeated by the client once this time has passed since the first."""
        return self.total_s / 6

    @property
    def backoff_s(self) -> float:
        """The longest pause between two requests."""
        return self.total_s / 30


def persist(
    patience: Patience,
    name: str,
    ask: Callable[[int], Result],
    *,
    tries: int = 1,
    moved: Callable[[], int] = lambda: 0,
) -> Result:
    """Call `ask` with the number of the try, and again after a transient fault while another call fits into the patience.

    `tries` calls are made in any case: an upload may outlast the patience without a fault. `moved` counts the bytes
    that have come so far; a call that adds to them starts the patience anew.

    Raises:
        StoreError: as `translated` says.
    """
    start = time.monotonic()
    number = so_far = 0
    pause_s = patience.backoff_s / 20
    while True:
        try:
            return ask(number)
        except (BaseError, OSError) as error:
            number += 1
            if moved() > so_far:
                so_far, start, pause_s = moved(), time.monotonic(), patience.backoff_s / 20
            fault = translated(error, name)
            again_until = start + patience.total_s - patience.request_s - patience.repeat_s
            too_late = number >= tries and time.monotonic() + pause_s > again_until
            if too_late or not isinstance(fault, StoreUnavailable):
                raise fault from error
        # Full jitter (AWS Architecture Blog, "Exponential Backoff and Jitter"): many ranks must not come back at once.
        time.sleep(random.uniform(0, pause_s))  # noqa: S311 - no secret
        pause_s = min(2 * pause_s, patience.backoff_s)
