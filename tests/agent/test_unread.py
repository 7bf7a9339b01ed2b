"""Whoever watches may have stopped reading: a frozen terminal, a pager. It costs no save, and keeps nothing from ending."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from launch import TRAIN, Lab, eventually
from outlast.agent.ledger import Ledger
from outlast.checkpoint.events import EventLog
from outlast.store.local import LocalStore

SPEAKER = """
import sys, outlast._say as say
say.wait_for_nobody()
for number in range(5000):
    say.say(f"line {number}")
open(sys.argv[1], "w").write("said")
"""


@pytest.fixture
def full() -> Iterator[int]:
    """A pipe that is full, and that nobody reads."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(write, b"x" * 4096)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(write, b"x")
    os.set_blocking(write, True)
    yield write
    os.close(read)
    os.close(write)


def test_a_process_whose_lines_nobody_reads_goes_on_and_ends(full: int, tmp_path: Path) -> None:
    command = [sys.executable, "-c", SPEAKER, str(tmp_path / "done")]
    assert subprocess.run(command, stderr=full, timeout=60, check=False).returncode == 0
    assert (tmp_path / "done").read_text() == "said"


def test_what_is_said_is_read_whole_where_somebody_reads(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SPEAKER.replace("5000", "900"), str(tmp_path / "done")]
    said = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stderr
    assert said.splitlines() == [f"outlast: line {number}" for number in range(900)]


def test_a_notice_is_acted_on_though_nobody_reads(lab: Lab, full: int) -> None:
    """The pipe is full before the first line: told to go, the script is saved for and left all the same."""
    env = lab.env | {
        "T_GATES": "step:5",
        "T_EPOCHS": 30,
        "T_SLEEP": 0.1,
        "OUTLAST_NOTICE_FILE": str(lab.folder / "notice"),
    }
    command = [str(Path(sys.executable).with_name("outlast")), "run", "--", sys.executable, str(TRAIN)]
    process = subprocess.Popen(
        command,
        env={name: str(value) for name, value in env.items()},
        cwd=lab.folder,
        stdin=subprocess.DEVNULL,
        stdout=full,
        stderr=full,
        start_new_session=True,
    )
    try:
        lab.at("step:5")
        beside = lab.folder / "notice-being-written"
        beside.write_text(json.dumps({"seconds": 60}))
        beside.rename(lab.folder / "notice")
        lab.open("step:5")
        eventually("the save", lambda: [c for c in lab.commits() if c["reason"] == "emergency"], lab.said)
    finally:
        for pid in lab.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 9)
        process.wait()


@pytest.mark.parametrize(("logs", "kept"), [("0", "ValueError"), ("1", "ValueError: token=abc")])
def test_a_run_that_keeps_no_output_keeps_no_words_of_an_exception(
    logs: str, kept: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OUTLAST_LOGS", logs)
    ledger = Ledger(EventLog(LocalStore(tmp_path), 1, "abcd", 0), lambda _: None)
    said = {
        "kind": "exception",
        "utc": "x",
        "step": 1,
        "text": "ValueError: token=abc",
        "trace": "... token=abc",
    }
    ledger.take(said)
    ledger.flush()
    (part,) = (tmp_path / "events").rglob("*.jsonl")
    line = json.loads(part.read_text().splitlines()[0])
    assert line["text"] == kept
    assert ("token=abc" in part.read_text()) is (logs == "1")
