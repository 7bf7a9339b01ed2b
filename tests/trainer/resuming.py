"""Save states and resume them in the test's own process: a real link, a real agent, a folder as the store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from field.torchless import Trainer
from outlast._config import Every, Saving
from outlast._types import Reason
from outlast.state.capture import capture_states
from outlast.state.rng import capture_rng
from outlast.state.steps import StepWatch
from outlast.state.table import TensorTable
from outlast.state.tree import encode
from outlast.trainer.resume import Resumed, open_run
from outlast.trainer.saver import Order, Saver, Whole
from staging import bits

POSITION = {"epoch": 0, "tail_open": False, "own_points": False, "seed": 0, "batches": None, "samples": None}


@dataclass
class Attempt:
    """One attempt that has begun: `save`, then `end` or `kill`.

    Attributes:
        resumed: what `open_run` returned.
        asked: names of tensors that were read again.
    """

    trainer: Trainer
    states: Mapping[str, Any]
    watch: StepWatch
    resumed: Resumed | None
    saver: Saver
    asked: list[str]

    def save(self, step: int) -> str:
        """Make the states durable; the checkpoint's name."""
        number = self.saver.take(Order(step, Reason.USER))
        assert number is not None
        saved = self.trainer.link.wait_saved(number, lambda: None, "it is saved")
        assert saved is not None
        assert saved.checkpoint is not None, saved.error
        return saved.checkpoint

    def end(self) -> None:
        """End without a word, the agent too."""
        self.trainer.kill(agent_too=True)


def begin(root: Path, states: Mapping[str, Any]) -> Attempt:
    """Open a run in `root` as `outlast.Run` does."""
    trainer = Trainer(f"file://{root}")
    watch = StepWatch(states)
    asked: list[str] = []
    read = trainer.link.read

    def noted(request, ring, copy):
        asked.extend(sorted({part.tensor for batch in request.batches for part in batch}))
        read(request, ring, copy)

    trainer.link.read = noted
    try:
        resumed, _ = open_run(trainer.link, states, watch, {})
    except BaseException:
        trainer.kill(agent_too=True)
        raise

    def gather(table: TensorTable) -> Whole:
        tree = {
            "states": capture_states(states, table),
            "grads": watch.capture(table),
            "rng": capture_rng(table),
            "vars": encode({"best": 1.5}, "vars", table),
            "source": None,
            "head": {"rng": None, "tensors": {"dict": []}},
        }
        return Whole(tree, POSITION, {})

    saver = Saver(trainer.link, Saving(Every(300.0, None)), gather, lambda: None, None)
    return Attempt(trainer, states, watch, resumed, saver, asked)


def held(states: Mapping[str, Any]) -> dict[str, bytes]:
    """The bytes of every live tensor."""
    table = TensorTable()
    capture_states(states, table)
    return {name: bits(tensor) for name, tensor in table.entries.items()}
