"""`outlast simulate`: what a job would have cost on spot capacity as it really was, by policy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import App, Parameter

from outlast._config import parse_bytes, parse_duration_s
from outlast._errors import ConfigError
from outlast._types import Json
from outlast.cli._show import console, print_json, table
from outlast.cli._whole import Whole

if TYPE_CHECKING:
    from outlast.sim.compare import Compared

app = App(name="simulate")


@app.default
def simulate(
    *,
    traces: Annotated[list[Path], Parameter(consume_multiple=True, negative="")],
    work: str,
    deadline: str,
    overhead: str,
    policy: str = "all",
    prices: Path | None = None,
    multi_zone: Annotated[bool, Parameter(negative="")] = False,
    nodes: Whole = 1,
    spread: Literal["zone", "region", "none"] = "zone",
    checkpoint: str | None = None,
    egress: Path | None = None,
    probe: str = "0s",
    plot: Path | None = None,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Replay spot capacity as it was through policies, and say what a job would have paid.

    Every zone is replayed by itself, 16 jobs beginning at evenly spaced times. Our policy is not shown what is to come, nor
    what was ever measured in that zone.

    Example: outlast simulate --traces zones.csv.gz --work 48h --deadline 70h --overhead 3m

    Args:
        traces: CSV files, gzipped or not: time_utc,zone,nodes_available.
        work: How long the job would run undisturbed, such as 48h; on machines whose speed is 1.
        deadline: After its beginning.
        overhead: From a start until work goes on, paid for; the first start and a move to on-demand are starts as well.
        policy: all, or names separated by commas: outlast, uniform-progress, greedy, on-demand, optimum.
        prices: CSV file: location,spot_usd_per_hour,on_demand_usd_per_hour and, where machines differ, speed: how much of the work an
            hour there does. A location is a region or a zone, with :type where traces have zone:type. Without a file, on-demand costs 1
            USD per hour and spot 0.3.
        multi_zone: A job may go from zone to zone, over all that are in the files.
        nodes: Machines that the job takes, all or none.
        spread: Where they may be: all in one zone, in zones of one region, or anywhere.
        checkpoint: Size of what is moved to another region, such as 80GB; needs --egress.
        egress: CSV file: from_region,to_region,price_usd_per_gb.
        probe: How long a machine is paid for, in every zone and every ten minutes, to see whether there is one.
        plot: Draw one job's way and all costs into this file; needs matplotlib (pip install 'outlast[plot]').
        json: Print JSON.
    """
    from outlast.policy.capacity import Job
    from outlast.sim.compare import POLICIES, Setup, compare
    from outlast.sim.prices import read_egress, read_prices
    from outlast.sim.traces import read_traces

    names = _names(policy, POLICIES)
    if nodes < 1:
        msg = f"--nodes is {nodes}; expected 1 or more"
        raise ConfigError(msg)
    if (checkpoint is None) != (egress is None):
        msg = "--checkpoint and --egress belong together: how much is moved, and what that costs; give both or neither"
        raise ConfigError(msg)
    job = Job(
        _above_zero(work, "--work"),
        _above_zero(deadline, "--deadline"),
        parse_duration_s(overhead, "--overhead"),
        0 if checkpoint is None else parse_bytes(checkpoint, "--checkpoint"),
    )
    setup = Setup(
        job,
        nodes,
        spread,
        multi_zone,
        None if prices is None else read_prices(prices),
        {} if egress is None else read_egress(egress),
        parse_duration_s(probe, "--probe"),
    )
    compared = compare(read_traces(traces), setup, names)
    if plot is not None:
        from outlast.sim.picture import draw

        draw(plot, compared, job)
    found = [_row(name, compared, job.deadline_s) for name in names]
    if json:
        print_json({"windows": len(compared.optimum_usd), "policies": [row for row, _ in found]})
    else:
        _show(found, compared)


def _names(policy: str, known: Sequence[str]) -> list[str]:
    names = list(known) if policy == "all" else [name.strip() for name in policy.split(",")]
    for name in names:
        if name not in known:
            msg = f"--policy names {name!r}; expected all, or of {', '.join(known)}"
            raise ConfigError(msg)
    return list(dict.fromkeys(names))


def _above_zero(value: str, what: str) -> float:
    seconds = parse_duration_s(value, what)
    if seconds == 0:
        msg = f"{what} is {value!r}; expected more than 0"
        raise ConfigError(msg)
    return seconds


def _row(name: str, compared: Compared, deadline_s: float) -> tuple[dict[str, Json], float]:
    """One policy's numbers, and the mean time at which its jobs were done, in hours."""
    import numpy as np

    best = compared.optimum_usd.mean()
    outcome = compared.outcomes.get(name)
    cost = compared.optimum_usd if outcome is None else outcome.cost_usd
    saved = 1 - cost / compared.own_usd
    row: dict[str, Json] = {
        "name": name,
        "mean_cost_usd": float(cost.mean()),
        "over_optimum": _share(cost.mean() / best - 1),
        "savings": _share(1 - cost.mean() / compared.own_usd.mean()),
        "savings_p5": _share(np.percentile(saved, 5)),
        "savings_p95": _share(np.percentile(saved, 95)),
        "deadline_misses": 0,
        "restarts": None,
        "lost_work_h": None,
    }
    if outcome is None:
        return row, math.nan
    row["deadline_misses"] = int((outcome.finish_s > deadline_s).sum())
    row["restarts"] = float((outcome.starts - 1).mean())
    row["lost_work_h"] = float(outcome.idle_s.mean() / 3600)
    return row, float(outcome.finish_s.mean() / 3600)


def _share(value: float) -> float:
    """Without what rounding leaves of nothing."""
    return round(float(value), 12) + 0.0


def _show(found: Sequence[tuple[dict[str, Json], float]], compared: Compared) -> None:
    out = console()
    heads = ("policy", "USD", "over", "saves", "90 %", "misses", "restarts", "lost h", "done h")
    shown = table(*heads, right=heads[1:])
    for row, done_h in found:
        shown.add_row(
            row["name"],
            f"{row['mean_cost_usd']:.2f}",
            f"{row['over_optimum']:.1%}",
            f"{row['savings']:.1%}",
            f"{row['savings_p5']:.0%}..{row['savings_p95']:.0%}",
            str(row["deadline_misses"]),
            *("" if row[name] is None else f"{row[name]:.1f}" for name in ("restarts", "lost_work_h")),
            "" if math.isnan(done_h) else f"{done_h:.1f}",
        )
    out.print(f"{len(compared.optimum_usd)} jobs; mean USD, over the optimum, saved against on-demand")
    out.print(shown)
    if compared.left_out:
        out.print(f"left out, since no window has room in their traces: {', '.join(compared.left_out)}")
