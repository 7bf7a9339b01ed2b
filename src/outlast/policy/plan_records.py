"""What a plan is made from (pure): the job, what things cost, what is known of spot, and what a replay says."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

from outlast._errors import ConfigError
from outlast.policy.capacity import Floats


@dataclass(frozen=True)
class Price:
    """USD, per what the field that holds it says.

    Attributes:
        usd: at least 0.
        source: who says so.
        age_s: how old that is; None where nobody knows.
    """

    usd: float
    source: str = "given"
    age_s: float | None = None


NOTHING = Price(0.0, "not given: counted as 0")


@dataclass(frozen=True)
class Prices:
    """What things cost; machines per hour of one of them."""

    spot: Price
    on_demand: Price
    egress_per_gb: Price = NOTHING
    storage_per_gb_month: Price = NOTHING
    per_1000_requests: Price = NOTHING

    def __post_init__(self) -> None:
        for name in ("spot", "on_demand"):
            _check(
                f"the price of {name.replace('_', '-')}",
                getattr(self, name).usd,
                "USD per hour above 0",
                strictly=True,
            )
        for name in ("egress_per_gb", "storage_per_gb_month", "per_1000_requests"):
            _check(f"the price {name}", getattr(self, name).usd, "USD of at least 0")


@dataclass(frozen=True)
class Job:
    """What is to be done, and what interruptions cost it.

    Attributes:
        work_s: how long it would run undisturbed.
        deadline_s: after its beginning.
        state_bytes: what a save writes, of the whole job.
        bytes_per_s: to the store, of the whole job.
        pause_s: for how long training stands still at a save.
        provisioning_s: from asking for a machine until the script starts there, paid for.
        restart_s: from there until steps are made again: imports, loading.
        notice_s: from notice to power-off; 0 where there is none.
        max_lost_s: the most work that an interruption may cost.
        nodes: machines that it takes, one of which cannot go on without the others.
        is_elastic: unless it goes on with those that are left.
        runs: over which the effort is spread.
        engineering_usd: the one-time effort of making it ready for spot.
        whole_bytes: what a checkpoint holds, and a new machine reads; None: what a save writes. More where frozen parameters are
            written once.
    """

    work_s: float
    deadline_s: float
    state_bytes: int
    bytes_per_s: float
    pause_s: float
    provisioning_s: float
    restart_s: float
    notice_s: float
    max_lost_s: float = 600.0
    nodes: int = 1
    is_elastic: bool = False
    runs: int = 1
    engineering_usd: float = 0.0
    whole_bytes: int | None = None

    def __post_init__(self) -> None:
        for name in ("work_s", "deadline_s", "state_bytes", "bytes_per_s", "max_lost_s", "nodes", "runs"):
            _check(name, getattr(self, name), "a finite number above 0", strictly=True)
        for name in ("pause_s", "provisioning_s", "restart_s", "notice_s", "engineering_usd"):
            _check(name, getattr(self, name), "a finite number of at least 0")
        needs_s = self.work_s + self.start_s
        if self.deadline_s < needs_s:
            msg = (
                f"deadline_s is {self.deadline_s:.0f}; expected at least {needs_s:.0f}, which work and one start take on demand: "
                "no machine of this speed keeps it"
            )
            raise ConfigError(msg)

    @property
    def start_s(self) -> float:
        """From asking for a machine until steps are made."""
        return self.provisioning_s + self.restart_s

    @property
    def whole_gb(self) -> float:
        """What a checkpoint holds, in GB."""
        return max(self.whole_bytes or 0, self.state_bytes) / 1e9

    @property
    def upload_s(self) -> float:
        """From a save until it is durable."""
        return self.state_bytes / self.bytes_per_s


@dataclass(frozen=True)
class Risk:
    """What is known of spot machines.

    Attributes:
        per_hour: interruptions of one machine while it is held.
        recall: share of them whose notice leads to a durable save where that fits, 0 to 1.
        source: of the rate.
        recall_source: of the share.
        is_of_all: the rate is that of all machines of the job together, as traces of several nodes say it.
    """

    per_hour: float
    recall: float
    source: str
    recall_source: str = "given"
    is_of_all: bool = False

    def __post_init__(self) -> None:
        _check("hazard per hour", self.per_hour, "a finite number of at least 0")
        _check("recall", self.recall, "a share from 0 to 1")
        if self.recall > 1:
            msg = f"recall is {self.recall!r}; expected a share from 0 to 1"
            raise ConfigError(msg)


@dataclass(frozen=True)
class Question:
    """What is replayed.

    Attributes:
        work_s: with what saves take.
        deadline_s: after the beginning.
        overhead_s: from a start until work goes on, with the work that was lost.
        usd_per_hour: of all machines: spot, on-demand.
        per_hour: interruptions of the job while it is on spot.
    """

    work_s: float
    deadline_s: float
    overhead_s: float
    usd_per_hour: tuple[float, float]
    per_hour: float


@dataclass(frozen=True)
class Forecast:
    """What came of windows that may come.

    Attributes:
        machines_usd: [n], of each.
        weights: [n], how likely each is; they add up to 1.
        spot_h, on_demand_h: mean hours in which the machines of the job were held.
        starts: mean, the first one included.
        finish_h: mean, after the beginning.
        windows: how many were replayed, and of what.
    """

    machines_usd: Floats
    weights: Floats
    spot_h: float
    on_demand_h: float
    starts: float
    finish_h: float
    windows: str = field(default="")

    @property
    def mean_usd(self) -> float:
        """Of the machines."""
        return float(self.machines_usd @ self.weights)


Ask: TypeAlias = Callable[[Question], Forecast]
"""Replays our policy; `sim/forecast.py` does."""


def _check(name: str, value: float, expected: str, *, strictly: bool = False) -> None:
    if not math.isfinite(value) or value < 0 or (strictly and value == 0):
        msg = f"{name} is {value!r}; expected {expected}"
        raise ConfigError(msg)
