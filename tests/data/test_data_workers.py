"""Workers live until the trainer is done with them, and no longer."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

HERE = Path(__file__).parent

SCRIPT = """
import os, sys, torch
sys.path.insert(0, {here!r})
from torch.utils.data import DataLoader
from data_sets import Plain, Streaming
from outlast.data.source import take_over
import signal

def note(worker):
    info = torch.utils.data.get_worker_info()
    print("worker", os.getpid(), type(info.dataset).__name__, worker == info.id, flush=True)

def main():
    signal.signal(signal.SIGTERM, lambda *_: print("trainer got it", flush=True))
    signal.signal(signal.SIGUSR2, lambda *_: print("trainer got it", flush=True))
    signal.signal(signal.SIGINT, lambda *_: print("trainer got it", flush=True))
    loader = {loader}
    source = take_over(loader, seed=1)
    print("starting", flush=True)
    batches = source.begin(0, None)
    for _ in range({first}):  # of both workers
        next(batches)
    print("ready", flush=True)
    for line in sys.stdin:
        print("batch", sum(1 for _ in zip(range(5), batches)), flush=True)
        if line.startswith("end"):
            break
    del batches, source
    print("ended", flush=True)

if __name__ == "__main__":
    main()
"""

LOADERS = {
    "fork": "DataLoader(Plain(400), 4, num_workers=2, worker_init_fn=note)",
    "spawn": "DataLoader(Plain(400), 4, num_workers=1, worker_init_fn=note, multiprocessing_context='spawn')",
    "iterable": "DataLoader(Streaming(), 1, num_workers=2, worker_init_fn=note)",
}


class Trainer:
    """The script, in a process group of its own, with what it printed."""

    def __init__(self, loader, tmp_path, until="ready"):
        script = tmp_path / "train.py"
        script.write_text(SCRIPT.format(here=str(HERE), loader=LOADERS[loader], first=4))
        self.process = subprocess.Popen(
            [sys.executable, script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.lines = []
        self.until(until)
        self.workers = [
            psutil.Process(int(line.split()[1])) for line in self.lines if line.startswith("worker")
        ]

    def until(self, start):
        while not (self.lines and self.lines[-1].startswith(start)):
            line = self.process.stdout.readline()
            assert line, f"the script ended after {self.lines}"
            self.lines.append(line.strip())
        return self.lines[-1]

    def stop(self):
        """Kill what is left, and say whether there was anything."""
        left = [each for each in psutil.process_iter() if session_of(each) == self.process.pid]
        for each in left:
            each.kill()
        self.process.communicate()
        return bool(left)

    def ask(self, word):
        self.lines.append("")
        self.process.stdin.write(f"{word}\n")
        self.process.stdin.flush()


@pytest.fixture
def trainer(request, tmp_path):
    started = Trainer(request.param, tmp_path)
    yield started
    started.stop()


def session_of(process):
    """The session of a process that lives; a zombie only waits for pid 1 to take note of its end."""
    try:
        return None if process.status() == psutil.STATUS_ZOMBIE else os.getsid(process.pid)
    except (ProcessLookupError, psutil.NoSuchProcess):
        return None


def gone(processes):
    _, alive = psutil.wait_procs(processes, timeout=10)
    return not alive


@pytest.mark.parametrize("trainer", LOADERS, indirect=True)
def test_signals_to_the_group_are_the_trainers(trainer):
    """SIGTERM, SIGUSR2 and SIGINT to the whole group reach the trainer; its workers go on, and end when it ends them."""
    assert trainer.workers
    shown = [line.split()[2:] for line in trainer.lines if line.startswith("worker")]
    assert all(dataset in {"Plain", "Streaming"} and right == "True" for dataset, right in shown), (
        "not the user's data set"
    )
    for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT):
        trainer.lines.append("")
        os.killpg(trainer.process.pid, number)
        trainer.until("trainer got it")
        trainer.ask("go")
        assert trainer.until("batch") == "batch 5"
    assert all(worker.is_running() for worker in trainer.workers)
    trainer.ask("end")
    trainer.until("ended")
    assert gone(trainer.workers)


@pytest.mark.parametrize("trainer", ["fork"], indirect=True)
def test_the_trainer_may_end_a_worker(trainer):
    """A SIGTERM that comes from the trainer ends a worker, as torch needs it for one that hangs; from others it does not."""
    worker = trainer.workers[0]
    worker.send_signal(signal.SIGTERM)
    trainer.ask("go")
    trainer.until("batch")
    assert worker.is_running()
    assert worker.status() != psutil.STATUS_ZOMBIE


@pytest.mark.parametrize("trainer", ["fork", "spawn"], indirect=True)
def test_workers_die_with_a_killed_trainer(trainer):
    """A trainer killed by SIGKILL takes its workers along at once, and leaves none."""
    started = time.monotonic()
    trainer.process.kill()
    assert gone(trainer.workers)
    assert time.monotonic() - started < 4, "torch's own watchdog, which polls every 5 s, was what ended them"


@pytest.mark.parametrize("moment", ["starting", "worker", "ready"])
def test_no_worker_is_left_whenever_the_trainer_is_killed(moment, tmp_path):
    """Killed while its workers start, or when one has started and the other has not, a trainer leaves none either."""
    trainer = Trainer("fork", tmp_path, until=moment)
    trainer.process.kill()
    trainer.process.wait()
    deadline = time.monotonic() + 10
    while any(session_of(each) == trainer.process.pid for each in psutil.process_iter()):
        if time.monotonic() > deadline:
            break
    assert not trainer.stop()
