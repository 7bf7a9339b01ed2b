"""Agent and trainer outlive each other, and when both are killed nothing of theirs is left."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from field.torchless import Trainer, events
from launch import Lab, agent_of, alive, children, eventually, history, pids
from outlast.agent.control import Word

Belongings = set[tuple[str, str]]
"""Memory files by inode, and sockets by abstract name: what tells a lab's from those of tests beside it."""


def belongings(lab: Lab) -> Belongings:
    """What the living processes of the lab hold of Outlast's memory files and sockets."""
    found: Belongings = set()
    for pid in lab.processes():
        found |= {("memory", inode) for inode in memory_inodes(pid)}
        environ = Path(f"/proc/{pid}/environ").read_text(errors="replace")
        found |= {("socket", f"@{name}") for name in re.findall(r"OUTLAST_AGENT=([^\0]+)", environ)}
    return found


def traces(lab: Lab, known: Belongings) -> list[str]:
    """Processes of the lab, and what any process of this machine still holds of what is known to be the lab's."""
    found = [f"process {pid}" for pid in lab.processes()]
    for pid in pids():
        try:
            held = memory_inodes(pid)
        except OSError:
            continue  # it has just ended
        found += [f"{pid}: memory file {inode}" for inode in held if ("memory", inode) in known]
    sockets = re.findall(r"@outlast-\S+", Path("/proc/net/unix").read_text())
    return found + [name for name in sockets if ("socket", name) in known]


def memory_inodes(pid: int) -> set[str]:
    """Inodes of Outlast's memory files that a process has open or mapped."""
    inodes = set()
    for fd in os.listdir(f"/proc/{pid}/fd"):
        link = f"/proc/{pid}/fd/{fd}"
        try:
            if "memfd:outlast" in os.readlink(link):
                inodes.add(str(os.stat(link).st_ino))
        except FileNotFoundError:
            continue  # it was closed meanwhile
    maps = Path(f"/proc/{pid}/maps").read_text(errors="replace")
    return inodes | set(re.findall(r"(\d+) +/memfd:outlast", maps))


def memory_files(pid: int) -> list[str]:
    """Outlast's memory files that a process has open."""
    links = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
    return [link for link in links if "memfd:outlast" in link]


def test_training_goes_on_in_the_same_process_when_its_agent_is_killed(lab: Lab) -> None:
    """No step is repeated, a new agent makes the held snapshot and all later ones durable, and the end is."""
    started = lab.script(T_GATES="step:3,tail:0", OUTLAST_SAVE_EVERY="2 steps")
    trainer = lab.at("step:3")
    lab.committed(2)
    first = agent_of(trainer)
    os.kill(first, signal.SIGKILL)
    second = eventually(
        "a new agent is there", lambda: [c for c in children(trainer) if c != first and alive(c)]
    )[0]
    lab.open("step:3")
    lab.at("tail:0")
    lab.committed(6)  # those of step 4 may have been passed over
    os.kill(second, signal.SIGKILL)
    eventually("a new agent is there", lambda: [c for c in children(trainer) if c != second and alive(c)])
    lab.open("tail:0")
    assert started.wait() == 0, lab.said()
    assert {r["pid"] for r in lab.of("step")} == {trainer}
    assert [r["count"] for r in lab.of("step")] == list(range(1, 19))
    last = lab.commits()[-1]
    assert (last["attempt"], last["step"], last["finished"]) == (1, 18, True)
    assert started.text.count("the agent is gone") == 2
    lab.nothing_left()


def test_the_snapshot_that_was_held_when_the_agent_was_killed_still_becomes_durable(lab: Lab) -> None:
    """Agent first, trainer a moment later: the new agent was handed what the old one held."""
    started = lab.script(T_GATES="tail:1")
    trainer = lab.at("tail:1")
    first = agent_of(trainer)
    os.kill(first, signal.SIGKILL)
    second = eventually(
        "a new agent is there", lambda: [c for c in children(trainer) if c != first and alive(c)]
    )[0]
    # It serves once it has written its sign of life; the trainer has handed over what it had by its next sign.
    parts = lab.folder / "store" / "run" / "events"
    eventually(
        "the new agent serves", lambda: str(second) in "".join(p.read_text() for p in parts.rglob("*.jsonl"))
    )
    eventually("the arenas are handed over", lambda: len(memory_files(second)) >= 3)
    started.kill()
    commit = lab.committed(12)
    assert commit["position"]["tail_open"]
    lab.nothing_left()


def test_a_supervisor_that_is_killed_alone_leaves_a_training_that_goes_on(lab: Lab) -> None:
    """The script starts an agent of its own; the final state is durable, and a second start finds it finished."""
    started = lab.supervised(T_GATES="step:3", OUTLAST_SAVE_EVERY="2 steps")
    trainer = lab.at("step:3")
    lab.committed(2)
    started.kill()
    agent_of(trainer)
    lab.open("step:3")
    eventually("it has finished", lambda: lab.of("end"), lab.said)
    lab.nothing_left()
    assert [r["count"] for r in lab.of("step")] == list(range(1, 19))
    assert {r["pid"] for r in lab.of("step")} == {trainer}
    assert lab.commits()[-1]["finished"]


@pytest.mark.parametrize("workers", [0, 2])
def test_nothing_is_left_when_trainer_and_agent_are_killed_together(lab: Lab, workers: int) -> None:
    """No process, no memory file, no socket; also where loader workers were forked. Then it resumes."""
    started = lab.script(T_GATES="step:5", OUTLAST_SAVE_EVERY="2 steps", T_WORKERS=workers)
    trainer = lab.at("step:5")
    saved = lab.committed(2)["step"]
    agent = agent_of(trainer)
    known = belongings(lab)
    assert any(kind == "memory" for kind, _ in known)
    os.kill(agent, signal.SIGSTOP)  # so that neither sees the other go
    os.kill(trainer, signal.SIGKILL)
    os.kill(agent, signal.SIGKILL)
    assert started.wait() == -signal.SIGKILL
    eventually("nothing is left", lambda: not traces(lab, known), lambda: str(traces(lab, known)))
    lab.open("step:5")
    assert lab.script(T_WORKERS=workers).wait() == 0, lab.said()
    assert len(history(lab.records)) == 18
    assert lab.of("run")[1]["step"] >= saved


def test_a_supervisor_and_its_trainer_killed_together_leave_nothing(lab: Lab) -> None:
    """Nor does the socket by which they found each other: it has no place in a filesystem."""
    started = lab.supervised(T_GATES="step:5", T_WORKERS="2")
    trainer = lab.at("step:5")
    known = belongings(lab)
    assert {kind for kind, _ in known} == {"memory", "socket"}
    assert any(trace.startswith("@outlast-") for trace in traces(lab, known))
    started.kill(signal.SIGSTOP)
    os.kill(trainer, signal.SIGKILL)
    started.kill()
    assert started.wait() == -signal.SIGKILL
    eventually("nothing is left", lambda: not traces(lab, known), lambda: str(traces(lab, known)))


def test_a_snapshot_that_was_complete_when_the_trainer_was_killed_becomes_durable(lab: Lab) -> None:
    """The agent is stopped while the trainer hands over, and goes on when the trainer is dead; then it leaves."""
    started = lab.script(T_GATES="step:4,step:6", OUTLAST_SAVE_EVERY="5 steps")
    trainer = lab.at("step:4")
    agent = agent_of(trainer)
    os.kill(agent, signal.SIGSTOP)
    lab.open("step:4")
    lab.at("step:6")  # the snapshot of step 5 lies in memory, and nobody has read it
    assert lab.commits() == []
    started.kill()
    assert started.wait() == -signal.SIGKILL
    os.kill(agent, signal.SIGCONT)
    assert lab.committed(5)["step"] == 5
    lab.nothing_left()


def test_metrics_that_only_the_killed_agent_had_are_in_the_ledger_once(
    trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    """Those that were durable before are not written again, and those that were not reach the next agent."""
    root = tmp_path / "run"

    def logged() -> list[int]:
        return [record["step"] for record in events(root) if record["kind"] == "metrics"]

    training = trainer()
    for step, state in ((1, b"one"), (2, b"two")):
        training.link.add_events([{"kind": "metrics", "attempt": 1, "step": step, "values": {"loss": 0.5}}])
        training.save_and_wait(step, state)
    assert logged() == [1, 2]
    training.link.add_events([{"kind": "metrics", "attempt": 1, "step": 3, "values": {"loss": 0.25}}])
    training.link.flush_events()
    first = training.link._own_agent
    assert first is not None
    first.kill()
    first.wait()
    eventually("a new agent is there", lambda: training.agent != first.pid)
    training.close()
    assert logged() == [1, 2, 3]


def test_an_attempt_is_as_old_under_a_new_agent_as_it_was(trainer: Callable[..., Trainer]) -> None:
    """How long it has lived is what the hazard is reckoned from: its agent's death is no preemption."""
    training = trainer()
    first, page = training.link._own_agent, training.link.page
    assert first is not None
    assert page is not None
    begun_ns = page[Word.BEGUN_NS]
    assert begun_ns > 0
    first.kill()
    first.wait()
    eventually("a new agent is there", lambda: training.agent != first.pid)
    assert training.link.page is not None
    assert training.link.page is not page
    assert training.link.page[Word.BEGUN_NS] == begun_ns
    training.close()
