"""The worked examples of docs/how-often-to-save.md are run as they stand there."""

from __future__ import annotations

import doctest
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "how-often-to-save.md"


def test_the_worked_examples_say_what_the_policies_say() -> None:
    results = doctest.testfile(str(PAGE), module_relative=False)
    assert results.attempted > 10
    assert results.failed == 0
