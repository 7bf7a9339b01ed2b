"""A signal that only the trainer heard is not lost with the agent that was told of it."""

from __future__ import annotations

import time
from datetime import datetime

import pytest

from field.torchless import Trainer, events
from launch import eventually
from outlast.agent.control import Phase, Stop, Word

GRACE_S = 60.0
SPENT_S, SLACK_S = 2.0, 1.0
"""What is gone of the grace when the agent is killed, and how late a message may arrive: less, so that the two differ."""


@pytest.fixture
def trainer(tmp_path, monkeypatch):
    for name in ("OUTLAST_AGENT", "OUTLAST_LAUNCH_ID", "OUTLAST_NOTICE_FILE", "OUTLAST_GRACE_S"):
        monkeypatch.delenv(name, raising=False)
    made = Trainer(f"file://{tmp_path}/run")
    made.join()
    assert made.link.page is not None
    made.link.page[Word.PHASE] = Phase.TRAINING  # outside of its loop a script is ended by the signal itself
    yield made
    made.kill(agent_too=True)


def kill_agent(trainer):
    """Returns once it is gone; the link starts another."""
    agent = trainer.link._own_agent
    agent.kill()
    agent.wait()


def deadlines(root):
    """Of each notice of the ledger, on the clock of the wall."""
    return [
        datetime.fromisoformat(record["deadline_utc"]).timestamp()
        for record in events(root)
        if record["kind"] == "notice"
    ]


def test_a_new_agent_hears_of_the_signal_with_what_is_left_of_its_grace(trainer, tmp_path):
    """It tells the trainer to leave as the first did, and by the same deadline: not 60 s from its own start."""
    told_s = time.time()
    trainer.link.notice("SIGTERM", GRACE_S)
    eventually("the notice is in the ledger", lambda: deadlines(tmp_path / "run"))
    eventually("some of the grace is spent", lambda: time.time() > told_s + SPENT_S)
    kill_agent(trainer)
    eventually("the new agent says so too", lambda: len(deadlines(tmp_path / "run")) >= 2)
    eventually("the trainer is told to leave", lambda: trainer.link.page[Word.STOP] == Stop.LEAVE)
    before, after = deadlines(tmp_path / "run")
    assert abs(after - before) < SLACK_S
    assert told_s + GRACE_S <= before + 0.01


def test_a_signal_that_is_repeated_moves_no_deadline(trainer, tmp_path):
    """The second one is told to nobody anew: the new agent reckons from the first."""
    trainer.link.notice("SIGTERM", GRACE_S)
    eventually("the notice is in the ledger", lambda: deadlines(tmp_path / "run"))
    trainer.link.notice("SIGTERM", 10 * GRACE_S)
    kill_agent(trainer)
    eventually("the new agent says so too", lambda: len(deadlines(tmp_path / "run")) >= 2)
    before, after = deadlines(tmp_path / "run")
    assert abs(after - before) < SLACK_S
