"""Drills that fail keep their folder: a test takes it away."""

import tempfile

import pytest


@pytest.fixture(autouse=True)
def drill_folders_go_with_the_test(monkeypatch):
    """Have `tempfile` make its folders in one that goes; its path is short, as those of sockets have to be."""
    with tempfile.TemporaryDirectory(prefix="drills-", ignore_cleanup_errors=True) as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield
        monkeypatch.undo()
