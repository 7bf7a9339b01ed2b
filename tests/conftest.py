"""What holds for every test: threads that fit two cores, and no skip without a name."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from launch import Lab, Zygote

# Each test process and each trainer that a test starts computes on one thread: pytest runs two at a time.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Runs of tests lie on this machine's disk, also where the tests run on a spot machine.
os.environ["OUTLAST_PREEMPTIBLE"] = "0"

NAMED_SKIPS = ("gpu", "lab")
"""Markers of the tests that may be skipped: they need something that not every machine has."""


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    """Where scripts are forked from."""
    process = Zygote()
    yield process
    process.close()


@pytest.fixture
def lab(tmp_path: Path, zygote: Zygote) -> Iterator[Lab]:
    """A folder in which scripts are started; whatever still runs at the end is killed."""
    lab = Lab(tmp_path, zygote)
    yield lab
    lab.close()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a `gpu` test where torch sees no CUDA device."""
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("gpu: no CUDA device")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn a skip that is not named into a failure: a test that does not run shows nothing."""
    report = yield
    named = any(item.get_closest_marker(name) for name in NAMED_SKIPS)
    if report.skipped and not named and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = _unnamed(item.nodeid, report.longrepr)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Turn a skip of a whole file into a failure, for the same reason."""
    report = yield
    if report.skipped:
        report.outcome = "failed"
        report.longrepr = _unnamed(report.nodeid, report.longrepr)
    return report


def _unnamed(nodeid: str, reason: object) -> str:
    return f"{nodeid} was skipped ({reason}); only tests marked {' or '.join(NAMED_SKIPS)} may be skipped"
