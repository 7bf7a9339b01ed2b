"""A test that is skipped shows nothing, so only what some machines cannot run may be skipped."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

CONFTEST = Path(__file__).parent / "conftest.py"

TESTS = """
import pytest

@pytest.mark.skip(reason="not today")
def test_marked(): pass

def test_inside(): pytest.skip("not now")

@pytest.mark.lab
def test_lab(): pytest.skip("no lab")

@pytest.mark.xfail(strict=True)
def test_known(): assert False
"""


def test_only_named_skips_are_skips(tmp_path):
    """An unnamed skip fails, of a test or of a whole file; `lab` is skipped; an expected failure is as before."""
    (tmp_path / "conftest.py").write_text(CONFTEST.read_text())
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n gpu: x\n lab: x\n")
    (tmp_path / "test_some.py").write_text(TESTS)
    run = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "."]
    env = {**os.environ, "PYTHONPATH": str(CONFTEST.parent)}
    done = subprocess.run(run, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120)
    assert "1 failed, 1 skipped, 1 xfailed, 1 error" in done.stdout, done.stdout
    assert "only tests marked gpu or lab may be skipped" in done.stdout
    (tmp_path / "test_some.py").unlink()
    (tmp_path / "test_file.py").write_text(
        "import pytest\npytest.importorskip('no_such_module')\ndef test_it(): pass\n"
    )
    done = subprocess.run(run, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode not in {0, 5}, done.stdout
    assert "1 error" in done.stdout
