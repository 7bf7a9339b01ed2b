"""A run that is killed again and again holds a handful of checkpoints, on a disk and in a bucket: real agents, real stores."""

from __future__ import annotations

import pytest
from torchless import commits, read_tensors

from servers import rclone_s3

STATE_BYTES = 200_000
KEPT = 3


def state(step: int) -> bytes:
    return bytes([step]) * 100_000 + bytes([255 - step]) * 100_000


def segments(root):
    return sum(path.stat().st_size for path in root.rglob("*.bin"))


@pytest.fixture(params=["disk", "bucket"])
def place(request, tmp_path, monkeypatch):
    """URL of the run, and the folder that its objects lie in."""
    if request.param == "disk":
        yield f"file://{tmp_path}/run", tmp_path / "run"
        return
    with rclone_s3(tmp_path) as server:
        for name, value in server.env.items():
            monkeypatch.setenv(name, value)
        yield server.url("run"), tmp_path / "rclone" / server.bucket / "run"


def test_attempts_come_and_go_and_the_newest_checkpoints_stay(trainer, place):
    """Each attempt goes on from the newest one, and deletes what those before it left, also what nobody had deleted in time."""
    url, root = place
    step = 0
    for attempt in range(1, 5):
        one = trainer(url)
        assert one.offered == step
        assert one.state == (state(step) if step else None)
        for _ in range(4):
            step += 1
            one.save_and_wait(step, state(step))
        one.kill(agent_too=attempt == 2)
        assert [at for _, at, _ in commits(root)][-KEPT:] == [step - 2, step - 1, step]
    last = trainer(url)
    last.save_and_wait(step + 1, state(step + 1))
    last.close()
    found = commits(root)
    assert [at for _, at, _ in found] == [step - 1, step, step + 1]
    assert [read_tensors(path)["x"] for _, _, path in found] == [state(at) for _, at, _ in found]
    assert segments(root) <= (KEPT + 2) * STATE_BYTES
