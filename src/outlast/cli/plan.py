"""`outlast plan`: whether spot pays for a job, how often to save, and what that puts at risk."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from outlast.cli._plan_given import Flags, given

app = App(name="plan")
_NOTHING = Flags()


@app.default
def plan(
    flags: Annotated[Flags, Parameter(name="*")] = _NOTHING,
    *,
    job: Path | None = None,
    plot: Path | None = None,
    explain: Annotated[bool, Parameter(negative="")] = False,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Say whether spot pays for a job, how often to save, and what that puts at risk.

    Outlast's own policy, which misses no deadline, is replayed over spot capacity as it was measured elsewhere (or in --traces).

    Example: outlast plan --work 48h --deadline 70h --spot 0.92usd --on-demand 3.06usd --state 14GB --rate 0.9GB/s --pause 0.5s

    Args:
        flags: What is said of the job.
        job: TOML file whose table [plan] says what the flags do, by their names: work = "48h". Flags go before it, --run after.
        plot: Draw the intervals and what is saved into this file; needs matplotlib (pip install 'outlast[plot]').
        explain: Show every term with its formula and numbers.
        json: Print JSON.
    """
    from outlast.cli._plan_job import job_of, prices_of, risk_of
    from outlast.cli._plan_run import Measured, measured
    from outlast.cli._plan_show import as_json, show
    from outlast.policy.plan import count
    from outlast.policy.plan_reasons import reasons

    said = given(flags, job)
    found = Measured() if said.flags.run is None else measured(said.flags.run)
    asked, prices = job_of(said, found), prices_of(said, found)
    risk, zones = risk_of(said, asked.nodes, found)
    counted = count(asked, prices, risk, zones.ask)
    why = reasons(asked, prices, risk, counted, zones.ask)
    if plot is not None:
        from outlast.cli._plan_picture import draw

        draw(plot, asked, counted)
    if json:
        as_json(asked, prices, risk, counted, why)
    else:
        show(asked, prices, risk, counted, why, with_terms=explain)
