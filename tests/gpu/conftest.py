"""Runs in the test's own process, on a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from inside import Inside


@pytest.fixture
def inside(tmp_path: Path) -> Iterator[Callable[..., Inside]]:
    """Make runs, each in a place of its own; what is left of them is ended."""
    made: list[Inside] = []

    def make(states, **saving) -> Inside:
        made.append(Inside(tmp_path / f"run{len(made)}", states, **saving))
        return made[-1]

    yield make
    for each in made:
        each.close()
