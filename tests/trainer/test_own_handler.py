"""A script that has a handler of its own for a signal keeps it: it is called as well, and cannot end the script unsaved."""

from __future__ import annotations

import signal

import pytest

from launch import TRAIN, Lab

PREEMPTED = 75
SCRIPT = """
import os, runpy, signal, sys

def own(number, frame):
    print(f"it heard {signal.Signals(number).name}", flush=True)  # in one piece
    if os.environ["T_OWN"] == "exits":
        sys.exit(3)

for number in (signal.SIGTERM, signal.SIGUSR2):
    signal.signal(number, own)
runpy.run_path(os.environ["T_TRAIN"], run_name="__main__")
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
@pytest.mark.parametrize("own", ["returns", "exits"])
def test_both_handlers_have_their_say(lab: Lab, own: str, number: signal.Signals) -> None:
    """A scheduler's client, a logger: called once. The step that is done is saved, and the status is that of a preemption."""
    started = lab.source(SCRIPT, T_OWN=own, T_TRAIN=TRAIN, T_GATES="step:5")
    lab.at("step:5")
    started.kill(number)
    started.says(f"it heard {number.name}")
    lab.open("step:5")
    assert started.wait() == PREEMPTED, lab.said()
    assert [(commit["reason"], commit["step"]) for commit in lab.commits()] == [("emergency", 5)]
    assert started.text.count("it heard") == 1
    assert ("held back" in started.text) is (own == "exits")


def test_outside_of_the_loop_the_scripts_own_handler_ends_it(lab: Lab) -> None:
    """There is nothing to save: what it does is what happens."""
    started = lab.source(SCRIPT, T_OWN="exits", T_TRAIN=TRAIN, T_GATES="run")
    lab.at("run")
    started.kill(signal.SIGTERM)
    assert started.wait() == 3, lab.said()


LATER = """
import os, runpy, signal
import outlast

class Run(outlast.Run):
    def __init__(self, *arguments, **states):
        super().__init__(*arguments, **states)
        signal.signal(signal.SIGTERM, lambda *_: print("it heard", flush=True))

outlast.Run = Run
runpy.run_path(os.environ["T_TRAIN"], run_name="__main__")
"""


def test_a_handler_that_is_set_later_takes_no_save_away(lab: Lab) -> None:
    """A library's that comes after: the agent hears of the signal from the interpreter."""
    started = lab.source(LATER, T_TRAIN=TRAIN, T_GATES="step:5")
    lab.at("step:5")
    started.kill(signal.SIGTERM)
    started.says("it heard")
    started.says("then the trainer leaves")
    lab.open("step:5")
    assert started.wait() == PREEMPTED, lab.said()
    assert [(commit["reason"], commit["step"]) for commit in lab.commits()] == [("emergency", 5)]
