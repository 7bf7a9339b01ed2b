"""Weights & Biases: one run over all machines, under the run's own id."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from outlast._errors import ConfigError
from outlast.agent.protocol import Ending
from outlast.integrations._need import need
from outlast.trainer.tracker import Row, TrackedRun

_OURS = ("id", "resume", "resume_from", "fork_from", "reinit")
_EXIT_CODES = {"finished": 0, "preempted": 75, "interrupted": 130}


class WandB:
    """Shows a run in Weights & Biases.

    Offline there is nobody to ask what is there already: each attempt writes the whole run, so that its newest folder is the one
    to sync.

    Args:
        **init: for `wandb.init`: `project`, `entity`, `config`, `mode`, ... The id and `resume` are Outlast's.

    Raises:
        ConfigError: wandb is not installed, or an argument is one that Outlast decides.
    """

    def __init__(self, **init: Any) -> None:
        need("wandb", "wandb", "WandB")
        taken = [name for name in _OURS if name in init]
        if taken:
            msg = f"WandB({taken[0]}=...): Outlast decides which run is continued; use outlast.Run(resume=...) and leave it out"
            raise ConfigError(msg)
        self._init = init
        self._run: Any = None

    def open(self, run: TrackedRun) -> int | None:
        """Continue the run of this id; the server says at which step it is."""
        import wandb

        if self._run is not None:
            self._run.finish(exit_code=1)
        self._run = wandb.init(**{"name": run.name, **self._init}, id=run.id, resume="allow")
        return int(self._run.starting_step) - 1

    def write(self, rows: Sequence[Row]) -> None:
        """Log each row at its step; W&B takes no step twice."""
        for row in rows:
            self._run.log({**row.values, "_timestamp": row.time_s}, step=row.step, commit=True)

    def close(self, outcome: Ending) -> None:
        """Wait until all is uploaded. A run that another attempt goes on with already is left as it is."""
        if self._run is None or outcome == "superseded":
            return
        if outcome == "preempted":
            self._run.mark_preempting()
        self._run.finish(exit_code=_EXIT_CODES.get(outcome, 1))
