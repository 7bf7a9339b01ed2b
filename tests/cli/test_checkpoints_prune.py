"""`outlast checkpoints pin` and `prune` over a run on a disk, whose attempts are dead, alive or elsewhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime

import msgspec
import pytest

from outlast._errors import ConfigError, FormatTooNew, RunAlive
from outlast._process import process_id
from outlast._types import Best, Keep, Reason
from outlast.agent import claim
from outlast.checkpoint import catalog, pins
from outlast.checkpoint.manifest import AttemptRecord, BestValue, Manifest, ProcessId, attempt_key, seal
from outlast.checkpoint.sealed import read_record
from outlast.checkpoint.writer import commit
from outlast.cli import checkpoints, prune, status
from outlast.store.local import LocalStore
from saving import RUN_ID, id_of, restore, save, state_of
from saving import UTC as THEN

SIZES = {"weight": 28_672, "bias": 4_096}
ELSEWHERE = ProcessId(host="other", machine="another", pid=1, start_ticks=1)


def dead_process():
    done = subprocess.Popen([sys.executable, "-c", "pass"])
    process = process_id(done.pid)
    done.wait()
    return process


@pytest.fixture
def store(tmp_path, monkeypatch):
    """Six checkpoints of one attempt, which is over; the name `gpt` under the root."""
    monkeypatch.setenv("OUTLAST_STORE", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "80")
    store = LocalStore(tmp_path / "gpt")
    catalog.create_run(store, RUN_ID, THEN)
    attempt(store, dead_process())
    for step in range(1, 7):
        save(store, id_of(step), state_of(step, SIZES))
    return store


def attempt(store, process, number=1, **changes):
    record = AttemptRecord(
        format=1, run_id=RUN_ID, attempt=number, nonce="aaaa", claimed_utc=datetime.now(UTC).isoformat(), world_size=1,
        global_batch=8, launch_id="l", job_id=None, agent=process, trainer=process, settings={},
        resumed_from=None,
    )  # fmt: skip
    store.delete([attempt_key(number)])
    store.create(attempt_key(number), seal(msgspec.structs.replace(record, **changes)))


def call(capsys, *arguments):
    """Run a command here; return what it printed."""
    checkpoints.app(list(arguments), result_action="return_value")
    return capsys.readouterr().out


def steps(store):
    return [id.step for id in reversed(catalog.committed(store))]


def files(store):
    return {path: path.read_bytes() for path in store._root.rglob("*") if path.is_file()}


def flip(store, key, at=100):
    path = store._root / key
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(bytes(data))


class TestPrune:
    """`outlast checkpoints prune`."""

    def test_keeps_what_the_script_keeps(self, store, capsys):
        """Its newest three by default, or what its attempt says; each that is left restores. Exit 0."""
        out = call(capsys, "prune", "gpt")
        assert steps(store) == [4, 5, 6]
        assert "3 of 6 checkpoints, 96.0 KiB" in out
        assert max(map(len, out.splitlines())) <= 80
        attempt(store, dead_process(), keep=Keep(last=2))
        call(capsys, "prune", "gpt")
        assert steps(store) == [5, 6]
        assert restore(store, id_of(5)) == state_of(5, SIZES)
        assert len(list(store._root.glob("segments/**/*.bin"))) == 2

    def test_keep_last(self, store, capsys):
        """Overrides the script's; never fewer than two stay; pinned, best and emergency ones do as well."""
        attempt(store, dead_process(), keep=Keep(last=5, best=Best("loss", "min")))
        save(store, id_of(7), state_of(7, SIZES), pinned=True)
        save(store, id_of(8), state_of(8, SIZES), reason=Reason.EMERGENCY)
        save(store, id_of(9), state_of(9, SIZES), best=BestValue("loss", "min", 0.5))
        for step in (10, 11, 12):
            save(store, id_of(step), state_of(step, SIZES), best=BestValue("loss", "min", 0.7))
        call(capsys, "prune", "gpt", "--keep-last", "1")
        assert steps(store) == [7, 8, 9, 11, 12]
        with pytest.raises(ConfigError, match="at least 1"):
            call(capsys, "prune", "gpt", "--keep-last", "0")

    def test_dry_run_changes_nothing(self, store, capsys):
        """And says what would go."""
        before = files(store)
        out = call(capsys, "prune", "gpt", "--dry-run", "--json")
        assert files(store) == before
        found = json.loads(out)
        assert [row["step"] for row in found["checkpoints"] if row["deleted"]] == [3, 2, 1]
        assert found["bytes_freed"] == 3 * 32_768
        assert found["dry_run"]
        call(capsys, "prune", "gpt")
        assert [row["checkpoint"] for row in found["checkpoints"] if not row["deleted"]] == [
            id.name for id in catalog.committed(store)
        ]

    def test_only_what_is_whole_counts_as_kept(self, store, capsys):
        """Damaged ones stay, and push nothing out; `--damaged` deletes them too."""
        flip(store, id_of(6).segment_key(0, 0))
        flip(store, id_of(4).segment_key(0, 0))
        flip(store, id_of(1).commit_key, 5)
        out = call(capsys, "prune", "gpt", "--keep-last", "1")
        assert steps(store) == [1, 3, 4, 5, 6]
        assert "3 damaged: they stay" in out
        call(capsys, "prune", "gpt", "--keep-last", "1", "--damaged")
        assert steps(store) == [3, 5]
        assert restore(store, id_of(5)) == state_of(5, SIZES)

    def test_a_lost_ledger_is_no_reason_to_delete(self, store, capsys):
        """No resume reads it, and `--damaged` deletes only what does not restore."""
        part = "events/00001-aaaa-00000/000000.jsonl"
        save(store, id_of(7), state_of(7, SIZES), events=part)
        call(capsys, "prune", "gpt", "--damaged")
        assert steps(store) == [5, 6, 7]

    def test_the_last_ones_stay_though_they_are_damaged(self, store, capsys):
        """A run without a commit would begin at step 0, silently."""
        for step in range(1, 7):
            flip(store, id_of(step).segment_key(0, 0))
        before = files(store)
        with pytest.raises(ConfigError, match="none of the 6 checkpoints"):
            call(capsys, "prune", "gpt", "--damaged")
        assert files(store) == before

    def test_what_a_newer_outlast_wrote_is_not_damaged(self, store, capsys):
        """It cannot be judged here: nothing is deleted, and both versions are named."""
        key = id_of(6).manifest_key(0)
        manifest, _ = read_record(store, key, Manifest)
        store.delete([key, id_of(6).commit_key])
        store.put(key, seal(msgspec.structs.replace(manifest, digest_algorithm="blake9")))
        commit(store, id_of(6), RUN_ID, 1)
        with pytest.raises(FormatTooNew, match="blake9"):
            call(capsys, "prune", "gpt", "--damaged")
        assert steps(store) == [1, 2, 3, 4, 5, 6]

    def test_what_the_script_keeps_is_known_though_the_newest_record_is_damaged(self, store, capsys):
        """From the attempt before; where none can be read, nothing is deleted."""
        attempt(store, dead_process(), keep=Keep(last=5))
        attempt(store, dead_process(), number=2, keep=Keep(last=5))
        ended = json.dumps({"kind": "end", "attempt": 2, "step": 6})
        store.put("events/00002-aaaa-00000/000000.jsonl", ended.encode())
        flip(store, attempt_key(2))
        call(capsys, "prune", "gpt")
        assert steps(store) == [2, 3, 4, 5, 6]
        store.delete([attempt_key(1), attempt_key(2)])
        with pytest.raises(ConfigError, match="what the script asked to keep is not known"):
            call(capsys, "prune", "gpt", "--keep-last", "2")
        assert steps(store) == [2, 3, 4, 5, 6]

    def test_a_run_that_lives_is_not_pruned(self, store, capsys):
        """Exit 78, naming its host and process; nothing is deleted."""
        attempt(store, process_id())
        before = files(store)
        with pytest.raises(RunAlive) as raised:
            call(capsys, "prune", "gpt")
        assert raised.value.exit_code == 78
        assert process_id().host in str(raised.value)
        assert f"process {os.getpid()}" in str(raised.value)
        assert "take-over" not in str(raised.value)
        assert files(store) == before

    def test_one_that_is_silent_elsewhere_keeps_what_it_has_not_committed(self, store, capsys, monkeypatch):
        """It may be alive after all: its checkpoints are pruned, the save that it may be in the middle of is not touched."""
        attempt(store, ELSEWHERE)
        monkeypatch.setattr(prune, "Waits", lambda: claim.Waits(silent_s=0.01, poll_s=0.001))
        cut = id_of(7).segment_key(0, 0)
        store.write(cut, [memoryview(b"x" * 100)])
        call(capsys, "prune", "gpt")
        assert steps(store) == [4, 5, 6]
        assert (store._root / cut).exists()
        attempt(store, dead_process())
        call(capsys, "prune", "gpt")
        assert not (store._root / cut).exists()

    def test_a_set_without_a_commit_is_committed_first(self, store, capsys):
        """Its writer was killed before that: it is the newest there is."""
        store.delete([id_of(6).commit_key])
        call(capsys, "prune", "gpt", "--keep-last", "2")
        assert steps(store) == [5, 6]

    def test_it_ends_when_a_newer_attempt_starts(self, store, capsys, monkeypatch):
        """What a start may be reading is left to that start."""
        before = files(store)
        verify = catalog.verify

        def meanwhile(*arguments, **options):
            attempt(store, process_id(), number=2)
            return verify(*arguments, **options)

        monkeypatch.setattr(catalog, "verify", meanwhile)
        said = call(capsys, "prune", "gpt")
        assert before.items() <= files(store).items()
        assert "Deleted 0 of 6 checkpoints, 0 B" in said, "what is said is what was done"


class TestPin:
    """`outlast checkpoints pin`."""

    def test_a_pin_keeps_it_until_it_is_removed(self, store, capsys):
        """`list` shows it."""
        call(capsys, "pin", "gpt", id_of(1).name)
        call(capsys, "prune", "gpt", "--keep-last", "1")
        assert steps(store) == [1, 5, 6]
        rows = json.loads(call(capsys, "list", "gpt", "--json"))["checkpoints"]
        assert [row["pinned"] for row in rows] == [False, False, True]
        call(capsys, "pin", "gpt", id_of(1).name, "--remove")
        call(capsys, "prune", "gpt", "--keep-last", "1")
        assert steps(store) == [5, 6]

    def test_one_who_takes_a_pin_back_takes_no_other_persons(self, store, capsys, monkeypatch):
        """A prune was deleting it, saw the first pin and put the commit back; the second was told that it is pinned."""
        key, told = id_of(6).commit_key, []
        commit_of_6 = store.get(key)
        store.delete([key])
        delete = LocalStore.delete

        def meanwhile(self, keys):
            if not told:
                store.put(key, commit_of_6)
                told.append(pins.pin(store, RUN_ID, id_of(6), THEN))
            delete(self, keys)

        monkeypatch.setattr(LocalStore, "delete", meanwhile)
        assert pins.pin(store, RUN_ID, id_of(6), THEN)
        assert told == [True]
        assert id_of(6) in pins.pinned(store)

    def test_what_is_not_there_cannot_be_pinned(self, store, capsys):
        """Nor unpinned, and a script's own pin cannot be taken back."""
        with pytest.raises(ConfigError, match="holds no checkpoint"):
            call(capsys, "pin", "gpt", id_of(99).name)
        save(store, id_of(7), state_of(7, SIZES), pinned=True)
        with pytest.raises(ConfigError, match="pin=True"):
            call(capsys, "pin", "gpt", id_of(7).name, "--remove")


def test_list_says_what_is_shared_best_and_on_the_store(store, capsys):
    """Bytes of a checkpoint that earlier saves wrote, and all that the store holds."""
    save(store, id_of(7), state_of(7, SIZES), best=BestValue("loss", "min", 0.5))
    found = json.loads(call(capsys, "list", "gpt", "--json"))
    assert found["bytes_on_store"] == sum(map(len, files(store).values()))
    assert found["checkpoints"][0]["best"] == {"metric": "loss", "mode": "min", "value": 0.5}
    assert found["checkpoints"][0]["bytes_shared"] == 0
    assert "On the store:" in call(capsys, "list", "gpt")


def deleted_as_it_is_read(store, monkeypatch, step):
    """A live run prunes this checkpoint while somebody looks at it."""
    load = catalog.load

    def meanwhile(store, id):
        if id.step == step:
            store.delete([id.commit_key, id.manifest_key(0)])
        return load(store, id)

    monkeypatch.setattr(catalog, "load", meanwhile)


@pytest.mark.parametrize("command", ["list", "verify"])
def test_what_the_run_deletes_meanwhile_is_not_called_damaged(store, capsys, monkeypatch, command):
    """What is gone is left out, and no fault."""
    deleted_as_it_is_read(store, monkeypatch, 2)
    found = json.loads(call(capsys, command, "gpt", "--json"))["checkpoints"]
    assert [row["step"] for row in found] == [6, 5, 4, 3, 1]


def test_status_calls_what_the_run_deletes_meanwhile_no_fault(store, monkeypatch):
    """It shows the newest that can be read."""
    deleted_as_it_is_read(store, monkeypatch, 6)
    faults = []
    found, _, _ = status._durable(store, faults)
    assert (found["step"], faults) == (5, [])
