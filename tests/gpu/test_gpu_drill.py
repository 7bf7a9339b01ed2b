"""A script that trains on a GPU comes through every kind of interruption, bit for bit."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from outlast.drill.script import ScriptOptions, drill_script

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(1200)]


@pytest.mark.parametrize("snapshot", ["copy", "overlap"])
def test_training_on_a_gpu_comes_through_every_interruption(snapshot):
    """Weights, optimizer, scaler, statistics and the GPU's generator end as those of a run that nothing disturbed."""
    script = Path(__file__).with_name("script.py")
    options = ScriptOptions(stall_s=120.0, seed=3, interval_steps=3, env={"T_SNAPSHOT": snapshot})
    report = drill_script([sys.executable, str(script)], options)
    assert report.passed, report.failures
    assert report.bit_identical
    assert (report.samples_repeated, report.samples_skipped) == (0, 0)
