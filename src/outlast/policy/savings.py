"""What a run has cost, and what the same work would have cost on demand (pure).

A price that is not known stays unknown: what it would belong to is left out of the sums, and said beside them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

_HOUR_S = 3600.0


@dataclass(frozen=True)
class Bill:
    """One attempt's time on its machine.

    Attributes:
        pool: where it ran.
        seconds: from its start to its last sign of life.
        usd_per_hour: what that is paid with; None where nobody said.
        on_demand_usd_per_hour: what such a machine costs on demand; None where nobody said.
        lost_s: of its seconds, those whose work the next attempt did again; None where that is not known.
        saving_s: of its seconds, those that training stood still for saves; None where that is not known.
    """

    pool: str
    seconds: float
    usd_per_hour: float | None = None
    on_demand_usd_per_hour: float | None = None
    lost_s: float | None = 0.0
    saving_s: float | None = 0.0


@dataclass(frozen=True)
class Savings:
    """Of a whole run. Amounts are None where no price is known at all.

    Attributes:
        seconds: of machines.
        priced_s: of those, the ones whose price is known.
        paid_usd: for these.
        compared_s: of those, the ones whose price on demand is known as well.
        on_demand_usd: what the work of these would have cost on demand: their seconds without the lost ones, since a machine that stays
            loses none.
        saved_usd: that, less what was paid for these.
        saved_share: the same of `on_demand_usd`.
        lost_s: work that was done again, as far as it is known; it is in `paid_usd`.
        lost_usd: what was paid for it.
        saving_s: for how long training stood still for saves, as far as it is known.
        saving_usd: what was paid for that.
    """

    seconds: float
    priced_s: float
    paid_usd: float | None
    compared_s: float
    on_demand_usd: float | None
    saved_usd: float | None
    saved_share: float | None
    lost_s: float
    lost_usd: float | None
    saving_s: float
    saving_usd: float | None


def savings(bills: Sequence[Bill]) -> Savings:
    """Sum up."""
    priced = [bill for bill in bills if bill.usd_per_hour is not None]
    compared = [bill for bill in priced if bill.on_demand_usd_per_hour is not None]
    on_demand_usd = _usd(
        compared, lambda b: b.seconds - (b.lost_s or 0.0), lambda b: b.on_demand_usd_per_hour
    )
    paid_usd = _usd(compared, lambda b: b.seconds, lambda b: b.usd_per_hour)
    saved_usd = None if on_demand_usd is None or paid_usd is None else on_demand_usd - paid_usd
    return Savings(
        seconds=math.fsum(bill.seconds for bill in bills),
        priced_s=math.fsum(bill.seconds for bill in priced),
        paid_usd=_usd(priced, lambda b: b.seconds, lambda b: b.usd_per_hour),
        compared_s=math.fsum(bill.seconds for bill in compared),
        on_demand_usd=on_demand_usd,
        saved_usd=saved_usd,
        saved_share=saved_usd / on_demand_usd if saved_usd is not None and on_demand_usd else None,
        lost_s=math.fsum(bill.lost_s or 0.0 for bill in bills),
        lost_usd=_usd(priced, lambda b: b.lost_s or 0.0, lambda b: b.usd_per_hour),
        saving_s=math.fsum(bill.saving_s or 0.0 for bill in bills),
        saving_usd=_usd(priced, lambda b: b.saving_s or 0.0, lambda b: b.usd_per_hour),
    )


def _usd(
    bills: Sequence[Bill], seconds: Callable[[Bill], float], usd_per_hour: Callable[[Bill], float | None]
) -> float | None:
    """None where there is nothing to sum up."""
    return math.fsum(seconds(b) * (usd_per_hour(b) or 0.0) / _HOUR_S for b in bills) if bills else None
