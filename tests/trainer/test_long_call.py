"""A signal that arrives while the trainer is in a call that lets no Python run: the agent hears of it all the same."""

from __future__ import annotations

import os
import signal

from launch import Lab
from outlast.trainer.signals import Signals

PREEMPTED = 75
SCRIPT = """
import ctypes, json, os, signal, threading, time
import torch, outlast

LAB = os.environ["T_LAB"]
record = os.open(f"{LAB}/record", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
model = torch.nn.Linear(4, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
libc = ctypes.CDLL(None)
mutex = ctypes.create_string_buffer(64)  # a collective that hangs waits like this: no signal ends it


def at(place):
    os.write(record, (json.dumps({"kind": "at", "place": place, "pid": os.getpid()}) + "\\n").encode())
    while not os.path.exists(f"{LAB}/open-{place}"):
        time.sleep(0.01)


def hang():
    def release():
        at("call")
        libc.pthread_mutex_unlock(mutex)

    libc.pthread_mutex_lock(mutex)
    threading.Thread(target=release).start()
    libc.pthread_mutex_lock(mutex)


def lose_a_worker():
    if (pid := os.fork()) == 0:
        signal.pause()
        os._exit(0)
    at("fork")
    os.kill(pid, signal.SIGTERM)
    assert os.waitpid(pid, 0)[1] == signal.SIGTERM
    at("alone")


run = outlast.Run("run", model=model, optimizer=optimizer)
data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.ones(12, 4)), batch_size=2)
for epoch in run.epochs(2):
    for i, (x,) in run.enumerate(data):
        model(x).sum().backward()
        optimizer.step()
    if epoch == 0:
        globals()[os.environ["T_DOES"]]()
"""


def test_what_is_complete_is_saved_while_the_call_lasts(lab: Lab) -> None:
    """A plain script with no supervisor that could hear it: the save is durable before the call ends, and then it leaves."""
    started = lab.source(SCRIPT, T_DOES="hang")
    lab.at("call")
    started.kill(signal.SIGTERM)
    commit = lab.committed(6)
    assert (commit["reason"], commit["step"], commit["position"]["tail_open"]) == ("emergency", 6, True)
    assert not (lab.folder / "open-call").exists()
    lab.open("call")
    assert started.wait() == PREEMPTED, lab.said()


def test_a_signal_to_a_process_that_was_forked_is_not_the_trainers(lab: Lab) -> None:
    """A loader ends its workers by SIGTERM: that is no notice."""
    started = lab.source(SCRIPT, T_DOES="lose_a_worker")
    lab.at("fork")
    lab.open("fork")
    lab.at("alone")
    lab.open("alone")
    assert started.wait() == 0, lab.said()
    assert "SIGTERM" not in started.text
    assert [commit["reason"] for commit in lab.commits()] == ["final"]


def test_a_script_that_listens_to_the_interpreter_itself_goes_on_to() -> None:
    """An event loop has its own descriptor for signals: it is left alone."""
    numbers = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)
    handlers = {number: signal.getsignal(number) for number in numbers}
    read, write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    before = signal.set_wakeup_fd(write)
    try:
        Signals(30.0)
        assert signal.set_wakeup_fd(write) == write
    finally:
        signal.set_wakeup_fd(before)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        os.close(read)
        os.close(write)
