"""`outlast plan`: whether spot pays for a job, how often to save, and what that puts at risk."""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

from cyclopts import App, Parameter

from outlast._config import parse_bytes, parse_duration_s, parse_rate_bytes_per_s
from outlast._errors import ConfigError

if TYPE_CHECKING:
    from outlast.cli._plan_run import Measured
    from outlast.policy.plan_records import Job, Price, Prices, Risk
    from outlast.sim.forecast import Zones

RECALL = 0.5
"""Where nobody has measured any: a notice is as likely to be heard in time as not, which is what a run begins with."""

_USD = re.compile(r"\s*(?:\$\s*)?(\d+(?:\.\d+)?)\s*(?:usd)?\s*", re.IGNORECASE)
_RATE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*/\s*(h|hour|d|day)\s*")
_SHARE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(%?)\s*")
_STEPS = re.compile(r"\s*(\d+)\s*steps?\s*")
_DAY_H = 24.0

T = TypeVar("T")

app = App(name="plan")


@app.default
def plan(
    *,
    work: str,
    deadline: str,
    spot: str | None = None,
    on_demand: str | None = None,
    state: str | None = None,
    rate: str | None = None,
    pause: str | None = None,
    step: str | None = None,
    provisioning: str = "3m",
    restart: str | None = None,
    notice: str = "30s",
    hazard: str | None = None,
    recall: str | None = None,
    traces: Annotated[list[Path] | None, Parameter(consume_multiple=True, negative="")] = None,
    max_lost_work: str = "10m",
    nodes: int = 1,
    elastic: Annotated[bool, Parameter(negative="")] = False,
    runs: int = 1,
    engineering: str = "0usd",
    egress: str | None = None,
    storage: str | None = None,
    requests: str | None = None,
    run: str | None = None,
    explain: Annotated[bool, Parameter(negative="")] = False,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Say whether spot pays for a job, how often to save, and what that puts at risk.

    Outlast's own policy, which misses no deadline, is replayed over spot capacity as it was measured elsewhere (or in --traces).

    Example: outlast plan --work 48h --deadline 70h --spot 0.92usd --on-demand 3.06usd --state 14GB --rate 0.9GB/s --pause 0.5s

    Args:
        work: How long the job runs undisturbed, such as 48h; or its steps, such as 20000steps, with --step.
        deadline: After its beginning, such as 70h, or a time in UTC such as 2026-12-01T12:00.
        spot: USD per hour of one spot machine.
        on_demand: USD per hour of one on-demand machine.
        state: What a save writes, of the whole job, such as 14GB.
        rate: To the store, of the whole job, such as 0.9GB/s.
        pause: For how long training stands still at a save, such as 0.5s.
        step: How long a step takes, where --work counts steps.
        provisioning: From asking for a machine until the script starts there, paid for.
        restart: From there until steps are made again, such as 1m.
        notice: From notice to power-off; 0s where there is none.
        hazard: Interruptions of one spot machine, such as 0.1/h or 2/day; without it, those of zones that were measured.
        recall: Share of interruptions whose notice leads to a durable save where one fits, such as 90%.
        traces: CSV files of spot capacity, gzipped or not: time_utc,zone,nodes_available.
        max_lost_work: The most work that an interruption may cost.
        nodes: Machines that the job takes.
        elastic: It goes on with the machines that are left.
        runs: So many runs share the effort.
        engineering: The one-time effort of making it ready for spot, such as 400usd.
        egress: USD per GB that a restart reads from the store; nothing within one region.
        storage: USD per GB and month on the store.
        requests: USD per 1,000 requests to the store.
        run: URL, path, or name of a run: what is not given is taken from its ledger.
        explain: Show every term with its formula and numbers.
        json: Print JSON.
    """
    from outlast.cli._plan_run import Measured, measured
    from outlast.cli._plan_show import as_json, show
    from outlast.policy.plan import count
    from outlast.policy.plan_reasons import reasons
    from outlast.policy.plan_records import Job

    found = measured(run) if run is not None else Measured()
    prices = _prices(
        _price(spot, "--spot", found.spot),
        _price(on_demand, "--on-demand", found.on_demand),
        _price(egress, "--egress"),
        _price(storage, "--storage"),
        _price(requests, "--requests"),
    )
    nbytes = found.state_bytes if state is None else parse_bytes(state, "--state")
    bytes_per_s = found.bytes_per_s if rate is None else parse_rate_bytes_per_s(rate, "--rate")
    pause_s = found.pause_s if pause is None else parse_duration_s(pause, "--pause")
    work_s = _work_s(work, step)
    job = Job(
        work_s=work_s,
        deadline_s=_deadline_s(deadline, work_s),
        state_bytes=_there(nbytes, "--state", "14GB"),
        bytes_per_s=_there(bytes_per_s, "--rate", "0.9GB/s"),
        pause_s=_there(pause_s, "--pause", "0.5s"),
        provisioning_s=parse_duration_s(provisioning, "--provisioning"),
        restart_s=_restart_s(restart, found),
        notice_s=parse_duration_s(notice, "--notice"),
        max_lost_s=_above_zero(max_lost_work, "--max-lost-work"),
        nodes=_count(nodes, "--nodes"),
        is_elastic=elastic,
        runs=_count(runs, "--runs"),
        engineering_usd=_usd(engineering, "--engineering"),
    )
    risk, zones = _risk(hazard, recall, traces, job, found)
    counted = count(job, prices, risk, zones.ask)
    why = reasons(job, prices, risk, counted, zones.ask)
    if json:
        as_json(job, prices, risk, counted, why)
    else:
        show(job, prices, risk, counted, why, with_terms=explain)


def _prices(
    spot: Price | None,
    on_demand: Price | None,
    egress: Price | None,
    storage: Price | None,
    requests: Price | None,
) -> Prices:
    from outlast.policy.plan_records import NOTHING, Prices

    for price, name in ((spot, "--spot"), (on_demand, "--on-demand")):
        usd = _there(price, name, "0.92usd").usd
        _positive(usd, f"{usd:g}", name)
    assert spot is not None
    assert on_demand is not None
    return Prices(spot, on_demand, egress or NOTHING, storage or NOTHING, requests or NOTHING)


def _there(value: T | None, name: str, example: str) -> T:
    if value is None:
        msg = f"{name} is not given, and no --run says it; expected a value such as {example}"
        raise ConfigError(msg)
    return value


def _risk(
    hazard: str | None, recall: str | None, traces: list[Path] | None, job: Job, found: Measured
) -> tuple[Risk, Zones]:
    """What is known of spot: flags before traces before the run before the table of zones that were measured."""
    from outlast.policy.plan_records import Risk
    from outlast.sim.forecast import known, traced
    from outlast.sim.traces import read_traces

    if hazard is not None and traces:
        msg = "--hazard and --traces are both given; expected one of them: traces say how often machines are lost"
        raise ConfigError(msg)
    share, share_source = _recall(recall, found)
    if traces:
        zones = traced(read_traces(traces), job.nodes)
        source = f"measured: {', '.join(path.name for path in traces)}"
        return Risk(zones.per_hour, share, source, share_source, is_of_all=True), zones
    per_hour = found.per_hour if hazard is None else _per_hour(hazard)
    zones = known(per_hour)
    source = "given" if hazard is not None else found.per_hour_source
    return Risk(zones.per_hour, share, source, share_source), zones


def _recall(text: str | None, found: Measured) -> tuple[float, str]:
    if text is None:
        if found.recall is None:
            return RECALL, "assumed: nothing was measured"
        return found.recall, "the run's ledger"
    match = _SHARE.fullmatch(text)
    share = float(match.group(1)) / (100 if match.group(2) else 1) if match else math.nan
    if not 0 <= share <= 1:
        msg = f"--recall is {text!r}; expected a share from 0 to 1, or a text like 90%"
        raise ConfigError(msg)
    return share, "given"


def _per_hour(text: str) -> float:
    match = _RATE.fullmatch(text)
    rate = float(match.group(1)) / (_DAY_H if match.group(2).startswith("d") else 1.0) if match else 0.0
    if rate <= 0:
        msg = f"--hazard is {text!r}; expected interruptions above 0 per hour or day, such as 0.1/h or 2/day"
        raise ConfigError(msg)
    return rate


def _price(text: str | None, name: str, otherwise: Price | None = None) -> Price | None:
    from outlast.policy.plan_records import Price

    return otherwise if text is None else Price(_usd(text, name))


def _usd(text: str, name: str) -> float:
    match = _USD.fullmatch(text)
    if match is None:
        msg = f"{name} is {text!r}; expected USD of at least 0, such as 0.92usd"
        raise ConfigError(msg)
    return float(match.group(1))


def _work_s(text: str, step: str | None) -> float:
    match = _STEPS.fullmatch(text)
    if match is None:
        if step is not None:
            msg = f"--step is given and --work is {text!r}; expected --work in steps, such as 20000steps, or no --step"
            raise ConfigError(msg)
        return _above_zero(text, "--work")
    if step is None:
        msg = f"--work is {text!r}; expected --step as well, how long a step takes, such as 0.8s"
        raise ConfigError(msg)
    return _positive(int(match.group(1)) * _above_zero(step, "--step"), text, "--work")


def _deadline_s(text: str, work_s: float) -> float:
    try:
        at = datetime.fromisoformat(text) if "-" in text[1:] else None
    except ValueError:
        at = None
    if at is None:
        seconds = _above_zero(text, "--deadline")
    else:
        seconds = ((at if at.tzinfo else at.replace(tzinfo=UTC)) - datetime.now(UTC)).total_seconds()
        if seconds <= 0:
            msg = f"--deadline is {text!r}, which is over; expected a time to come"
            raise ConfigError(msg)
    if seconds < work_s:
        msg = f"--deadline is {text!r}, sooner than --work is done ({work_s / 3600:.1f} h); expected a later one"
        raise ConfigError(msg)
    return seconds


def _restart_s(text: str | None, found: Measured) -> float:
    if text is not None:
        return parse_duration_s(text, "--restart")
    return 60.0 if found.restart_s is None else found.restart_s


def _above_zero(text: str, name: str) -> float:
    return _positive(parse_duration_s(text, name), text, name)


def _positive(value: float, text: object, name: str) -> float:
    if value <= 0:
        msg = f"{name} is {text!r}; expected more than 0"
        raise ConfigError(msg)
    return value


def _count(value: int, name: str) -> int:
    return int(_positive(value, value, name))
