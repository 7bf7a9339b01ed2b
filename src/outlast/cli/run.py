"""`outlast run`: the agent of this machine, and the supervisor of a training script."""

from __future__ import annotations

import os
import sys
from typing import Annotated, Literal

from cyclopts import App, Parameter

from outlast._config import ResumeMode, capacity, parse_duration_s
from outlast._errors import ConfigError
from outlast.cli._whole import Whole
from outlast.policy.restart import MAX_RESTARTS, STORE_WAIT_S

app = App(name="run")


@app.default
def run(
    *command: Annotated[str, Parameter(show=False)],
    store: str | None = None,
    max_restarts: Whole = MAX_RESTARTS,
    resume: ResumeMode | None = None,
    take_over: Annotated[bool, Parameter(negative="")] = False,
    store_wait: str = f"{STORE_WAIT_S:.0f}s",
    notice: str | None = None,
    grace: str | None = None,
    on_rebalance: Literal["save", "leave"] | None = None,
    usd_per_hour: float | None = None,
    on_demand_usd_per_hour: float | None = None,
) -> None:
    """Run a training script, save it, and start it again when it fails or its machine was spared.

    The script uses outlast.Run; everything after -- is its command line. Ends with 0 when the training is done,
    75 when it was preempted and the same command has to be started again (here or elsewhere), 76 when a newer
    attempt has taken over, 74 when the store is out of reach, 78 when the configuration is wrong, 130 after Ctrl-C.

    Example: outlast run --store s3://bucket/runs -- python train.py --lr 3e-4

    Args:
        command: The command to run, after --.
        store: Root of the runs: a bucket or a folder. Overrides $OUTLAST_STORE.
        max_restarts: How often a script that fails by itself is started again.
        resume: Overrides the script: auto, must (nothing there is an error) or never (a new run).
        take_over: Supersede an attempt of this run that is still alive elsewhere.
        store_wait: How long to wait for a store that is out of reach: seconds, or a text like 90s or 1h.
        notice: Where notices come from, separated by commas: aws, gcp, azure, alibaba, tencent; signals or slurm alone ask
            no metadata service. Found out from the machine if not given. Overrides $OUTLAST_NOTICE.
        grace: From SIGTERM or SIGUSR2 to the end of the machine: seconds, or a text like 90s. Overrides $OUTLAST_GRACE_S.
        on_rebalance: What a mere hint leads to (a rebalance recommendation, a freeze, a live migration, far-off maintenance):
            save once and train on (save), or save and end with 75 (leave). Overrides $OUTLAST_ON_REBALANCE, else save.
        usd_per_hour: What this machine costs, for what `outlast status` says of it. Overrides $OUTLAST_USD_PER_HOUR.
        on_demand_usd_per_hour: What it would cost on demand. Overrides $OUTLAST_ON_DEMAND_USD_PER_HOUR.
    """
    if not command:
        msg = "no command given; expected it after --, such as: outlast run -- python train.py"
        raise ConfigError(msg)
    if max_restarts < 0:
        msg = f"--max-restarts is {max_restarts}; expected 0 or more"
        raise ConfigError(msg)
    store_wait_s = parse_duration_s(store_wait, "--store-wait")
    from outlast.agent.supervise import supervise
    from outlast.notice.detect import parse_names

    # By the environment, since the script and an agent that it may start by itself go by them as well.
    if notice is not None:
        os.environ["OUTLAST_NOTICE"] = ",".join(parse_names(notice))
    if grace is not None:
        os.environ["OUTLAST_GRACE_S"] = str(parse_duration_s(grace, "--grace"))
    if on_rebalance is not None:
        os.environ["OUTLAST_ON_REBALANCE"] = on_rebalance
    for kind, usd in (("", usd_per_hour), ("ON_DEMAND_", on_demand_usd_per_hour)):
        if usd is not None:
            os.environ[f"OUTLAST_{kind}USD_PER_HOUR"] = str(usd)
            os.environ["OUTLAST_USD_FROM"] = "outlast run"
    capacity(os.environ)  # what is wrong with it is said before anything starts
    code = supervise(
        list(command),
        store=store,
        max_restarts=max_restarts,
        resume=resume,
        take_over=take_over,
        store_wait_s=store_wait_s,
    )
    sys.exit(code)
