"""A script that is killed: it comes back, and nothing shows that it was gone."""

from __future__ import annotations

import os
import signal

import pytest

from launch import Lab, Zygote, history


@pytest.fixture(scope="module")
def undisturbed(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """The script's run from its first step to its last."""
    lab = Lab(tmp_path_factory.mktemp("undisturbed"), zygote)
    assert lab.script().wait() == 0, lab.said()
    lab.nothing_left()
    assert len(history(lab.records)) == 18
    return lab


def is_as(lab: Lab, undisturbed: Lab) -> None:
    """Assert that a disturbed run is that run: every step's data and loss, the final state, and the next random number."""
    assert history(lab.records) == history(undisturbed.records)
    names = ("digest", "rand", "steps", "epochs_stepped", "best")
    (end,), (expected,) = lab.of("end"), undisturbed.of("end")
    assert {n: end[n] for n in names} == {n: expected[n] for n in names}


def test_a_killed_script_is_started_again_and_ends_as_if_it_had_never_been(
    lab: Lab, undisturbed: Lab
) -> None:
    """`outlast run` starts it again; the steps, the weights, the optimizer and the generators are the undisturbed run's."""
    started = lab.supervised(T_GATES="step:5,step:11", OUTLAST_SAVE_EVERY="4 steps")
    lab.at("step:5")
    lab.committed(4)
    lab.open("step:5")
    killed = lab.at("step:11")
    saved = lab.committed(8)["step"]
    os.kill(killed, signal.SIGKILL)
    lab.open("step:11")
    assert started.wait() == 0, lab.said()
    is_as(lab, undisturbed)
    _, second = lab.of("run")
    assert (second["attempt"], second["resumed"], second["step"]) == (2, True, saved)
    assert f"resumed at epoch {saved // 6}, step {saved}: bit-exact" in started.text


def test_killed_in_the_tail_of_an_epoch_it_runs_that_tail_again_whole_and_no_batch(
    lab: Lab, undisturbed: Lab
) -> None:
    """The snapshot that was held in memory becomes durable by the agent alone; the scheduler steps once per epoch."""
    first = lab.script(T_GATES="tail:1")
    lab.at("tail:1")
    assert lab.commits() == []
    first.kill()
    assert first.wait() == -signal.SIGKILL
    commit = lab.committed(12)
    assert (commit["step"], commit["position"]["tail_open"], commit["position"]["epoch"]) == (12, True, 1)
    lab.nothing_left()
    lab.open("tail:1")
    second = lab.script()
    assert second.wait() == 0, lab.said()
    after = [(r["kind"], r["epoch"]) for r in lab.records if r["pid"] == second.pid and "epoch" in r][1:]
    assert after[:4] == [("epoch", 1), ("tail-begin", 1), ("tail-end", 1), ("epoch", 2)]
    is_as(lab, undisturbed)
