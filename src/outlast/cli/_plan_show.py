"""How a plan is shown: for people, and as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict

from outlast._types import Json
from outlast.cli._show import console, print_json, since, table, text
from outlast.policy.plan import Counted, Joint, joint, pays_below_usd, rows
from outlast.policy.plan_reasons import Reason
from outlast.policy.plan_records import Job, Price, Prices, Risk
from outlast.policy.plan_terms import terms

LOW, HIGH = 0.05, 0.95
"""Ends of the interval that 90 % of the cases lie in."""
_BAR = 16
MOST = 10.0
"""Overhead above which a number says no more than that the work is hardly ever done."""
_BOUNDS = {
    "optimum": "which costs least",
    "max-lost-work": "so that no more is lost than may be",
    "back-to-back": "as often as uploads allow",
}
_NAMES = {
    "spot": "spot, per machine and hour",
    "on_demand": "on-demand, per machine and hour",
    "egress_per_gb": "egress, per GB",
    "storage_per_gb_month": "storage, per GB and month",
    "per_1000_requests": "requests, per 1,000",
}


def as_json(job: Job, prices: Prices, risk: Risk, counted: Counted, why: Sequence[Reason]) -> None:
    """Print everything that `show` says, and every term."""
    found: dict[str, Json] = {
        "verdict": counted.verdict,
        "reasons": [asdict(reason) for reason in why],
        "on_demand_usd": counted.on_demand_usd,
        "cost_usd": _spread(counted.on_demand_usd - net for net in _nets(counted)),
        "net_saving_usd": _spread(_nets(counted), turned=True),
        "pays_below_spot_usd": pays_below_usd(job, counted),
        "interval_s": counted.interval.seconds,
        "interval_bound": counted.interval.bound,
        "at_risk_s": counted.interval.worst_s,
        "intervals": [asdict(row) for row in rows(job, counted)],
        "emergency_save": {
            "fits": counted.fit.fits,
            "needs_s": counted.fit.needs_s,
            "notice_s": job.notice_s,
            "why": counted.fit.why,
        },
        "hazard": {
            "per_hour": risk.per_hour,
            "source": risk.source,
            "recall": counted.recall,
            "recall_source": risk.recall_source,
        },
        "joint": _joint(joint(job, risk, counted)),
        "prices": {name: asdict(getattr(prices, name)) for name in _NAMES},
        "terms": [asdict(term) for term in terms(job, prices, risk, counted)],
        "replayed": counted.forecast.windows,
    }
    print_json(found)


def show(
    job: Job, prices: Prices, risk: Risk, counted: Counted, why: Sequence[Reason], *, with_terms: bool
) -> None:
    """Print the verdict first, then what it stands on."""
    out = console()
    for line in _lines(job, prices, risk, counted, why):
        out.print(text(line), soft_wrap=True)
    shown = table(
        "save every", "at risk", "lost each", "overhead", "", right=("at risk", "lost each", "overhead")
    )
    found = rows(job, counted)
    most = min(max(row.overhead for row in found), MOST)
    for row in found:
        bar = "#" * max(1, round(_BAR * min(row.overhead, MOST) / most)) if most > 0 else ""
        shown.add_row(
            f"{time_said(row.seconds)} ({row.name})",
            time_said(row.at_risk_s),
            time_said(row.lost_s),
            overhead_said(row.overhead),
            bar,
        )
    out.print(shown)
    if with_terms:
        for term in terms(job, prices, risk, counted):
            out.print(text(f"{term.name}: {term.value:.2f} {term.unit}".rstrip()), soft_wrap=True)
            out.print(text(f"    = {term.formula}"), soft_wrap=True)
            out.print(text(f"    = {term.numbers}"), soft_wrap=True)


def _lines(job: Job, prices: Prices, risk: Risk, counted: Counted, why: Sequence[Reason]) -> Iterator[str]:
    low, net, high = _nets(counted)
    if len(why) == 1:
        yield f"{counted.verdict}: {why[0].text}"
    else:
        yield f"{counted.verdict}:"
        yield from (f"- {reason.text}" for reason in why)
    own = f"the {counted.on_demand_usd:.2f} USD that it costs on demand"
    if net >= 0:
        said = f"a run saves {net:.2f} of {own} ({net / counted.on_demand_usd:.0%})"
    else:
        said = f"a run costs {-net:.2f} USD more than {own}"
    yield f"{said}; in 90 % of the cases it saves {low:.2f} to {high:.2f} USD ({counted.forecast.windows})"
    price = pays_below_usd(job, counted)
    if price is not None:
        yield f"break-even: spot at {price:.2f} USD per machine and hour"
    yield f"the emergency save: {counted.fit.why}"
    yield (
        f"interruptions: {counted.interruptions:.1f} expected, {_rate(counted.per_hour)} per hour on spot ({risk.source}); "
        f"{counted.recall:.0%} of them cost no work ({risk.recall_source if counted.fit.fits else 'the save does not fit'})"
    )
    together = joint(job, risk, counted)
    if together is not None:
        yield (
            f"all {job.nodes} machines lost within 3 minutes of each other: in {together.all_share:.0%} of the interruptions, "
            f"{together.all_in_run:.0%} likely during the run"
        )
    for name, words in _NAMES.items():
        yield f"{words}: {_said(getattr(prices, name))}"
    yield (
        f"save every {time_said(counted.interval.seconds)}, {_BOUNDS[counted.interval.bound]}; at most "
        f"{time_said(counted.interval.worst_s)} of work are at risk"
    )


def _said(price: Price) -> str:
    if price.source.startswith("not given"):
        return price.source
    age = "" if price.age_s is None else f", written {since(price.age_s)}"
    return f"{price.usd:g} USD ({price.source}{age})"


def _rate(per_hour: float) -> str:
    return f"{per_hour:.0f}" if per_hour >= 100 else f"{per_hour:.3g}"


def _nets(counted: Counted) -> tuple[float, float, float]:
    return counted.net_at(LOW), counted.net_usd, counted.net_at(HIGH)


def _spread(values: Iterator[float] | tuple[float, float, float], *, turned: bool = False) -> Json:
    """The mean, and the interval that 90 % lie in, the low end first."""
    low, mean, high = values
    if not turned:
        low, high = high, low
    return {"p5": low, "mean": mean, "p95": high}


def _joint(found: Joint | None) -> Json:
    return None if found is None else asdict(found)


def overhead_said(overhead: float) -> str:
    """A share of the time, such as `0.7%`."""
    return f"{overhead:.1%}" if overhead <= MOST else f"over {MOST:.0%}"


def time_said(seconds: float) -> str:
    """A time as a person reads it, such as `2.7 min`."""
    if seconds >= 7200:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.1f} min" if seconds >= 100 else f"{seconds:.1f} s"
