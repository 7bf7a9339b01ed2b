"""SIGKILL at every single delete of a prune, one by one, each followed by a start and by another prune.

Every commit that is left restores bit for bit, also the one that a start puts back, and the next prune ends with the same
store as one that nobody killed. What is there is judged from the files, by the format alone.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from prune_once import prune
from save_once import RANKS, rank_state, shrink

from outlast.checkpoint import catalog, packing, writer
from outlast.checkpoint.base import base_of
from outlast.checkpoint.writer import commit, write_rank
from outlast.store.local import LocalStore
from saving import RUN_ID, UTC, flat, header, id_of, lay_out, read_independently

IDS = [id_of(10), id_of(20), *(id_of(step, attempt=2, nonce="bbbb") for step in (30, 40))]
KEPT = [id.name for id in IDS[2:]]
NEXT = id_of(50, attempt=3, nonce="cccc")
MOST_DELETES = 100


def state(step):
    """Of each step something is new, and something is of the step before."""
    old = max(step - 10, 10)
    return {
        name: data
        for rank in range(RANKS)
        for name, data in (
            rank_state(old, rank) | {f"weight.{rank}": rank_state(step, rank)[f"weight.{rank}"]}
        ).items()
    }


def save(store, id, before=None):
    """Both ranks, each referring to the checkpoint before."""
    bases = [base_of(before, catalog.load(store, before).manifests)] if before else []
    for rank in range(RANKS):
        parts = [flat(name, data) for name, data in state(id.step).items() if name.endswith(f".{rank}")]
        boxes, arena = lay_out(parts)
        write_rank(store, header(id, rank=rank, world_size=RANKS), boxes, arena, saved_utc=UTC, bases=bases)
    assert commit(store, id, RUN_ID, RANKS)


@pytest.fixture
def before(tmp_path, monkeypatch):
    """Two checkpoints of each of two attempts, each of which shares bytes with the one before, and a save that was cut."""
    monkeypatch.setattr(packing, "SMALL_BYTES", packing.SMALL_BYTES)
    for name in ("CHUNK_BYTES", "SEGMENT_BYTES"):
        monkeypatch.setattr(writer, name, getattr(writer, name))
    shrink()
    root = tmp_path / "before"
    store = LocalStore(root)
    catalog.create_run(store, RUN_ID, UTC)
    for id, earlier in zip(IDS, [None, *IDS], strict=False):
        save(store, id, earlier)
    store.write(id_of(25).segment_key(0, 0), [memoryview(b"cut" * 100)])
    return root


def commits(root):
    return sorted(path.parent.name for path in root.glob("checkpoints/*/commit.json"))


def files(root):
    return {
        path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()
    }


def killed_at(root, where, number):
    """Prune in a process of its own; return its exit code."""
    script = Path(__file__).with_name("prune_once.py")
    return subprocess.run([sys.executable, script, root, where, str(number)]).returncode


def check_whole(root):
    for name in commits(root):
        assert read_independently(root, name) == state(int(name.split("-")[2])), name


@pytest.mark.parametrize("where", ["store", "system"])
def test_killed_at_every_delete(before, tmp_path, where):
    """Whichever delete a SIGKILL meets, what has a commit is whole, and the newest two are among it."""
    whole = tmp_path / "whole"
    shutil.copytree(before, whole)
    prune(LocalStore(whole), whole)
    assert commits(whole) == KEPT
    check_whole(whole)
    assert len(files(whole)) < len(files(before))

    adopted = deletes = 0
    for number in range(1, MOST_DELETES):
        root, started = tmp_path / f"{where}-{number}", tmp_path / "started"
        shutil.copytree(before, root)
        code = killed_at(root, where, number)
        assert code in (0, -signal.SIGKILL)
        assert commits(root)[-2:] == KEPT
        check_whole(root)
        shutil.copytree(root, started)
        adopted += len(catalog.adopt(LocalStore(started), RUN_ID).committed)
        save(LocalStore(started), NEXT, IDS[-1])
        check_whole(started)
        prune(LocalStore(root), root)
        assert files(root) == files(whole)
        shutil.rmtree(root)
        shutil.rmtree(started)
        if code == 0:
            break
        deletes = number
    assert deletes >= (5 if where == "store" else 20)
    assert adopted, "a start puts back the newest checkpoint of an attempt, whose commit alone was deleted"
