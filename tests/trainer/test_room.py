"""Arenas: as many as the memory allows, for the newest state, and never more from save to save."""

from __future__ import annotations

import gc
import os
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from launch import eventually
from outlast._errors import ConfigError
from outlast._types import Reason
from outlast.agent.control import Word
from outlast.trainer.saver import Order

MB = 10**6


def one_buffer(nbytes: int):
    """A state of so many bytes."""
    model = nn.Module()
    model.register_buffer("x", torch.zeros(nbytes, dtype=torch.uint8))
    return {"model": model}


def arena_bytes(run) -> int:
    """Bytes of the arenas that this process has open."""
    return sum(arena.size_bytes for arena in run.saver._room._arenas.values())


def interval(run, step: int) -> int | None:
    """An interval save; None where it could not be taken now."""
    run.step = step
    run.states["model"].x.fill_(step)
    return run.saver.take(Order(step, Reason.INTERVAL))


def steps_on_store(run) -> list[int]:
    """The steps of every checkpoint that exists."""
    return sorted(int(path.parent.name.split("-")[2]) for path in run.root.glob("checkpoints/*/commit.json"))


def test_what_nobody_replaces_in_time_stays(inside, capsys):
    """An agent that answers late drops nothing: the newer state that asked for the arena has not waited for it."""
    run = inside(one_buffer(MB))
    run._trainer.stop_agent()
    assert interval(run, 1) and interval(run, 2)
    assert interval(run, 3) is None
    assert interval(run, 4) is None
    run._trainer.continue_agent()
    assert run.answer(2).checkpoint is not None, (
        "the newest complete state is durable, whatever was asked for"
    )
    number = interval(run, 5)
    assert number is not None
    saved = run.answer(number)
    assert run.on_store(saved) == run.live()
    assert steps_on_store(run) in ([1, 2, 5], [2, 5]), "the first was begun, or passed over for the second"
    assert capsys.readouterr().err.count("takes longer than the interval") == 1


def test_the_arena_of_the_newest_durable_snapshot_is_not_the_next_to_be_written(inside):
    """A script that crashes is restored from it."""
    run = inside(one_buffer(MB))
    last = None
    for _ in range(6):
        run.save()
        assert run.link.newest_index != last
        last = run.link.newest_index


def test_with_memory_for_one_arena_a_save_waits_for_the_one_before(inside, capsys):
    """It is said at the start; an interval save tries again, one that was asked for waits."""
    run = inside(one_buffer(10 * MB), host_memory_bytes=15 * MB)
    run._trainer.stop_agent()
    assert interval(run, 1)
    assert "snapshots take 1 x 10.2 MB" in (said := capsys.readouterr().err)
    assert "a save waits until the one before is durable" in said
    assert interval(run, 2) is None
    assert arena_bytes(run) <= 15 * MB
    run._trainer.continue_agent()
    assert run.on_store(run.save()) == run.live()


def test_what_is_held_makes_way_for_a_save_that_is_waited_for(inside):
    """With one arena nothing else would ever free it: what is held becomes durable only when the script has ended."""
    run = inside(one_buffer(10 * MB), host_memory_bytes=15 * MB)
    for reason in (Reason.USER, Reason.FINAL):
        run.step += 1
        assert run.saver.take(Order(run.step, Reason.INTERVAL, hold=True))
        assert run.on_store(run.save(reason)) == run.live()


def test_what_is_held_makes_way_though_the_agent_dies_that_was_asked(inside):
    """The one that takes its place is handed what is held, and is asked as well."""
    run = inside(one_buffer(10 * MB), host_memory_bytes=15 * MB)
    assert run.saver.take(Order(1, Reason.INTERVAL, hold=True))
    run.step = 1
    agent = run.link._own_agent
    agent.kill()
    agent.wait()
    assert run.on_store(run.save()) == run.live()


def test_a_state_that_grows_gets_larger_arenas_within_the_cap(inside):
    """Two small ones, then one that is larger, then a refusal with the numbers."""
    cap = 25 * MB
    run = inside(one_buffer(4 * MB), host_memory_bytes=cap)
    for nbytes in (4 * MB, 4 * MB, 8 * MB, 8 * MB, 15 * MB, 15 * MB, 15 * MB):
        run.states["model"].x = torch.randint(256, (nbytes,), dtype=torch.uint8)
        assert run.on_store(run.save()) == run.live()
    assert len(run.saver._room._arenas) == 1
    assert arena_bytes(run) <= cap
    run.states["model"].x = torch.zeros(30 * MB, dtype=torch.uint8)
    with pytest.raises(ConfigError, match=r"30\.6 MB.*25 MB"):
        run.save()


def test_a_thousand_saves_take_no_more_memory_than_some(inside):
    """700 saves leave less than a fiftieth of what they saved, in trainer and agent; an arena takes 1.1 x the state."""
    state_bytes = MB // 4
    run = inside(one_buffer(state_bytes))
    held = []
    for step in range(1, 1001):
        run.states["model"].x[: step % 50 + 1] = step % 256
        run.step = step
        number = run.saver.take(Order(step, Reason.USER))  # waits until one of the arenas is free
        assert number is not None
        if step in (300, 1000):
            assert run.answer(number).checkpoint is not None
            gc.collect()
            held.append([memory(pid) for pid in (os.getpid(), run._trainer.agent)])
    for arena in run.saver._room._arenas.values():
        assert arena.size_bytes <= 1.1 * state_bytes + 4096
        assert os.fstat(arena.fd).st_blocks * 512 <= 1.1 * state_bytes + 4096
    for before, after in zip(*held, strict=True):
        assert after - before < 700 * state_bytes / 50


def memory(pid: int) -> int:
    """Bytes that a process holds, without pages of files."""
    text = Path(f"/proc/{pid}/status").read_text()
    found = dict(re.findall(r"(RssAnon|RssShmem):\s+(\d+) kB", text))
    return sum(int(kb) * 1024 for kb in found.values())


def test_a_run_whose_model_cannot_fit_is_refused_before_it_is_claimed(lab):
    """Exit 78 with the numbers; nothing is on the store."""
    script = lab.script(path=_small_script(lab), T_MEMORY="1kB")
    assert script.wait() == 78
    assert "host_memory allows 1 kB" in script.text
    assert not list((lab.folder / "store").rglob("attempts/*"))


def _small_script(lab) -> Path:
    path = lab.folder / "small.py"
    path.write_text(
        "import os, torch, outlast\n"
        "model = torch.nn.Linear(100, 100)\n"
        "run = outlast.Run('run', model=model, host_memory=os.environ['T_MEMORY'])\n"
        "for _ in run.steps(3): pass\n"
    )
    return path


def test_what_snapshots_take_is_said(lab):
    """Once, in one line."""
    script = lab.script(path=_small_script(lab), T_MEMORY="1GB")
    assert script.wait() == 0, script.text
    eventually("it is said", lambda: "snapshots take 2 x" in script.text)
    assert script.text.count("snapshots take") == 1


def test_the_agent_sees_that_a_snapshot_is_taken(inside, monkeypatch):
    """From before an arena is asked for until it is handed over, and no longer, though none was free or taking it failed."""
    run = inside(one_buffer(MB))
    shown, free, submit = [], run.saver._room.free, run.link.submit

    def show(where):
        shown.append((where, run.link.page[Word.TAKING]))

    monkeypatch.setattr(run.saver._room, "free", lambda until: (show("arena"), free(until))[1])
    monkeypatch.setattr(run.link, "submit", lambda snapshot: (submit(snapshot), show("handed over"))[0])
    run.save()
    assert shown == [("arena", 1), ("handed over", 1)]
    assert run.link.page[Word.TAKING] == 0
    monkeypatch.setattr(run.saver, "_gather", lambda table: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run.save()
    assert run.link.page[Word.TAKING] == 0
