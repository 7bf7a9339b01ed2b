"""Small types that several folders share."""

from __future__ import annotations

from enum import IntEnum, StrEnum
from typing import Any, Literal, TypeAlias

import msgspec

Json: TypeAlias = Any
"""What `json.loads` can return: None, bool, int, float, str, list and dict with string keys."""

FORMAT_VERSION = 1
"""Version of the layout on the store; a reader refuses a larger one."""


class Reason(StrEnum):
    """Why a checkpoint was saved."""

    INTERVAL = "interval"
    USER = "user"
    FINAL = "final"
    EMERGENCY = "emergency"

    @property
    def strength(self) -> int:
        """Rank among the reasons: the strongest of a checkpoint's manifests is its commit's (rule 3)."""
        return list(Reason).index(self)


class Guarantee(IntEnum):
    """What a resume promises; a larger value promises more."""

    APPROXIMATE = 0
    NO_REPEAT_NO_SKIP = 1
    SAME_ORDER = 2
    BIT_EXACT = 3

    @property
    def label(self) -> str:
        """The name that people read, e.g. `bit-exact`."""
        return self.name.lower().replace("_", "-")


class Best(msgspec.Struct, frozen=True):
    """A metric whose best checkpoint is kept, and which way is better."""

    metric: str
    mode: Literal["min", "max"]


class Keep(msgspec.Struct, frozen=True):
    """Which checkpoints a run keeps, beside those that are always kept (DESIGN.md rule 10)."""

    last: int = 3
    every_s: float | None = None
    every_steps: int | None = None
    best: Best | None = None


class MaxLost(msgspec.Struct, frozen=True):
    """The most work that an interruption without a notice may cost: seconds, or a share of the run so far. One of them is None."""

    seconds: float | None
    share: float | None = None


class Capacity(msgspec.Struct, frozen=True, kw_only=True):
    """What a machine is and costs. What is not known is None: no price is never taken as free."""

    pool: str
    machine_type: str | None = None
    usd_per_hour: float | None = None
    usd_from: str | None = None
    """Who said so."""
    on_demand_usd_per_hour: float | None = None


class Logged(msgspec.Struct, frozen=True, array_like=True):
    """All metrics of one step; where a name was logged more than once, the last value counts."""

    step: int
    utc: str
    """ISO 8601, of the last of them."""
    values: dict[str, float]


def settle(*kinds: type[msgspec.Struct]) -> None:
    """Have msgspec find out now how records of these kinds are decoded.

    It does so at a kind's first use, and a second thread that comes meanwhile decodes by what is half known, which ends the process
    (SIGSEGV, msgspec 0.22). A module that is imported runs in one thread.
    """
    for kind in kinds:
        msgspec.json.Decoder(kind)
