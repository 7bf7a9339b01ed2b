"""Runs in the test's own process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from inside import Inside


@pytest.fixture
def inside(tmp_path: Path) -> Iterator[Callable[..., Inside]]:
    """Make runs in this process, all in the same place; what is left of them is ended."""
    made: list[Inside] = []

    def make(states, **saving) -> Inside:
        made.append(Inside(tmp_path / "run", states, **saving))
        return made[-1]

    yield make
    for each in made:
        each.close()
