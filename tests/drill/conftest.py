"""Where the drills of these tests happen, and what their scripts find there."""

import os
import tempfile
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def drill_folders_go_with_the_test(monkeypatch, tmp_path_factory):
    """Have `tempfile` make its folders in one that goes; its path is short, as those of sockets have to be."""
    tmp_path_factory.getbasetemp()  # made where it belongs, before `tempfile` makes its folders elsewhere
    with tempfile.TemporaryDirectory(prefix="drills-", ignore_cleanup_errors=True) as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield
        monkeypatch.undo()


@pytest.fixture(autouse=True)
def scripts_start_sooner(monkeypatch):
    """See `inside/sitecustomize.py` and `scripts/digits.py`."""
    here = Path(__file__).parent
    paths = [str(here / "inside"), str(here / "scripts"), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
