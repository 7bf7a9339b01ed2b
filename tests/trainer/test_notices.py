"""When a script leaves: each kind of notice, by real processes, from what they wrote and from what lies on the store."""

from __future__ import annotations

import json
import os
import signal

import pytest

from field.torchless import events
from launch import Lab, Started, eventually, history

PREEMPTED = 75
STEPS = 18


def notify(lab: Lab, seconds: float) -> None:
    """Put the notice there whole, or let its deadline be another."""
    beside = lab.folder / "notice-being-written"
    beside.write_text(json.dumps({"seconds": seconds}))
    beside.rename(lab.folder / "notice")


def start(lab: Lab, gates: str, **env: object) -> Started:
    """A script that has one durable save behind it, so that its agent knows what saves cost, and waits at the first gate."""
    first = gates.partition(",")[0]
    started = lab.supervised(T_GATES=gates, T_SAVE="step:2", OUTLAST_NOTICE_FILE=lab.folder / "notice", **env)
    lab.at(first)
    lab.committed(2)
    return started


def emergencies(lab: Lab) -> list[int]:
    """Steps of the emergency checkpoints on the store."""
    return [commit["step"] for commit in lab.commits() if commit["reason"] == "emergency"]


def noted(lab: Lab, kind: str) -> list[dict[str, object]]:
    """Records of the ledger."""
    return [record for record in events(lab.folder / "store" / "run") if record["kind"] == kind]


def test_a_machine_that_goes_is_saved_for_at_once_and_trained_on_until_it_must_be_left(lab: Lab) -> None:
    """Two emergency saves: one at the next safe point, one of the last step that fits before the deadline."""
    started = start(lab, "step:5", T_SLEEP=0.1, T_EPOCHS=30)
    notify(lab, 8.0)
    started.says("training goes on for")
    lab.open("step:5")
    eventually("the first save", lambda: emergencies(lab), lab.said)
    started.says("waiting whether this machine goes away")
    # Between them perhaps one that the agent saved without a trainer that stood still too long.
    first, *_, last = emergencies(lab)
    assert first == 5
    assert last == lab.of("step")[-1]["count"] >= first + 10
    left = noted(lab, "leaving")[0]
    assert 0 < left["left_s"] < 8.0
    (decision,) = noted(lab, "decision")
    assert (decision["what"], decision["bytes_per_s"] > 0) == ("snapshot", True)
    (outcome,) = noted(lab, "notice-outcome")
    assert outcome["durable"] is True


@pytest.mark.parametrize("why", ["short", "unmeasured"])
def test_a_machine_that_goes_too_soon_or_is_not_known_is_left_at_once(lab: Lab, why: str) -> None:
    """No time to train on, or nothing that could tell: one emergency save."""
    notice = lab.folder / "notice"
    started = lab.supervised(
        T_GATES="step:5", OUTLAST_NOTICE_FILE=notice, **({"T_SAVE": "step:2"} if why == "short" else {})
    )
    lab.at("step:5")
    if why == "short":
        lab.committed(2)
    notify(lab, 1.0 if why == "short" else 100.0)
    started.says("then the trainer leaves")
    lab.open("step:5")
    started.says("waiting whether this machine goes away")
    assert emergencies(lab) == [5]


def test_a_notice_that_is_cancelled_costs_one_save_and_no_restart(lab: Lab) -> None:
    """It was trained on; so it goes on."""
    started = start(lab, "step:5,step:9")
    notify(lab, 100.0)
    started.says("training goes on for")
    lab.open("step:5")
    eventually("it is saved", lambda: emergencies(lab), lab.said)
    lab.at("step:9")
    (lab.folder / "notice").unlink()
    started.says("cancelled; training goes on")
    lab.open("step:9")
    assert started.wait() == 0, lab.said()
    assert emergencies(lab) == [5]
    assert len(lab.of("run")) == 1
    assert len(history(lab.records)) == len(lab.of("step")) == STEPS
    assert [record["durable"] for record in noted(lab, "notice-cancelled")] == [True]


def test_a_deadline_that_moves_earlier_is_followed(lab: Lab) -> None:
    """From a hundred seconds to one: it leaves at the next safe point."""
    started = start(lab, "step:5,step:9")
    notify(lab, 100.0)
    started.says("training goes on for")
    lab.open("step:5")
    lab.at("step:9")
    notify(lab, 1.0)
    started.says("the latest safe leave")
    lab.open("step:9")
    started.says("waiting whether this machine goes away")
    assert (emergencies(lab)[0], emergencies(lab)[-1]) == (5, 9)
    assert len(noted(lab, "notice")) == 2


def test_a_signal_while_a_machines_notice_is_trained_on_leaves_at_once(lab: Lab) -> None:
    """Sent to the whole group, with loader workers: whoever sends it ends this process too."""
    started = start(lab, "step:5,step:9", T_WORKERS=2)
    notify(lab, 100.0)
    started.says("training goes on for")
    lab.open("step:5")
    lab.at("step:9")
    started.kill_group(signal.SIGTERM)
    started.says("SIGTERM: this machine goes away")
    lab.open("step:9")
    assert started.wait() == PREEMPTED, lab.said()
    assert (emergencies(lab)[0], emergencies(lab)[-1]) == (5, 9)
    lab.nothing_left()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_a_signal_leaves_after_its_first_save_though_saves_are_measured(lab: Lab, number: int) -> None:
    """SIGTERM is followed by the end, SIGUSR2 warns of one: both leave at the next safe point."""
    started = start(lab, "step:5", OUTLAST_GRACE_S=100)
    started.kill(number)
    started.says("then the trainer leaves")
    lab.open("step:5")
    started.says("leaving at epoch 0: step 5 is durable")
    eventually("it is saved", lambda: emergencies(lab) == [5], lab.said)


def test_a_trainer_that_hangs_in_a_tail_has_its_newest_complete_snapshot_saved_without_it(lab: Lab) -> None:
    """A hung collective in validation: no safe point comes, what was held becomes durable in time, and so it is killed."""
    started = start(lab, "tail:1")
    trainer = lab.at("tail:1")
    notify(lab, 3.0)
    commit = lab.committed(12)
    assert (commit["reason"], commit["position"]["tail_open"]) == ("emergency", True)
    os.kill(trainer, signal.SIGKILL)
    started.says("waiting whether this machine goes away")
    started.kill(signal.SIGTERM)
    assert started.wait() == PREEMPTED, lab.said()
    lab.open("tail:1")
    assert lab.script().wait() == 0, lab.said()
    assert [record["epoch"] for record in lab.of("tail-end")] == [0, 1, 2]
