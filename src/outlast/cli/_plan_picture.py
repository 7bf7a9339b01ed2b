"""A plan as a picture: what each interval costs and puts at risk, and what a run may save. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from outlast.cli._plan_show import HIGH, LOW, MOST, overhead_said, time_said
from outlast.policy.capacity import Floats
from outlast.policy.plan import TOO_CLOSE, Counted, Row, pays_below_usd, row, rows
from outlast.policy.plan_records import Job
from outlast.sim.figure import blank, save

_POINTS = 200
_BARS = 48
_TICKS_S = (1, 5, 15, 60, 300, 900, 3600, 10_800, 36_000, 86_400, 604_800)
_MARKS = "os^D"
_BLUE, _ORANGE, _GREEN, _RED, _GREY = "tab:blue", "tab:orange", "tab:green", "tab:red", "0.45"


def draw(path: Path, job: Job, counted: Counted) -> None:
    """Draw into `path`, whose ending says the format.

    Raises:
        ConfigError: matplotlib is not installed, or the file cannot be written.
    """
    figure = blank(11.5, 6.2)
    grid = figure.add_gridspec(2, 2, height_ratios=(3, 2), width_ratios=(1.15, 1))
    above = figure.add_subplot(grid[0, 0])
    below = figure.add_subplot(grid[1, 0], sharex=above)
    _intervals(above, below, job, counted)
    _savings(figure.add_subplot(grid[:, 1]), job, counted)
    save(figure, path)


def _intervals(above: Any, below: Any, job: Job, counted: Counted) -> None:
    found = rows(job, counted)
    shortest_s, longest_s = min(each.seconds for each in found), max(each.seconds for each in found)
    seconds = np.geomspace(max(shortest_s / 4, job.upload_s - job.pause_s), longest_s * 1.5, _POINTS)
    line = [row(job, counted, "", float(each)) for each in seconds]
    total = np.array([each.overhead for each in line])
    saves = np.array([each.saving for each in line])
    for values, colour, style, name in (
        (saves, _BLUE, "--", "saves"),
        (total - saves, _ORANGE, "--", "work done again"),
        (total, "black", "-", "both"),
    ):
        above.plot(seconds, _drawn(values), color=colour, linestyle=style, label=name)
    below.plot(seconds, [each.at_risk_s for each in line], color=_RED, label="at most")
    below.plot(
        seconds, [each.lost_s for each in line], color=_ORANGE, linestyle="--", label="each time, on average"
    )
    below.axhline(
        job.max_lost_s,
        color=_GREY,
        linestyle=":",
        label=f"most that may be lost: {time_said(job.max_lost_s)}",
    )
    for each, mark in zip(found, _MARKS, strict=True):
        _mark(above, below, each, mark)
    every = f"recommended: every {time_said(counted.interval.seconds)} ({overhead_said(found[-1].overhead)})"
    above.axvline(counted.interval.seconds, color=_GREEN, linewidth=6, alpha=0.25, label=every)
    below.axvline(counted.interval.seconds, color=_GREEN, linewidth=6, alpha=0.25)
    shown = total[total <= MOST]
    if len(shown):
        above.set_ylim(shown.min() / 5, shown.max() * 2.5)
    above.set(xscale="log", yscale="log", ylabel="time lost, of training on spot")
    above.set_xlim(seconds[0] / 1.2, 8 * longest_s)
    above.set_title("How often to save", loc="left")
    above.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g}%")
    above.tick_params(labelbottom=False)
    below.set(xscale="log", yscale="log", xlabel="saved every", ylabel="work lost by an interruption")
    for axis in (below.xaxis, below.yaxis):
        _times(axis)
    for axes, corner in ((above, "best"), (below, "lower right")):
        axes.grid(visible=True, alpha=0.3)
        axes.legend(loc=corner, fontsize="small")


def _drawn(values: Floats) -> Floats:
    """Without what has no place on the axis."""
    return np.where((values > 0) & (values <= MOST), values, np.nan)


def _mark(above: Any, below: Any, each: Row, mark: str) -> None:
    is_best = each.name == "recommended"
    colour = _GREEN if is_best else "black"
    below.plot(each.seconds, each.at_risk_s, mark, color=colour, zorder=3)
    if each.overhead <= MOST:
        above.plot(each.seconds, each.overhead, mark, color=colour, zorder=3)
    if each.overhead <= MOST and not is_best:
        place = (each.seconds, each.overhead)
        words = f"{each.name}: {overhead_said(each.overhead)}"
        above.annotate(words, place, (9, -5), textcoords="offset points", fontsize="small")


def _times(axis: Any) -> None:
    low, high = axis.get_view_interval()
    axis.set_major_locator(_fixed([each for each in _TICKS_S if low <= each <= high]))
    axis.set_major_formatter(lambda seconds, _: _short(seconds))
    axis.set_minor_locator(_fixed([]))


def _fixed(places: Sequence[float]) -> Any:
    from matplotlib.ticker import FixedLocator

    return FixedLocator(places)


def _short(seconds: float) -> str:
    for unit_s, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= unit_s:
            return f"{seconds / unit_s:g} {unit}"
    return f"{seconds:g} s"


def _savings(axes: Any, job: Job, counted: Counted) -> None:
    saved = counted.on_demand_usd - counted.forecast.machines_usd - counted.others_usd
    low, high = counted.net_at(LOW), counted.net_at(HIGH)
    close = TOO_CLOSE * counted.on_demand_usd
    width = (max(saved.max(), close) - min(saved.min(), -close)) / _BARS
    edges = np.arange(np.floor(saved.min() / width), np.floor(saved.max() / width) + 2) * width
    share, _ = np.histogram(saved, edges, weights=counted.forecast.weights)
    left = edges[:-1]
    axes.axvspan(
        low, high, color=_BLUE, alpha=0.12, zorder=0, label=f"90 % of the cases: {low:.2f} to {high:.2f} USD"
    )
    axes.bar(left, share, width, align="edge", color=np.where(left + width / 2 > 0, _GREEN, _RED), alpha=0.8)
    axes.axvspan(
        -close, close, color=_GREY, alpha=0.2, zorder=0, label=f"too close to call: within {close:.2f} USD"
    )
    axes.axvline(0, color="black", label=_break_even(job, counted))
    axes.axvline(
        counted.net_usd,
        color=_BLUE,
        linestyle="--",
        label=f"expected: {counted.net_usd:.2f} USD of {counted.on_demand_usd:.2f}",
    )
    axes.set(xlabel="saved by a run, USD", ylabel="share of the cases", ylim=(0, 1.4 * share.max()))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}" if value < 1.01 else "")
    axes.set_title(f"What spot saves: {counted.verdict}", loc="left")
    axes.legend(loc="upper left", fontsize="small", framealpha=1)


def _break_even(job: Job, counted: Counted) -> str:
    price = pays_below_usd(job, counted)
    return "break-even" if price is None else f"break-even, reached with spot at {price:.2f} USD"
