"""One job's way through its window, and the costs of all jobs, as a picture. Needs matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from outlast._errors import ConfigError
from outlast.policy.capacity import TICK_S, WAIT, Floats, Ints, Job
from outlast.sim.compare import OURS, OWN, Compared
from outlast.sim.figure import blank, save


def draw(path: Path, compared: Compared, job: Job) -> None:
    """Draw into `path`, whose ending says the format.

    Raises:
        ConfigError: matplotlib is not installed, no policy but the optimum was replayed, or the file cannot be written.
    """
    figure = blank(9, 6)
    if not compared.outcomes:
        msg = "--plot has nothing to draw: --policy names the optimum alone, whose way is not known; name another one"
        raise ConfigError(msg)
    way, costs = figure.subplots(2, 1)
    shown = compared.outcomes.get(OURS) or next(iter(compared.outcomes.values()))
    middle = int(np.argsort(shown.cost_usd)[len(shown.cost_usd) // 2])
    hours = np.arange(compared.is_available.shape[1]) * TICK_S / 3600
    way.fill_between(hours, 0, compared.is_available[middle], step="post", alpha=0.2)
    for level, outcome in enumerate(compared.outcomes.values()):
        _bars(way, outcome.choices[middle], compared.own_pool, hours, -1 - level)
    way.axvline(job.deadline_s / 3600, color="black", linestyle=":", label="deadline")
    way.set(xlabel="hours", title="the job of the median cost: on spot (green), on demand (red)")
    way.set_yticks(
        [0.5, *(-0.6 - level for level in range(len(compared.outcomes)))],
        ["spot is there", *compared.outcomes],
    )
    way.legend(loc="upper left")
    for name, outcome in compared.outcomes.items():
        if name != OWN:
            over = np.sort(outcome.cost_usd / compared.optimum_usd - 1) * 100
            costs.plot(over, np.linspace(0, 1, len(over)), label=name)
    costs.set(xlabel="cost over the optimum, %", ylabel="share of jobs")
    costs.legend()
    save(figure, path)


def _bars(axes: Any, choices: Ints, own: int, hours: Floats, level: int) -> None:
    """What was held in each tick."""
    width = TICK_S / 3600
    for here, colour in ((choices == own, "tab:red"), ((choices != own) & (choices != WAIT), "tab:green")):
        axes.broken_barh([(float(h), width) for h in hours[here]], (level, 0.8), color=colour)
