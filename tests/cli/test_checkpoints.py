"""`outlast checkpoints` and `outlast status` over a run on a disk."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from outlast._errors import ConfigError, NotAStore, ObjectDamaged, StoreUnavailable
from outlast._process import process_id
from outlast._types import Reason
from outlast.checkpoint import catalog
from outlast.checkpoint.events import EventLog
from outlast.checkpoint.manifest import AttemptRecord, attempt_key, seal
from outlast.cli import checkpoints, status
from outlast.store.local import LocalStore
from saving import RUN_ID, id_of, save, state_of

SIZES = {"weight": 3000, "bias": 5}


def utc(minutes_ago=0):
    return (datetime.now(UTC) - timedelta(minutes=minutes_ago)).isoformat(timespec="milliseconds")


def dead_process():
    done = subprocess.Popen([sys.executable, "-c", "pass"])
    process = process_id(done.pid)
    done.wait()
    return process


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Two attempts, the first on a machine that is gone and the second alive here; the name `gpt` under the root."""
    monkeypatch.setenv("OUTLAST_STORE", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "80")
    store = LocalStore(tmp_path / "gpt")
    catalog.create_run(store, RUN_ID, utc(60))
    here, gone = process_id(os.getpid()), dead_process()
    for number, process in ((1, gone), (2, here)):
        record = AttemptRecord(
            format=1, run_id=RUN_ID, attempt=number, nonce="aaaa", claimed_utc=utc(60 / number), world_size=1,
            global_batch=8, launch_id="l", job_id=None, agent=process, trainer=process, settings={},
            resumed_from=None,
        )  # fmt: skip
        store.create(attempt_key(number), seal(record))
    return store


def log(store, attempt, *events):
    events_log = EventLog(store, attempt, "aaaa", 0)
    for kind, step, fields in events:
        events_log.add({"kind": kind, "utc": utc(), "attempt": attempt, "step": step, **fields})
    return events_log.flush()


def call(app, capsys, *arguments):
    """Run a command here; return its exit code and what it printed."""
    try:
        app(list(arguments), result_action="return_value")
        code = 0
    except SystemExit as end:
        code = end.code or 0
    return code, capsys.readouterr().out


def flip(store, key, at=100):
    path = store._root / key
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(bytes(data))


class TestList:
    """`outlast checkpoints list`."""

    def test_newest_first_at_80_columns(self, run, capsys):
        """One line each: name, step, time, reason, size and what is special; a damaged one says what is wrong."""
        save(run, id_of(100), state_of(1, SIZES))
        save(run, id_of(200), state_of(2, SIZES), reason=Reason.USER, pinned=True)
        save(run, id_of(50, attempt=2, repeat=1), state_of(3, SIZES), reason=Reason.FINAL, finished=True)
        code, out = call(checkpoints.app, capsys, "list", "gpt")
        lines = out.splitlines()
        assert code == 0
        assert max(map(len, lines)) <= 80
        assert [line.split()[:2] for line in lines[1:4]] == [
            ["00002-aaaa-000000000050+1", "50"],
            ["00001-aaaa-000000000200", "200"],
            ["00001-aaaa-000000000100", "100"],
        ]
        assert lines[1].endswith("final     2.9 KiB  finished")
        assert "2026-01-01 00:00" in lines[2]
        assert lines[2].rstrip().endswith("pinned")
        assert lines[-1].startswith("Newest: step 50, saved ")

        flip(run, id_of(200).commit_key)
        code, out = call(checkpoints.app, capsys, "list", "gpt")
        assert code == 0
        assert "digest does not fit" in " ".join(out.split())
        code, out = call(checkpoints.app, capsys, "list", "gpt", "--json")
        rows = json.loads(out)["checkpoints"]
        assert [row["fault"] is None for row in rows] == [True, False, True]
        assert [row["bytes"] for row in rows] == [3005, None, 3005]
        assert rows[0].keys() == rows[1].keys()

    def test_nothing_yet(self, run, capsys):
        """A run that has saved nothing says so."""
        assert "no checkpoint yet" in " ".join(call(checkpoints.app, capsys, "list", "gpt")[1].split())
        assert json.loads(call(checkpoints.app, capsys, "list", "gpt", "--json")[1])["checkpoints"] == []


class TestVerify:
    """`outlast checkpoints verify`."""

    def test_whole(self, run, capsys):
        """All of a run, or one by name; exit 0."""
        save(run, id_of(100), state_of(1, SIZES))
        save(run, id_of(200), state_of(2, SIZES))
        code, out = call(checkpoints.app, capsys, "verify", "gpt")
        assert code == 0
        assert out.count("whole") == 2
        code, out = call(checkpoints.app, capsys, "verify", "gpt", id_of(100).name, "--json")
        assert code == 0
        assert [row["checkpoint"] for row in json.loads(out)["checkpoints"]] == [id_of(100).name]

    def test_a_fault_exits_1_and_is_named(self, run, capsys):
        """A byte of a segment that `list` does not read: found, named, exit 1, nothing changed."""
        save(run, id_of(100), state_of(1, SIZES))
        save(run, id_of(200), state_of(2, SIZES))
        flip(run, id_of(200).segment_key(0, 0))
        before = {path: path.read_bytes() for path in run._root.rglob("*.*")}
        code, out = call(checkpoints.app, capsys, "verify", "gpt")
        assert code == 1
        assert out.count("whole") == 1
        assert id_of(200).segment_key(0, 0) in "".join(out.split())
        code, out = call(checkpoints.app, capsys, "verify", "gpt", "--json")
        found = json.loads(out)
        assert (code, found["whole"]) == (1, False)
        assert [len(row["faults"]) for row in found["checkpoints"]] == [1, 0]
        assert call(checkpoints.app, capsys, "verify", "gpt", id_of(100).name)[0] == 0
        assert {path: path.read_bytes() for path in run._root.rglob("*.*")} == before

    def test_one_that_is_not_there(self, run, capsys):
        """A name without a checkpoint is a fault; what is no name is a wrong configuration."""
        assert call(checkpoints.app, capsys, "verify", "gpt", id_of(7).name)[0] == 1
        with pytest.raises(ConfigError, match="names no checkpoint"):
            call(checkpoints.app, capsys, "verify", "gpt", "latest")

    def test_a_store_out_of_reach_is_not_a_fault(self, run, capsys, monkeypatch):
        """The error goes through (exit 74 by `main`): a checkpoint is not called bad because a disk does not answer."""
        save(run, id_of(100), state_of(1, SIZES))

        def away(self, key, offset, target):
            raise StoreUnavailable(key)

        monkeypatch.setattr(LocalStore, "read_into", away)
        with pytest.raises(StoreUnavailable):
            call(checkpoints.app, capsys, "verify", "gpt")


class TestPlace:
    """What RUN may be."""

    @pytest.mark.parametrize("form", ["{root}/gpt", "file://{root}/gpt", "gpt", "./gpt", "gpt/"])
    def test_a_url_a_path_or_a_name(self, run, capsys, monkeypatch, form):
        """All lead to the run."""
        monkeypatch.chdir(run._root.parent)
        code, out = call(checkpoints.app, capsys, "list", form.format(root=run._root.parent), "--json")
        assert (code, json.loads(out)["run_id"]) == (0, RUN_ID)

    def test_no_run_there(self, run, tmp_path, capsys):
        """An empty place and a place with something else are errors that name it."""
        with pytest.raises(ConfigError, match="holds no run"):
            call(status.app, capsys, "gtp")
        with pytest.raises(NotAStore, match=r"gpt/"):
            call(status.app, capsys, str(tmp_path))
        assert sorted(path.name for path in tmp_path.iterdir()) == ["gpt"]

    def test_a_damaged_run(self, run, capsys):
        """Without anything that names the run, its damage is said."""
        for path in ("run.json", attempt_key(1), attempt_key(2)):
            flip(run, path, at=20)
        with pytest.raises(ObjectDamaged, match=r"run\.json"):
            call(status.app, capsys, "gpt")


class TestStatus:
    """`outlast status`."""

    def test_a_run_that_trains(self, run, capsys):
        """Attempts with host and state, newest durable step, resume, notice, open warning, metrics that count."""
        agent = msgspec.to_builtins(process_id(os.getpid()))
        log(
            run, 1, ("alive", 0, {"agent": msgspec.to_builtins(dead_process())}), ("warning", 3, {"cause": "x", "message": "old"}),
            *(("metrics", step, {"values": {"loss": 1.0}}) for step in range(130)),
            ("notice", 120, {"source": "file", "deadline_utc": "2026-01-01T00:02:00+00:00"}), ("end", 120, {"outcome": "preempted"}),
        )  # fmt: skip
        save(run, id_of(100), state_of(1, SIZES), reason=Reason.EMERGENCY)
        log(
            run, 2, ("alive", 0, {"agent": agent}), ("resume", 100, {"checkpoint": id_of(100).name, "guarantee": "bit-exact", "why": "bit-exact (same machine)"}),
            ("warning", 101, {"cause": "no-save", "message": "gone with the next save"}), ("save", 101, {}),
            ("warning", 110, {"cause": "no-safe-point", "message": "for 10 min\x1b[31m"}), ("warning", 111, {"cause": "no-safe-point", "message": "for 20 min\x1b[31m"}),
            ("metrics", 111, {"values": {"loss": float("nan"), "lr": 0.1}}),
        )  # fmt: skip
        code, out = call(status.app, capsys, "gpt")
        assert code == 0
        assert max(map(len, out.splitlines())) <= 80
        assert "\x1b" not in out
        said = " ".join(out.split())
        for part in (
            f"run {RUN_ID} at {run.url}"[:30],
            "finished no",
            "durable step 100",
            "resumed attempt 2 at step 100,",
            "ago: bit-exact (same machine)",
            "notice file",
            "metrics step 111: loss nan, lr 0.1",
            "warning no-safe-point: for 20 min?[31m",
        ):
            assert part in said, part
        assert "gone with the next save" not in said
        assert "old" not in said
        rows = [line.split() for line in out.splitlines() if line.split()[:1] in (["1"], ["2"])]
        assert [(row[1], row[4]) for row in rows] == [
            (socket.gethostname(), "gone,"),
            (socket.gethostname(), "alive"),
        ]

        found = json.loads(call(status.app, capsys, "gpt", "--json")[1])
        assert [a["state"] for a in found["attempts"]] == ["gone", "alive"]
        assert found["attempts"][0]["outcome"] == "preempted"
        assert (found["durable"]["step"], found["durable"]["reason"]) == (100, "emergency")
        assert found["resume"]["guarantee"] == "bit-exact"
        assert found["notice"]["cancelled_utc"] is None
        assert [w["message"][:10] for w in found["warnings"]] == ["for 20 min"]
        assert found["metrics"]["values"] == {"loss": "nan", "lr": 0.1}
        assert found["finished"] is False

    def test_metrics_that_a_resume_undid_are_not_shown(self, run, capsys):
        """Right after a resume from step 5, the latest metrics are those of step 5 at the most."""
        log(run, 1, *(("metrics", step, {"values": {"loss": step}}) for step in range(9)))
        log(run, 2, ("resume", 5, {"guarantee": "bit-exact"}))
        assert json.loads(call(status.app, capsys, "gpt", "--json")[1])["metrics"]["step"] == 5

    def test_a_finished_run(self, run, capsys):
        """The final commit says so; a cancelled notice is said to be."""
        save(run, id_of(300, attempt=2), state_of(1, SIZES), reason=Reason.FINAL, finished=True)
        log(run, 2, ("notice", 5, {"source": "file", "deadline_utc": None}), ("notice-cancelled", 6, {}))
        code, out = call(status.app, capsys, "gpt")
        assert "finished  yes" in out
        assert "cancelled" in out

    def test_damage_is_said_and_the_next_one_counts(self, run, capsys):
        """A damaged newest commit, a damaged events part and a torn claim: each named, and the rest still told."""
        save(run, id_of(100), state_of(1, SIZES))
        save(run, id_of(200), state_of(2, SIZES))
        flip(run, id_of(200).commit_key)
        flip(run, log(run, 1, ("alive", 0, {})), at=5)
        flip(run, attempt_key(2))
        found = json.loads(call(status.app, capsys, "gpt", "--json")[1])
        assert found["durable"]["step"] == 100
        assert len(found["faults"]) == 2
        assert found["attempts"][1]["state"] == "unknown"
        code, out = call(status.app, capsys, "gpt")
        assert code == 0
        assert out.count("damaged") == 3

    def test_an_attempt_elsewhere_is_unknown(self, run, capsys):
        """What this machine cannot see is neither called alive nor gone; many attempts are cut to the newest."""
        there = msgspec.structs.replace(process_id(os.getpid()), machine="other/1", host="gpu-7")
        for number in range(3, 9):
            record = msgspec.structs.replace(
                catalog.read_attempt(run, 1), attempt=number, agent=there, trainer=there
            )
            run.create(attempt_key(number), seal(record))
        code, out = call(status.app, capsys, "gpt")
        assert out.count("gpu-7") == 5
        assert out.count("unknown") == 5
        assert "and 3 earlier" in out
        assert len(json.loads(call(status.app, capsys, "gpt", "--json")[1])["attempts"]) == 8


def test_off_a_terminal_and_without_torch(run):
    """In a pipe the tables are plain text; the whole command starts without torch."""
    save(run, id_of(100), state_of(1, SIZES))
    code = (
        "import sys; sys.argv = ['outlast', 'checkpoints', 'list', 'gpt']\n"
        "from outlast.cli import main\n"
        "try:\n    main()\n"
        "finally:\n    assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout
    assert id_of(100).name in done.stdout
    assert done.stderr == ""
