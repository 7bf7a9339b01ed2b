"""Interruptions that are announced: from where, how long before, at which moment; and where the announcement is made."""

from __future__ import annotations

import contextlib
import math
import random
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Literal, get_args

from outlast.drill import metadata
from outlast.drill.metadata import FAULTS, Cloud, Fault, MetadataService
from outlast.drill.records import Line, last_step
from outlast.drill.schedule import Kind, Planned

Source = Literal["aws", "gcp", "azure", "alibaba", "tencent", "slurm", "sigterm", "none"]
"""Who tells: a cloud's metadata service, Slurm by SIGUSR2, a scheduler by SIGTERM, or nobody."""
CLOUDS = get_args(Cloud)
SIGNALS: Mapping[str, signal.Signals] = {"slurm": signal.SIGUSR2, "sigterm": signal.SIGTERM}
CANCELLED_AFTER_S = 60.0
"""What is taken back announces an end so far off that nobody has left by then."""
SPARING: tuple[Fault, ...] = ("cancelled", "sibling")
"""What is announced so leaves this machine running."""
DELAYS_S: Mapping[Fault, float] = {
    "404": 1.5,
    "500": 1.5,
    "slow": 4.0,
    "token-expired": 1.0,
    "moved-earlier": 1.0,
}
"""By so much a fault keeps a notice from being heard: two answers that come twice a second, or take 1.5 s each."""


class Moment(StrEnum):
    """What the run does as it is told."""

    WARM_UP = "warm-up"
    RESUMING = "resuming"
    TRAINING = "training"
    SAVING = "saving"
    EPOCH_END = "epoch-end"
    VALIDATION = "validation"


_STEPS_IN_WARNING = 8
_LEAST_PACE_S = 0.05
AT_START = frozenset({Moment.WARM_UP, Moment.RESUMING})
"""Moments of the start that follows the interruption before."""


@dataclass(frozen=True)
class Warned:
    """How an end is announced.

    Attributes:
        source: who tells.
        warning_s: from the announcement to the end; clouds name whole seconds, the next one after that.
        moment: see `Moment`.
        fault: of the service that tells; None: none.
    """

    source: Source
    warning_s: float
    moment: Moment
    fault: Fault | None = None


@dataclass(frozen=True, kw_only=True)
class Notices:
    """What a drill announces.

    Attributes:
        sources: drawn from, for each interruption.
        warnings_s: the shortest and the longest warning; drawn evenly by their logarithm.
        count: how many interruptions.
        moments: drawn from.
        faults: whether half of the clouds' notices come with a fault of their service.
    """

    sources: Sequence[Source]
    warnings_s: tuple[float, float]
    count: int
    moments: Sequence[Moment] = tuple(Moment)
    faults: bool = True


def schedule_notices(seed: int, notices: Notices, undisturbed: Sequence[Line]) -> list[Planned]:
    """Draw the order and the moments; the same seed and the same undisturbed run give the same schedule."""
    draw = random.Random(seed)  # noqa: S311 - repeats a drill, guards nothing
    steps = last_step(list(undisturbed))
    moments: list[Moment] = []
    while len(moments) < notices.count:
        moments += draw.sample(notices.moments, len(notices.moments))
    stretch = steps / (notices.count + 1)
    found = []
    for index, moment in enumerate(moments[: notices.count]):
        source = draw.choice(notices.sources)
        low, high = (max(seconds, 0.1) for seconds in notices.warnings_s)
        warning_s = math.exp(draw.uniform(math.log(low), math.log(high)))
        faults: list[Fault] = [fault for fault, clouds in FAULTS.items() if source in clouds]
        if source == "gcp":
            faults.remove("cancelled")  # the end is so far off as the grace is, and that is short
        fault = draw.choice(faults) if notices.faults and faults and draw.random() < 1 / 2 else None
        at = int(draw.uniform(index, index + 1) * stretch) + 1
        warned = Warned(
            source,
            warning_s if notices.warnings_s[1] > 0 else 0.0,
            Moment.TRAINING if fault in SPARING else moment,
            fault,
        )
        found.append(Planned(Kind.NOTICE, at, draw.uniform(0.0, 0.3), warned))
    return found


def pace_s(plan: Sequence[Planned], steps: int) -> float:
    """Return how much longer each step of an interrupted run is to take, so that it is not over before all was announced.

    A run that is told by a cloud trains on through most of its warning. A step stays short beside the shortest warning.
    """
    warnings = [item.warned.warning_s for item in plan if item.warned is not None]
    if not warnings or steps < 1:
        return 0.0
    return max(min(sum(warnings) / steps, min(warnings) / _STEPS_IN_WARNING), _LEAST_PACE_S)


class Announcer:
    """Tells of ends, as each source does; the services run until `announcer` ends."""

    def __init__(self, services: Mapping[Cloud, MetadataService]) -> None:
        self._services = services

    def environment(self, warned: Warned | None, grace_s: float) -> dict[str, str]:
        """The variables of a machine that goes as `warned` says: where it listens, how long it believes to have."""
        if warned is None or warned.source == "none":
            return {"OUTLAST_NOTICE": "signals", "OUTLAST_GRACE_S": str(grace_s)}
        grace = {"OUTLAST_GRACE_S": f"{warned.warning_s:.3f}"}
        if warned.source in SIGNALS:
            return {"OUTLAST_NOTICE": "signals", **grace}
        cloud = _cloud(warned.source)
        return metadata.environment(self._services[cloud], cloud) | grace

    def arm(self, warned: Warned) -> None:
        """Have the service go wrong, or its next notice."""
        if warned.fault is not None:
            cloud = _cloud(warned.source)
            metadata.arm(self._services[cloud], cloud, warned.fault)

    def announce(self, source: Source, warning_s: float) -> float:
        """Have a cloud announce the end; return when it is, seconds since the epoch."""
        cloud = _cloud(source)
        end = time.time() + warning_s
        if cloud != "gcp":
            end = math.ceil(end)  # the others name whole seconds
        metadata.announce(self._services[cloud], cloud, datetime.fromtimestamp(end, UTC))
        return end

    def forget(self, source: Source) -> None:
        """The machine is another one: nothing is announced for it, and no sibling's event stands."""
        if source in CLOUDS:
            cloud = _cloud(source)
            service = self._services[cloud]
            service.sibling = None
            service.passing.clear()
            service.armed.clear()
            metadata.cancel(service, cloud)


@contextlib.contextmanager
def announcer(sources: Sequence[Source]) -> Iterator[Announcer]:
    """Serve what the clouds among `sources` have."""
    with contextlib.ExitStack() as stack:
        clouds = [_cloud(source) for source in dict.fromkeys(sources) if source in CLOUDS]
        yield Announcer({cloud: stack.enter_context(metadata.metadata_service(cloud)) for cloud in clouds})


def _cloud(source: Source) -> Cloud:
    assert source in CLOUDS
    return source  # type: ignore[return-value]  # one of those
