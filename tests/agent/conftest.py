"""Trainers without torch, beside the scripts that train."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from field.torchless import Trainer


@pytest.fixture
def trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Trainer]]:
    """Make trainers without torch of the run in `tmp_path / "run"`; what is left of them is ended."""
    for name in ("OUTLAST_AGENT", "OUTLAST_LAUNCH_ID", "OUTLAST_NOTICE_FILE", "OUTLAST_GRACE_S"):
        monkeypatch.delenv(name, raising=False)
    made: list[Trainer] = []

    def make() -> Trainer:
        made.append(Trainer(f"file://{tmp_path}/run"))
        made[-1].join()
        return made[-1]

    yield make
    for each in made:
        each.kill(agent_too=True)
