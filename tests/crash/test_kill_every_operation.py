"""SIGKILL at every operation of a save, one by one, each followed by a good resume.

The next attempt must find the newest checkpoint whose bytes are all there, and what was saved before must not have
changed by a byte. What is there is judged from the files, by the format alone.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from save_once import RANKS, rank_state, save_world, shrink

from outlast.checkpoint import catalog, writer
from outlast.checkpoint.events import EventLog
from outlast.store.local import LocalStore
from saving import RUN_ID, UTC, id_of, read_independently, restore

OLD, NEW, NEXT = id_of(10), id_of(20, repeat=1), id_of(30, attempt=2, nonce="bbbb")
MOST_OPERATIONS = 200
"""A save of this size has about 90; a loop that never ends must not."""


def expected(step):
    return {name: data for rank in range(RANKS) for name, data in rank_state(step, rank).items()}


def files(root):
    return {
        path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()
    }


@pytest.fixture
def before(tmp_path, monkeypatch):
    """A run with one checkpoint, at step 10."""
    for name in ("CHUNK_BYTES", "SEGMENT_BYTES"):
        monkeypatch.setattr(writer, name, getattr(writer, name))
    shrink()
    root = tmp_path / "before"
    store = LocalStore(root)
    catalog.create_run(store, RUN_ID, UTC)
    save_world(store, 10)
    return root


@pytest.mark.parametrize("where", ["store", "system", "half"])
def test_killed_at_every_operation(before, tmp_path, where):
    """Whichever operation a SIGKILL meets, the next attempt resumes from a checkpoint that is whole to the bit."""
    old_files = files(before)
    outcomes = []
    for number in range(1, MOST_OPERATIONS):
        root = tmp_path / f"{where}-{number}"
        shutil.copytree(before, root)
        code = subprocess.run(
            [sys.executable, Path(__file__).with_name("save_once.py"), root, where, str(number)]
        ).returncode
        assert code in (0, -signal.SIGKILL)
        outcomes.append(check(root, old_files, finished=code == 0, save_next=where == "store"))
        shutil.rmtree(root)
        if code == 0:
            break
    assert outcomes[0] == "old"
    assert outcomes[-1] == "committed"
    # Segments are written by several threads: how many system calls come before the manifest may vary by a few.
    assert where == "system" or outcomes == sorted(outcomes, key=["old", "adopted", "committed"].index)
    assert len(outcomes) > 10
    assert where == "half" or "adopted" in outcomes


def check(root, old_files, *, finished, save_next):
    """Resume, and save once more if told so; return which checkpoint the resume found, and how."""
    found = files(root)
    assert old_files.items() <= found.items()
    full = all(f"checkpoints/{NEW.name}/rank-{rank:05d}.json" in found for rank in range(RANKS))
    was_committed = f"checkpoints/{NEW.name}/commit.json" in found
    assert was_committed or not finished
    assert full or not was_committed

    store = LocalStore(root)
    assert catalog.read_run(store).run_id == RUN_ID
    adopted = catalog.adopt(store, RUN_ID)
    assert adopted == catalog.Adopted([NEW] if full and not was_committed else [], [])
    newest = catalog.committed(store)[0]
    assert newest == (NEW if full else OLD)
    assert read_independently(root, newest.name) == restore(store, newest) == expected(newest.step)
    assert catalog.verify(store, newest) == catalog.verify(store, OLD) == []
    events = json.loads((root / "checkpoints" / newest.name / "rank-00000.json").read_bytes())["events"]
    assert (root / events).exists()
    assert found.items() <= files(root).items()

    again = EventLog(store, 1, "aaaa", 0)
    again.add({"kind": "alive", "utc": UTC, "step": 20})
    assert again.flush() not in found
    if save_next:
        save_world(store, 30, attempt=2, nonce="bbbb")
        assert catalog.committed(store)[0] == NEXT
        assert restore(store, NEXT) == expected(30)
    return "committed" if was_committed else "adopted" if full else "old"


@pytest.mark.parametrize("number", [3, 5, 8, 11, 14])
def test_the_same_attempt_saves_again_over_what_a_kill_left(before, tmp_path, number):
    """An agent that is killed while it saves is replaced by one that saves the same snapshot, under the same id."""
    root = tmp_path / "run"
    shutil.copytree(before, root)
    script = Path(__file__).with_name("save_once.py")
    assert subprocess.run([sys.executable, script, root, "store", str(number)]).returncode == -signal.SIGKILL
    assert subprocess.run([sys.executable, script, root, "store", "0"]).returncode == 0
    store = LocalStore(root)
    assert catalog.committed(store) == [NEW, OLD]
    assert read_independently(root, NEW.name) == restore(store, NEW) == expected(20)
    assert catalog.verify(store, NEW) == []
