"""Memory."""

from __future__ import annotations

import ast
import os
import re
from pathlib import Path

import pytest

import outlast
from launch import agent_of, children, eventually
from outlast.agent.protocol import Saved

STATE_BYTES = 4 * 3000**2
"""One square matrix of float32, above the 32 MiB up to which malloc keeps what is freed."""
SMALL_BYTES = 8 << 20
"""What is no copy of the state: buffers of the store, the interpreter's own."""

LARGE_BYTES = 4 * 10_000**2
"""A state that is larger than all that a restore may take."""
RESTORE_BYTES = 256 << 20
"""What a restore may take, in each of the two processes; most of it are pages that they share."""
FEW_FILES = 8
"""Folders and files that a save and a prune may have open; 250 saves that leaked one each would be far beyond."""
AGENT_BYTES = 64 << 20
"""An agent that holds nothing: the interpreter and the store's client."""

WIDE = """
import json, os, sys, time
import torch
import outlast

LAB = os.environ["T_LAB"]
record = os.open(f"{LAB}/record", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
model = torch.nn.Linear(3000, 3000, bias=False)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

def come_to(place):
    os.write(record, (json.dumps({"kind": "at", "pid": os.getpid(), "place": place}) + "\\n").encode())
    while not os.path.exists(f"{LAB}/open-{place}"):
        time.sleep(0.01)

run = outlast.Run("run", model=model, optimizer=optimizer)
for step in run.steps(6):
    if sys.argv[1] == "before":
        optimizer.zero_grad()
    model(torch.randn(1, 3000)).mean().backward()
    optimizer.step()
    if step in (0, 5):
        come_to(step)
    if sys.argv[1] == "after":
        optimizer.zero_grad()
"""


def status(pid):
    """The memory of a process: the lines of /proc/PID/status that are in kB, in bytes."""
    found = re.findall(r"(\w+):\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return {name: int(kb) * 1024 for name, kb in found}


def arenas(*pids):
    """Bytes of the memory files that processes hold together, each file once."""
    sizes = {}
    for pid in pids:
        for fd in Path(f"/proc/{pid}/fd").iterdir():
            if "outlast-arena" in os.readlink(fd):
                info = fd.stat()
                sizes[info.st_ino] = info.st_size
    return sum(sizes.values())


@pytest.mark.parametrize("zero_grad", ["before", "after"])
def test_staging_doubled_host_memory(lab, zero_grad):
    """staging doubled host memory: out of memory at the first save (radixark/Megatron-LM 61)"""
    script = lab.source(WIDE, zero_grad, OUTLAST_SAVE_EVERY="3 steps")
    lab.at(0)  # before the first save
    agent = agent_of(script.pid)
    before = {pid: status(pid) for pid in (script.pid, agent)}
    for pid in before:
        Path(f"/proc/{pid}/clear_refs").write_text("5")  # the peak counts from here
    lab.open(0)
    lab.at(5)
    lab.committed(3)
    assert arenas(script.pid, agent) <= 2.04 * STATE_BYTES + SMALL_BYTES
    for pid, was in before.items():
        now = status(pid)
        assert now["RssAnon"] <= was["RssAnon"] + SMALL_BYTES, (
            "beside the arenas there is no copy of the state"
        )
        # At the peak too; pages of the arenas that a process has touched count here.
        assert now["VmHWM"] <= was["VmRSS"] + 2.04 * STATE_BYTES + SMALL_BYTES
    lab.open(5)
    assert script.wait() == 0, lab.said()
    eventually("its memory is given back", lambda: not Path(f"/proc/{agent}").exists())


LARGE = """
import json, os, sys, time
import torch
import outlast

attempt = sys.argv[1]
record = os.open(os.environ["T_LAB"] + "/record", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

def come_to(place, **fields):
    place = f"{place}-{attempt}"
    os.write(record, (json.dumps({"kind": "at", "pid": os.getpid(), "place": place, **fields}) + "\\n").encode())
    while not os.path.exists(os.environ["T_LAB"] + f"/open-{place}"):
        time.sleep(0.01)

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.small = torch.nn.Linear(2, 2)
        self.large = torch.nn.Parameter(torch.empty(10_000, 10_000).fill_(float(attempt)), requires_grad=False)

model = Model()
optimizer = torch.optim.SGD(model.small.parameters(), lr=0.1)
come_to("made")
run = outlast.Run("run", model=model, optimizer=optimizer)
come_to("ready", found=[float(model.large.min()), float(model.large.max())])
for step in run.steps(2):
    model.small(torch.randn(1, 2)).mean().backward()
    optimizer.step()
    if step == 1:
        come_to("trained")
"""


def test_restoring_doubled_host_memory(lab):
    """staging doubled host memory: nor is there a second copy of the state, in either process, while it is restored."""
    first = lab.source(LARGE, "1", OUTLAST_SAVE_EVERY="1 steps")
    for place in ("made-1", "ready-1"):
        lab.open(place)
    lab.at("trained-1")
    lab.committed(1)
    first.kill()
    first.wait()
    lab.nothing_left()

    script = lab.source(LARGE, "2")
    lab.at("made-2")
    was = status(script.pid)
    Path(f"/proc/{script.pid}/clear_refs").write_text("5")  # the peak counts from here
    lab.open("made-2")
    lab.at("ready-2")
    (ready,) = (r for r in lab.of("at") if r["place"] == "ready-2")
    assert ready["found"] == [1.0, 1.0]
    assert status(script.pid)["VmHWM"] <= was["VmRSS"] + RESTORE_BYTES < was["VmRSS"] + LARGE_BYTES
    assert status(agent_of(script.pid))["VmHWM"] <= AGENT_BYTES + RESTORE_BYTES < LARGE_BYTES
    for place in ("ready-2", "trained-2"):
        lab.open(place)
    assert script.wait() == 0, lab.said()


def test_buffers_leaked_a_little_with_every_save(trainer):
    """buffers leaked a little with every save (pytorch 170163)"""
    saving = trainer()

    def held():
        memory = status(saving.agent)
        return (
            memory["RssAnon"] + memory["RssShmem"],
            len(os.listdir(f"/proc/{saving.agent}/fd")),
            memory["VmSize"],
        )

    def save(first, last):
        for step in range(first, last):
            assert isinstance(
                saving.link.wait_saved(saving.save(step, os.urandom(65536)), lambda: None, ""), Saved
            )

    save(1, 50)
    own_files = len(os.listdir("/proc/self/fd"))
    bytes_before, files_before, mapped_before = held()
    save(50, 300)
    bytes_after, files_after, mapped_after = held()
    assert files_after <= files_before + FEW_FILES  # some may be open at that moment
    assert bytes_after - bytes_before < 250 * 65536 / 8, (
        "250 saves left less than an eighth of what they saved"
    )
    assert mapped_after - mapped_before < 250 * 65536 / 8
    assert len(os.listdir("/proc/self/fd")) == own_files
    assert len(saving.link._saved) < 100
    saving.close()


def test_fork_after_a_storage_clients_threads_had_started(lab, trainer, bucket, monkeypatch):
    """fork after a storage client's threads had started: deadlock in the writer (mlcommons/storage 642)"""
    _, server, _ = bucket
    for name, value in server.env.items():
        monkeypatch.setenv(name, value)
    saving = trainer(server.url("fork"))
    for step in (1, 2):
        saving.save_and_wait(step, b"x" * 1000)
        assert children(saving.agent) == []
    saving.close()

    # The one that forks (for workers of a loader) is the trainer, which has no storage client.
    script = lab.script(
        T_WORKERS=2, T_EPOCHS=1, T_GATES="step:3", OUTLAST_STORE=server.url("forks"), OUTLAST_SAVE_EVERY="1 steps",
        **server.env,
    )  # fmt: skip
    lab.at("step:3")
    maps = Path(f"/proc/{script.pid}/maps").read_text()
    assert "torch" in maps
    assert "obstore" not in maps
    lab.open("step:3")
    assert script.wait() == 0, lab.said()


def test_nothing_below_the_trainer_can_fork():
    """fork after a storage client's threads had started: what runs beside a client names nothing that forks."""
    package = Path(outlast.__file__).parent
    for folder in ("agent", "checkpoint", "store", "notice", "policy", "snapshot"):
        for path in (package / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                names = []
                if isinstance(node, ast.Import):
                    names = [alias.name for alias in node.names]
                elif isinstance(node, ast.ImportFrom):
                    names = [node.module or ""]
                elif isinstance(node, ast.Attribute):
                    names = [node.attr]
                elif isinstance(node, ast.keyword):
                    names = [node.arg or ""]
                bad = [n for n in names if re.match(r"(multiprocessing|pty|fork|preexec_fn|ProcessPool)", n)]
                assert not bad, f"{path.relative_to(package)}: {bad}"
