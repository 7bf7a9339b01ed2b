"""A run inside the test's own process: live states, the real `Saver`, and a real agent on a folder.

What is judged is the bytes on the store, read by the format alone, against bytes that the test itself kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from field.torchless import Trainer, read_tensors
from outlast._config import Every, Saving
from outlast._types import Reason
from outlast.agent.protocol import Saved
from outlast.state.capture import capture_states
from outlast.state.table import TensorTable
from outlast.trainer.frozen import stored
from outlast.trainer.saver import Order, Saver, Whole
from staging import bits


class Inside:
    """One attempt of a run in `root`.

    Attributes:
        states: what is saved; a test changes them as a script does.
        saver: takes them.
    """

    def __init__(self, root: Path, states: Mapping[str, object], **saving: object) -> None:
        self.root = root
        self.states = states
        self._trainer = Trainer(f"file://{root}")
        self.link = self._trainer.link
        offer = self.link.offer()
        assert (
            self.link.accept((), None, 0, lambda *_: None) is None
        )  # the test puts the live state there itself
        self.saver = Saver(
            self.link,
            Saving(Every(300.0, None), **saving),
            self._gather,
            lambda: None,
            stored(offer.checkpoint, offer.tensors),
        )
        self.step = 0

    def save(self, reason: Reason = Reason.USER, **order: object) -> Saved:
        """Take a snapshot of the next step and wait for the answer."""
        self.step += 1
        number = self.saver.take(Order(self.step, reason, **order))
        assert number is not None
        return self.answer(number)

    def answer(self, number: int) -> Saved:
        """Wait until a snapshot is answered."""
        saved = self.link.wait_saved(number, lambda: None, "it is saved")
        assert saved is not None
        return saved

    def on_store(self, saved: Saved) -> dict[str, bytes]:
        """The bytes of every tensor of the checkpoint."""
        assert saved.checkpoint is not None, saved.error
        return read_tensors(self.root / "checkpoints" / saved.checkpoint)

    def live(self) -> dict[str, bytes]:
        """The bytes of every live tensor, by the name under which it is stored."""
        table = TensorTable()
        capture_states(self.states, table)
        return {name: bits(tensor) for name, tensor in table.entries.items()}

    def written_bytes(self) -> int:
        """Bytes of the segments that the last save wrote."""
        newest = max(self.root.glob("segments/*"))
        return sum(path.stat().st_size for path in newest.glob(f"{self.step:012d}-*"))

    def close(self) -> None:
        """End without a word, the agent too."""
        self._trainer.kill(agent_too=True)

    def _gather(self, table: TensorTable) -> Whole:
        with torch.no_grad():
            return Whole({"states": capture_states(self.states, table)}, {"step": self.step}, {})
