"""What a run has cost, what the same work would have cost on demand, and what it would have cost with hindsight (pure).

What is not known stays unknown: an attempt whose price, loss or saves nobody knows is left out of the sums that need them, and said beside them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

_HOUR_S = 3600.0


@dataclass(frozen=True)
class Bill:
    """One attempt's time on its machines.

    Attributes:
        pool: where it ran.
        seconds: from its start to its last sign of life.
        usd_per_hour: what one of its machines is paid with; None where nobody said.
        on_demand_usd_per_hour: what such a machine costs on demand; None where nobody said.
        lost_s: of its seconds, those whose work the next attempt did again; None where that is not known.
        saving_s: of its other seconds, those that training stood still for saves; None where that is not known.
        is_restart: it went on from a checkpoint.
        start_s: of its seconds, those before its first step; None where that is not known.
        pause_s: for how long training stands still for one save; None where nobody measured it.
        machines: that it held, all of them at that price.
    """

    pool: str
    seconds: float
    usd_per_hour: float | None = None
    on_demand_usd_per_hour: float | None = None
    lost_s: float | None = 0.0
    saving_s: float | None = 0.0
    is_restart: bool = False
    start_s: float | None = 0.0
    pause_s: float | None = 0.0
    machines: int = 1


@dataclass(frozen=True)
class Savings:
    """Of a whole run. Amounts are None where there is no attempt of which all is known that they need.

    Attributes:
        seconds: of machines: two of them for an hour are two hours.
        priced_s: of those, the ones whose price is known.
        paid_usd: for these.
        compared_s: of those, the ones of attempts of which `steady_s` and the price on demand are known as well.
        on_demand_usd: what the work of these would have cost on demand: `steady_s` of each.
        saved_usd: that, less what was paid for these.
        saved_share: the same of `on_demand_usd`; None where that is nothing.
        lost_s: of the run, work that was done again, as far as it is known; it is in `paid_usd`.
        lost_usd: what was paid for it.
        saving_s: for how long training stood still for saves, as far as it is known.
        saving_usd: what was paid for that.
        hindsight_s: of `priced_s`, the seconds of attempts of which `least_s` is known.
        optimum_usd: what these would have cost had every interruption been known beforehand: `least_s` of each, at its own price.
        over_optimum: by which share more than that was paid for these.
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
    hindsight_s: float
    optimum_usd: float | None
    over_optimum: float | None


def savings(bills: Sequence[Bill]) -> Savings:
    """Sum up."""
    priced = [bill for bill in bills if bill.usd_per_hour is not None]
    compared = [b for b in priced if b.on_demand_usd_per_hour is not None and steady_s(b) is not None]
    on_demand_usd = _usd(compared, lambda b: steady_s(b) or 0.0, lambda b: b.on_demand_usd_per_hour)
    paid_usd = _usd(compared, _whole_s)
    saved_usd = None if on_demand_usd is None or paid_usd is None else on_demand_usd - paid_usd
    known = [bill for bill in priced if least_s(bill) is not None]
    optimum_usd, was_usd = _usd(known, lambda b: least_s(b) or 0.0), _usd(known, _whole_s)
    return Savings(
        seconds=_machines_s(bills),
        priced_s=_machines_s(priced),
        paid_usd=_usd(priced, _whole_s),
        compared_s=_machines_s(compared),
        on_demand_usd=on_demand_usd,
        saved_usd=saved_usd,
        saved_share=saved_usd / on_demand_usd if saved_usd is not None and on_demand_usd else None,
        lost_s=math.fsum(bill.lost_s or 0.0 for bill in bills),
        lost_usd=_usd([b for b in priced if b.lost_s is not None], lambda b: b.lost_s or 0.0),
        saving_s=math.fsum(bill.saving_s or 0.0 for bill in bills),
        saving_usd=_usd([b for b in priced if b.saving_s is not None], lambda b: b.saving_s or 0.0),
        hindsight_s=_machines_s(known),
        optimum_usd=optimum_usd,
        over_optimum=was_usd / optimum_usd - 1 if was_usd is not None and optimum_usd else None,
    )


def steady_s(bill: Bill) -> float | None:
    """Return what of an attempt's time the same work takes on a machine that stays, seconds; None where what that needs is not known.

    Such a machine loses nothing and is started once, so that neither the lost seconds nor the start of an attempt that went on from a checkpoint
    count. It saves as often.
    """
    if bill.lost_s is None:
        return None
    kept_s = bill.seconds - bill.lost_s
    if not bill.is_restart or kept_s <= 0:
        return kept_s
    return None if bill.start_s is None else max(kept_s - bill.start_s, 0.0)


def least_s(bill: Bill) -> float | None:
    """Return what of an attempt's time the same work takes with hindsight, seconds; None where what that needs is not known.

    The same work, on the same machines, with every interruption known beforehand. Of an attempt these stay paid:

    - its start, until its first step: that a machine is to be set up cannot be foreseen away;
    - its training, without the work that the next attempt did again: all of it is kept, so it is done once. Of the two times that such work was
      paid for, the one that was lost goes;
    - one save, right before its end, of one measured pause; all its other saves go, since nothing interrupts before.

    An attempt that lost all its work keeps its start and one save. None takes longer than it did.

    It is the least for the machines that were held, and no more than that. A ledger does not have capacity that nobody held, so it is not
    known whether a cheaper pool was there, or whether waiting would have been cheaper; nor what was paid before an attempt began. Nor are
    attempts left out that the work would not have needed any more.
    """
    if bill.lost_s is None or bill.saving_s is None or bill.pause_s is None:
        return None
    kept_s = bill.seconds - bill.lost_s
    if bill.start_s is None and kept_s <= 0:
        return None  # its start is all that would be left
    return min(max(kept_s - bill.saving_s, bill.start_s or 0.0) + bill.pause_s, bill.seconds)


def _whole_s(bill: Bill) -> float:
    return bill.seconds


def _machines_s(bills: Sequence[Bill]) -> float:
    return math.fsum(bill.seconds * bill.machines for bill in bills)


def _usd(
    bills: Sequence[Bill],
    seconds: Callable[[Bill], float],
    usd_per_hour: Callable[[Bill], float | None] = lambda bill: bill.usd_per_hour,
) -> float | None:
    """For these seconds of all their machines; None where there is nothing to sum up."""
    if not bills:
        return None
    return math.fsum(b.machines * seconds(b) * (usd_per_hour(b) or 0.0) / _HOUR_S for b in bills)
