"""The whole machine is gone at one operation of a save: trainer and agent, really killed, and the trainer started anew.

`test_kill_every_operation.py` meets every operation of a save; here a few are met with everything real. A proxy before
the bucket holds the request until both processes are dead, so the operation is the last thing that this machine tried.
"""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from launch import Lab, agent_of, eventually, history
from servers import Fault, FaultyProxy, S3Server, faulty_proxy, rclone_s3

SCRIPT = Path(__file__).with_name("interrupted.py")
SHAPE = {"samples": 120, "batch": 2, "workers": 0, "accumulate": 1, "epochs": 8, "carry": False}
POINTS = {
    "first segment": ("hang", r"PUT .*/segments/"),
    "manifest": ("hang", r"PUT .*/rank-00000\.json"),
    "before the commit": ("hang", r"PUT .*/commit\.json"),
    "after the commit": ("lost", r"PUT .*/commit\.json"),
}
"""What the proxy does to the request: `hang` lets nothing through, `lost` all but the answer."""


@pytest.fixture
def bucket(tmp_path: Path) -> Iterator[tuple[FaultyProxy, S3Server, Path]]:
    """A bucket behind a proxy, and the folder that holds its objects."""
    with rclone_s3(tmp_path) as server, faulty_proxy(server) as (proxy, seen):
        yield proxy, seen, tmp_path / "rclone" / server.bucket


def steps_on(root, file):
    """(attempt, step) of the checkpoints that have a file."""
    found = []
    for path in root.glob(f"checkpoints/*/{file}"):
        attempt, _, step = path.parent.name.split("-")[:3]
        found.append((int(attempt), int(step.partition("+")[0])))
    return sorted(found)


def test_killed_with_its_agent_at_an_operation_of_a_save(lab, zygote, bucket, tmp_path_factory):
    """Killed at each point in turn, it resumes from the newest checkpoint that is full, and trains on from the right step."""
    undisturbed = Lab(tmp_path_factory.mktemp("undisturbed"), zygote)
    assert undisturbed.script(path=SCRIPT, T_SHAPE=json.dumps(SHAPE)).wait() == 0, undisturbed.said()

    proxy, server, folder = bucket
    root = folder / "run"
    lab.env |= {
        **server.env,
        "OUTLAST_STORE": server.url("").rstrip("/"),
        "OUTLAST_SAVE_EVERY": "2 steps",
        "T_SHAPE": json.dumps(SHAPE),
        "T_SLEEP": "0.03",
    }
    expected = (0, 0)
    for point, (kind, pattern) in POINTS.items():
        proxy.plan(Fault(kind, 10**9, pattern, skip=2))  # two saves of this attempt succeed
        script = lab.script(path=SCRIPT)
        eventually(
            f"it is at the {point}",
            lambda p=pattern: sum(bool(re.search(p, r)) for r in proxy.requests) >= 3,
            lab.said,
        )
        agent = agent_of(script.pid)
        script.kill(signal.SIGSTOP)
        if kind == "lost":
            eventually(
                "the server has it",
                lambda: steps_on(root, "commit.json")[-1:] == steps_on(root, "rank-00000.json")[-1:],
            )
        os.kill(agent, signal.SIGKILL)
        script.kill()
        script.wait()
        (begun,) = lab.of("run", script.pid)
        assert begun["step"] == expected[1], point
        full, committed = steps_on(root, "rank-00000.json"), steps_on(root, "commit.json")
        assert (full == committed) == (point != "before the commit"), point
        expected = full[-1]
        assert expected[0] == begun["attempt"]
        assert expected[1] > begun["step"]
    proxy.plan()
    last = lab.script(path=SCRIPT, T_SLEEP=0)
    assert last.wait() == 0, lab.said()
    (begun,) = lab.of("run", last.pid)
    assert (begun["attempt"], begun["step"]) == (len(POINTS) + 1, expected[1])
    assert lab.of("step", last.pid)[0]["count"] == expected[1] + 1
    assert history(lab.records) == history(undisturbed.records)
    assert lab.of("end")[0]["digest"] == undisturbed.of("end")[0]["digest"]
    assert steps_on(root, "commit.json") == steps_on(root, "rank-00000.json")
