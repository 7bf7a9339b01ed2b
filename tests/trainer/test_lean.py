"""An emergency checkpoint writes what changed and little else, and nothing else is written until it is durable."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from launch import Lab, eventually, files_below

PARTS, PART_BYTES = 4, 4 << 20
"""Four tensors, of which a step changes one: `step % 4`."""

SCRIPT = f"""
import json, os, time
import torch
import outlast

LAB = os.environ["T_LAB"]
record = os.open(f"{{LAB}}/record", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
parts = torch.nn.ParameterList([torch.rand({PART_BYTES} // 4) for _ in range({PARTS})])
run = outlast.Run("run", parts=parts)
for step in run.steps(400):
    with torch.no_grad():
        parts[step % {PARTS}].add_(1.0)
    run.log(loss=1.0)
    os.write(record, (json.dumps({{"kind": "step", "pid": os.getpid(), "step": step}}) + "\\n").encode())
    while step == 4 and not os.path.exists(f"{{LAB}}/open-here"):
        time.sleep(0.01)
"""


def test_an_emergency_checkpoint_writes_what_changed_and_a_hundredth_and_64_kib(lab: Lab) -> None:
    """The save of step 4 is durable, step 5 changes one tensor of four: at the signal that one is written, and no other."""
    script = lab.source(SCRIPT, OUTLAST_SAVE_EVERY="4 steps")
    lab.committed(4)
    eventually("the gate", lambda: [line for line in lab.of("step") if line["step"] == 4], lab.said)
    store = lab.folder / "store"
    before = set(files_below(store))
    os.kill(script.pid, signal.SIGTERM)
    (lab.folder / "open-here").touch()
    assert script.wait() == 75
    (commit,) = (commit for commit in lab.commits() if commit["reason"] == "emergency")
    assert commit["step"] == 5
    at_ns = next(
        ns for path, (ns, _) in objects(store).items() if path.name == "commit.json" and path not in before
    )
    put = {path: size for path, (ns, size) in objects(store).items() if path not in before and ns <= at_ns}
    assert sum(put.values()) <= 1.01 * PART_BYTES + (64 << 10), put
    assert sum(size for path, size in put.items() if path.suffix == ".bin") >= PART_BYTES
    assert {path.relative_to(store).parts[1] for path in put} == {"segments", "events", "checkpoints"}


def objects(store: Path) -> dict[Path, tuple[int, int]]:
    """Each object that lies on the store: when it came to lie there, and its bytes."""
    return {
        path: (path.stat().st_ctime_ns, path.stat().st_size) for path in store.rglob("*") if path.is_file()
    }
