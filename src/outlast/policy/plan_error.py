"""How far a plan was off: what it expected of a run against what the run's ledger says (pure)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Planned:
    """What a plan expects of a run.

    Attributes:
        machines_usd: mean cost of the machines: that of the run without egress, storage, requests and effort, which no ledger has.
        low_usd, high_usd: between which the same lies in 90 % of the cases.
        interruptions, lost_h, saving_h: how many, work that they cost, and time that saves take.
    """

    machines_usd: float
    low_usd: float
    high_usd: float
    interruptions: float
    lost_h: float
    saving_h: float


@dataclass(frozen=True)
class Realised:
    """What came of it; None where it is not known of the whole run.

    Attributes:
        is_finished: else it is what came of it so far.
    """

    is_finished: bool
    machines_usd: float | None
    interruptions: int | None
    lost_h: float | None
    saving_h: float | None


@dataclass(frozen=True)
class Compared:
    """One line of the comparison.

    Attributes:
        name: of what.
        unit: USD, h, or nothing for a count.
        expected: by the plan.
        realised: None where it is not known.
        error: expected less realised; None where that is not known, or the run has not finished.
        error_share: the same of what was realised; None where that was nothing.
    """

    name: str
    unit: str
    expected: float
    realised: float | None
    error: float | None
    error_share: float | None


def plan_error(planned: Planned, realised: Realised) -> list[Compared]:
    """Compare them, the cost first."""
    found = []
    for name, unit, expected, was in (
        ("machines", "USD", planned.machines_usd, realised.machines_usd),
        ("interruptions", "", planned.interruptions, realised.interruptions),
        ("lost work", "h", planned.lost_h, realised.lost_h),
        ("save overhead", "h", planned.saving_h, realised.saving_h),
    ):
        error = expected - was if was is not None and realised.is_finished else None
        found.append(
            Compared(name, unit, expected, was, error, error / was if error is not None and was else None)
        )
    return found


def is_inside(planned: Planned, realised: Realised) -> bool | None:
    """Whether the cost lies in the interval that 90 % of the cases lie in; None where it is not known, or the run has not finished."""
    if realised.machines_usd is None or not realised.is_finished:
        return None
    return planned.low_usd <= realised.machines_usd <= planned.high_usd
