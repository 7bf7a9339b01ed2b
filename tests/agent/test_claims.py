"""Starts of one run beside each other: none loads, ends or overwrites another."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

from field.torchless import Trainer, commits
from launch import Lab, agent_of, alive, children, eventually, history
from outlast._types import Reason

ALIVE, SUPERSEDED = 78, 76
RATES = [f"{rate:.3f}" for rate in (0.001, 0.002, 0.003, 0.004, 0.005, 0.006, 0.007, 0.008)]


def test_eight_members_of_a_sweep_without_a_name_are_eight_runs(lab: Lab) -> None:
    """The arguments tell them apart; started together under one root all train from their own beginning to the end."""
    started = [lab.script("--lr", rate, T_NAME="", OUTLAST_SAVE_EVERY="7 steps") for rate in RATES]
    assert [each.wait() for each in started] == [0] * 8, lab.said()
    assert len(list((lab.folder / "store").glob("*/run.json"))) == 8
    digests = set()
    for each in started:
        assert history([r for r in lab.records if r["pid"] == each.pid])[-1][0] == 2
        (end,) = lab.of("end", each.pid)
        digests.add(end["digest"])
    assert len(digests) == 8


def test_of_eight_starts_of_one_name_one_trains(lab: Lab) -> None:
    """The others end with 78, naming both hosts; the one goes on undisturbed to its end."""
    started = [lab.script("--lr", rate, T_GATES="step:9", OUTLAST_SAVE_EVERY="4 steps") for rate in RATES]
    trainer = lab.at("step:9")
    others = [each for each in started if each.pid != trainer]
    assert [each.wait() for each in others] == [ALIVE] * 7, lab.said()
    host = socket.gethostname()
    for each in others:
        assert f"is alive on {host} (its trainer is process {trainer}" in each.text
        assert f"this start is process {each.pid} on {host}" in each.text
    lab.open("step:9")
    (survivor,) = [each for each in started if each.pid == trainer]
    assert survivor.wait() == 0, lab.said()
    assert {r["pid"] for r in lab.of("step")} == {trainer}
    assert [r["count"] for r in lab.of("step")] == list(range(1, 19))
    assert len(lab.of("run")) == 1
    assert len(list((lab.folder / "store" / "run" / "attempts").iterdir())) == 1


def test_taking_over_ends_the_older_attempt_which_commits_nothing_afterwards(lab: Lab) -> None:
    """The older one leaves with 76 at its next safe point."""
    old = lab.script(T_GATES="step:5", OUTLAST_SAVE_EVERY="2 steps")
    lab.at("step:5")
    saved = lab.committed(2)["step"]
    new = lab.script(OUTLAST_TAKE_OVER="1", T_GATES="run")
    lab.at("run")
    before = [commit["folder"] for commit in lab.commits()]
    lab.open("step:5")
    assert old.wait() == SUPERSEDED, lab.said()
    assert [c["folder"] for c in lab.commits() if c["attempt"] == 1] == [
        f for f in before if "00001-" in f.name
    ]
    lab.open("run")
    assert new.wait() == 0, lab.said()
    first, second = lab.of("run")
    assert (second["attempt"], second["resumed"]) == (2, True)
    assert second["step"] >= saved
    assert len(history(lab.records)) == 18


def test_a_start_while_the_agent_of_a_dead_trainer_finishes_waits_for_it(lab: Lab) -> None:
    """What that agent still makes durable is what the new start resumes from."""
    first = lab.script(T_GATES="step:4,tail:0")
    trainer = lab.at("step:4")
    agent = agent_of(trainer)
    os.kill(agent, signal.SIGSTOP)
    lab.open("step:4")
    lab.at("tail:0")
    first.kill()
    assert first.wait() == -signal.SIGKILL
    second = lab.script()
    second.says("its agent is still finishing")
    os.kill(agent, signal.SIGCONT)
    lab.open("tail:0")
    assert second.wait() == 0, lab.said()
    assert lab.of("run")[1]["step"] == 6
    assert len(lab.of("step")) == len(history(lab.records)) == 18


def test_a_new_agent_of_a_renamed_run_goes_on_in_its_own_place(lab: Lab) -> None:
    """With resume="never" the place is not the one that was asked for; a new agent must not write into that one."""
    assert lab.script().wait() == 0
    before = sorted(key for key in lab.bytes_on_store() if key.startswith("run/"))
    started = lab.script(T_RESUME="never", T_GATES="step:3")
    trainer = lab.at("step:3")
    agent = agent_of(trainer)
    os.kill(agent, signal.SIGKILL)
    eventually("a new agent is there", lambda: [c for c in children(trainer) if c != agent and alive(c)])
    lab.open("step:3")
    assert started.wait() == 0, lab.said()
    assert sorted(key for key in lab.bytes_on_store() if key.startswith("run/")) == before
    assert lab.commits("run-2")[-1]["finished"]


def test_a_run_whose_folder_is_deleted_under_it_says_so_and_waits_for_nothing(
    trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    """Each save is answered with the cause; what was there is not begun afresh in its place."""
    training = trainer()
    training.save_and_wait(1, b"one")
    (tmp_path / "run").rename(tmp_path / "moved")
    for step, reason in ((2, Reason.INTERVAL), (3, Reason.FINAL)):
        number = training.save(step, b"more", reason=reason)
        saved = training.link.wait_saved(number, lambda: None, "it is answered")
        assert saved is not None
        assert saved.checkpoint is None
        assert "the run's folder was deleted or moved while it trains" in str(saved.error)
    assert not list((tmp_path / "run").glob("*.json"))
    assert [step for _, step, _ in commits(tmp_path / "moved")] == [1]
    training.close("error")
