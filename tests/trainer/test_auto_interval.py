"""save_every="auto" in real runs: saves come as often as `outlast status` says, and what it says follows store and pool."""

from __future__ import annotations

import itertools
import json
import os
import signal
import statistics
from collections.abc import Callable
from typing import Any

import pytest

from launch import Lab, agent_of, eventually
from outlast.drill.bucket import bucket

SCRIPT = """
import json, os, time
import torch, outlast

params = torch.nn.Parameter(torch.zeros(1024 * 1024))
model = torch.nn.Module()
model.params = params
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
run = outlast.Run(os.environ["T_NAME"], model=model, optimizer=optimizer, keep_last=100)
record = os.open(os.environ["T_LAB"] + "/record", os.O_CREAT | os.O_APPEND | os.O_WRONLY)
for step in run.steps(100_000):
    with torch.no_grad():
        params.uniform_()
    params.grad = torch.zeros_like(params)
    optimizer.step()
    time.sleep(0.02)
    line = {"kind": "step", "pid": os.getpid(), "step": run.step + 1, "at_s": time.monotonic()}
    os.write(record, (json.dumps(line) + "\\n").encode())
"""


@pytest.fixture
def auto(lab: Lab) -> Lab:
    """A lab whose scripts say nothing of how often they save."""
    del lab.env["OUTLAST_SAVE_EVERY"]
    return lab


def said(lab: Lab, place: str = "run") -> dict[str, Any] | None:
    """What `outlast status` says of the interval."""
    status = lab.outlast("status", place, "--json")
    return json.loads(status.stdout)["interval"] if status.returncode == 0 else None


def gaps_s(lab: Lab, steps: list[int], pid: int) -> list[float]:
    """Between the safe points of saves, by the clock of the script."""
    at_s = {record["step"]: record["at_s"] for record in lab.of("step", pid)}
    times = [at_s[step] for step in sorted(steps) if step in at_s]
    return [later - earlier for earlier, later in itertools.pairwise(times)]


def test_saves_come_at_the_interval_that_status_prints(auto: Lab) -> None:
    """Within a tenth, by the steps of the checkpoints on the store and the script's own clock."""
    script = auto.source(SCRIPT, OUTLAST_MAX_LOST_WORK="3s")
    eventually("five saves are durable", lambda: len(auto.commits()) >= 6, auto.said)
    shown = said(auto)
    assert shown is not None
    assert shown["bound"] == "max-lost-work"
    assert shown["worst_s"] <= 3.15
    gaps = gaps_s(auto, [commit["step"] for commit in auto.commits()][1:], script.pid)
    assert statistics.median(gaps) == pytest.approx(shown["seconds"], rel=0.1)
    assert f"every {shown['seconds']:.1f} s, so that no more than 3.0 s are lost" in " ".join(
        auto.outlast("status", "run").stdout.split()
    )


def test_on_a_store_that_becomes_ten_times_slower_saves_come_back_to_back_and_the_real_limit_is_told(
    auto: Lab,
) -> None:
    """Then it says what the limit really is; the saves that follow come at the new interval. (Status reads past the slow way.)"""
    with bucket(auto.folder / "bucket", 1e7) as place:
        throttle = place.throttle
        assert throttle is not None
        auto.env.update(place.env)
        script = auto.source(SCRIPT, OUTLAST_STORE=place.url, OUTLAST_MAX_LOST_WORK="3s")
        before = tuned(
            lambda: said(auto, str(place.folder / "run")), lambda now: now["bound"] == "max-lost-work"
        )
        assert before["worst_s"] <= 3.15
        throttle._bytes_per_s = 1e6
        tuned(
            lambda: said(auto, str(place.folder / "run")),
            # One slow upload is not believed yet, and one may have been under way as the store became slower.
            lambda now: (
                now["bound"] == "back-to-back"
                and now["seconds"] > 3.5
                and now["seconds"] == pytest.approx(now["upload_s"], rel=0.1)
            ),
        )
        text = script.says("saves run back to back, and an interruption without a notice can cost up to")
        assert "too long for a max_lost_work of 3 s" in text


def tuned(
    get: Callable[[], dict[str, Any] | None], until: Callable[[dict[str, Any]], bool]
) -> dict[str, Any]:
    """Wait until what status says of the interval is so."""
    seen: list[dict[str, Any] | None] = [None]

    def is_so() -> dict[str, Any] | None:
        seen[0] = now = get()
        return now if now is not None and until(now) else None

    return eventually("the interval is that", is_so, lambda: f"last it was {seen[0]}")


def test_a_run_begins_with_what_others_in_its_pool_went_through_and_not_with_what_another_pool_did(
    auto: Lab,
) -> None:
    """The first one's machine goes without a word, so that its next attempt puts what others read."""
    auto.env["OUTLAST_MAX_LOST_WORK"] = "3s"
    first = auto.source(SCRIPT, OUTLAST_POOL="a", T_NAME="one")
    auto.committed(1, "one")
    agent = agent_of(first.pid)
    first.kill()
    os.kill(agent, signal.SIGKILL)
    auto.nothing_left()
    assert spells(auto, "a") == []
    auto.source(SCRIPT, OUTLAST_POOL="a", T_NAME="one")
    eventually("the attempt before is kept", lambda: spells(auto, "a"), auto.said)
    assert [(spell["attempt"], spell["end"]) for spell in spells(auto, "a")] == [(1, "lost")]
    for pool in ("a", "b"):
        auto.source(SCRIPT, OUTLAST_POOL=pool, T_NAME=f"two-{pool}")
    same, other = (
        tuned(lambda pool=pool: said(auto, f"two-{pool}"), lambda now: True) for pool in ("a", "b")
    )
    assert (same["pool"], same["interruptions"]) == ("a", 1)
    assert (other["pool"], other["interruptions"]) == ("b", 0)
    assert same["mean_s"] < 0.5 * other["mean_s"]


def spells(lab: Lab, pool: str) -> list[dict[str, Any]]:
    """What is kept of a pool."""
    return [json.loads(path.read_bytes()) for path in sorted((lab.folder / "store/_pools" / pool).glob("*"))]
