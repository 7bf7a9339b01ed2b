"""From what is said of a job, as text, to the records that a plan is made from. What nobody says, a run's ledger may."""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime
from typing import TypeVar

from outlast._config import parse_bytes, parse_duration_s, parse_rate_bytes_per_s
from outlast._errors import ConfigError
from outlast.cli._plan_given import Given
from outlast.cli._plan_run import Measured
from outlast.policy.plan_records import NOTHING, Job, Price, Prices, Risk
from outlast.sim.forecast import Zones, known, traced
from outlast.sim.traces import read_traces

PROVISIONING_S = 180.0
RESTART_S = 60.0
NOTICE_S = 30.0
MAX_LOST_S = 600.0
MOST_COUNTED = 1_000_000
"""Machines of a job, and runs that share an effort."""
RECALL = 0.5
"""Where nobody has measured any: a notice is as likely to be heard in time as not, which is what a run begins with."""

_USD = re.compile(r"\s*(?:\$\s*)?(\d+(?:\.\d+)?(?:e[+-]?\d+)?)\s*(?:usd)?\s*", re.IGNORECASE)
_RATE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*/\s*(h|hour|d|day)\s*")
_SHARE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(%?)\s*")
_STEPS = re.compile(r"\s*(\d+)\s*steps?\s*")
_WHOLE = re.compile(r"\d{1,7}", re.ASCII)
_DAY_H = 24.0

T = TypeVar("T")


def job_of(said: Given, found: Measured) -> Job:
    """What is to be done.

    Raises:
        ConfigError: something is missing, is no number of its kind, or leaves no time.
    """
    flags = said.flags
    work_s = _work_s(said)
    nbytes = found.state_bytes if flags.state is None else parse_bytes(flags.state, said.name("state"))
    rate = found.bytes_per_s if flags.rate is None else parse_rate_bytes_per_s(flags.rate, said.name("rate"))
    pause_s = found.pause_s if flags.pause is None else _s(said, "pause", 0.0)
    provisioning_s = _s(said, "provisioning", PROVISIONING_S)
    restart_s = _s(said, "restart", RESTART_S if found.restart_s is None else found.restart_s)
    return Job(
        work_s=work_s,
        deadline_s=_deadline_s(said, work_s, provisioning_s + restart_s),
        state_bytes=_there(nbytes, said, "state"),
        bytes_per_s=_there(rate, said, "rate"),
        pause_s=_there(pause_s, said, "pause"),
        provisioning_s=provisioning_s,
        restart_s=restart_s,
        notice_s=_s(said, "notice", NOTICE_S),
        max_lost_s=_positive(_s(said, "max_lost_work", MAX_LOST_S), said, "max_lost_work"),
        nodes=_count(said, "nodes"),
        is_elastic=bool(flags.elastic),
        runs=_count(said, "runs"),
        engineering_usd=_price(said, "engineering", NOTHING).usd,
        whole_bytes=found.whole_bytes if flags.state is None else None,
    )


def prices_of(said: Given, found: Measured) -> Prices:
    """What things cost, and who says so.

    Raises:
        ConfigError: a machine's price is missing, or one is no amount of USD.
    """
    spot, own = (
        _there(_price(said, name, of_run), said, name)
        for name, of_run in (("spot", found.spot), ("on_demand", found.on_demand))
    )
    for price, name in ((spot, "spot"), (own, "on_demand")):
        _positive(price.usd, said, name)
    egress, storage, requests = (_price(said, name, NOTHING) for name in ("egress", "storage", "requests"))
    return Prices(spot, own, egress, storage, requests)


def risk_of(said: Given, nodes: int, found: Measured) -> tuple[Risk, Zones]:
    """What is known of spot: what is said, before traces, before the run, before the table of zones that were measured.

    Raises:
        ConfigError: a rate and traces are both given, or one of them cannot be read.
    """
    flags = said.flags
    if flags.hazard is not None and flags.traces:
        msg = (
            f"{said.name('hazard')} and {said.name('traces')} are both given; expected one of them: "
            "traces say how often machines are lost"
        )
        raise ConfigError(msg)
    share, share_source = _recall(said, found)
    if flags.traces:
        zones = traced(read_traces(flags.traces), nodes)
        source = f"measured: {', '.join(path.name for path in flags.traces)}"
        return Risk(zones.per_hour, share, source, share_source, is_of_all=True), zones
    per_hour = found.per_hour if flags.hazard is None else _per_hour(flags.hazard, said.name("hazard"))
    zones = known(per_hour)
    source = found.per_hour_source if flags.hazard is None else said.source("hazard")[0]
    return Risk(zones.per_hour, share, source, share_source), zones


def _work_s(said: Given) -> float:
    flags, name = said.flags, said.name("work")
    text = _there(flags.work, said, "work")
    match = _STEPS.fullmatch(text)
    if match is None:
        if flags.step is not None:
            msg = (
                f"{said.name('step')} is given and {name} is {text!r}; expected the work in steps, such as 20000steps, "
                "or no time per step"
            )
            raise ConfigError(msg)
        return _positive(_s(said, "work", 0.0), said, "work")
    if flags.step is None:
        msg = f"{name} is {text!r}; expected --step as well, how long a step takes, such as 0.8s"
        raise ConfigError(msg)
    step_s = _positive(_s(said, "step", 0.0), said, "step")
    return _positive(int(match.group(1)) * step_s, said, "work")


def _deadline_s(said: Given, work_s: float, start_s: float) -> float:
    text, name = _there(said.flags.deadline, said, "deadline"), said.name("deadline")
    try:
        at = datetime.fromisoformat(text) if "-" in text[1:] else None
    except ValueError:
        msg = f"{name} is {text!r}; expected a time after the beginning such as 70h, or a time in UTC such as 2026-12-01T12:00"
        raise ConfigError(msg) from None
    if at is None:
        seconds = _positive(_s(said, "deadline", 0.0), said, "deadline")
    else:
        seconds = ((at if at.tzinfo else at.replace(tzinfo=UTC)) - datetime.now(UTC)).total_seconds()
        if seconds <= 0:
            msg = f"{name} is {text!r}, which is over; expected a time to come"
            raise ConfigError(msg)
    if seconds < work_s + start_s:
        msg = (
            f"{name} is {text!r}, which leaves {seconds / 3600:.2f} h; {said.name('work')} and one start take {work_s / 3600:.2f} h "
            f"and {start_s / 60:.1f} min, on demand too; expected a later deadline"
        )
        raise ConfigError(msg)
    return seconds


def _recall(said: Given, found: Measured) -> tuple[float, str]:
    text = said.flags.recall
    if text is None:
        if found.recall is None:
            return RECALL, "assumed: nothing was measured"
        return found.recall, "the run's ledger"
    match = _SHARE.fullmatch(text)
    share = float(match.group(1)) / (100 if match.group(2) else 1) if match else math.nan
    if not 0 <= share <= 1:
        msg = f"{said.name('recall')} is {text!r}; expected a share from 0 to 1, or a text like 90%"
        raise ConfigError(msg)
    return share, said.source("recall")[0]


def _per_hour(text: str, name: str) -> float:
    match = _RATE.fullmatch(text)
    rate = float(match.group(1)) / (_DAY_H if match.group(2).startswith("d") else 1.0) if match else 0.0
    if not 0 < rate < math.inf:
        msg = f"{name} is {text!r}; expected interruptions above 0 per hour or day, such as 0.1/h or 2/day"
        raise ConfigError(msg)
    return rate


def _price(said: Given, field: str, otherwise: T) -> Price | T:
    text = getattr(said.flags, field)
    if text is None:
        return otherwise
    match = _USD.fullmatch(text)
    usd = float(match.group(1)) if match else math.inf
    if usd == math.inf:
        msg = f"{said.name(field)} is {text!r}; expected USD of at least 0, such as 0.92usd"
        raise ConfigError(msg)
    return Price(usd, *said.source(field))


def _s(said: Given, field: str, otherwise: float) -> float:
    text = getattr(said.flags, field)
    return otherwise if text is None else parse_duration_s(text, said.name(field))


def _count(said: Given, field: str) -> int:
    text = getattr(said.flags, field)
    if text is None:
        return 1
    value = int(text) if _WHOLE.fullmatch(text) else 0
    if not 0 < value <= MOST_COUNTED:
        msg = f"{said.name(field)} is {text!r}; expected a whole number from 1 to {MOST_COUNTED:,}"
        raise ConfigError(msg)
    return value


def _there(value: T | None, said: Given, field: str) -> T:
    if value is None:
        raise ConfigError(said.missing(field))
    return value


def _positive(value: float, said: Given, field: str) -> float:
    if value <= 0:
        msg = f"{said.name(field)} is {getattr(said.flags, field)!r}; expected more than 0"
        raise ConfigError(msg)
    return value
