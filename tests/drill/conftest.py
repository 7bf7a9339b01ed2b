"""Drills that fail keep their folder: in a test, below the test's own."""

import tempfile

import pytest


@pytest.fixture(autouse=True)
def drill_folders_below_the_test(tmp_path, monkeypatch):
    """Have `tempfile` make its folders below `tmp_path`."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
