"""A command that prints a deadline is a notice; one that fails or hangs is said once and says nothing."""

from __future__ import annotations

import os
import select
import sys
import time
from datetime import UTC, datetime, timedelta

import pytest

from outlast._errors import ConfigError
from outlast.notice.command import CommandMetadata
from outlast.notice.watch import watch_machine

NOW_UTC = datetime(2026, 1, 31, 12, 0, 0, tzinfo=UTC)


def look(metadata, later_s=0.0):
    return metadata.look(time.monotonic(), NOW_UTC + timedelta(seconds=later_s))


@pytest.fixture
def said(tmp_path):
    (tmp_path / "said").touch()
    return tmp_path / "said"


def left_s(notice):
    return (notice.deadline_utc - NOW_UTC).total_seconds()


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ('{"seconds": 120}\n', 120.0),
        ('{"deadline_utc": "2026-01-31T12:02:00Z"}', 120.0),
        ("2026-01-31T12:02:00Z\n", 120.0),
        ("2026-01-31T13:02:00+01:00", 120.0),
        ("2026-01-31T12:02:00", 120.0),
        ("2026-01-31T11:00:00Z", 0.0),
    ],
)
def test_what_is_printed_is_the_deadline_and_nothing_takes_it_back(said, text, seconds):
    """Seconds or a time; said once; an empty output cancels the same notice."""
    command = CommandMetadata(["cat", str(said)])
    assert look(command).notices == ()
    said.write_text(text)
    polled = look(command)
    (notice,) = polled.notices
    assert left_s(notice) == pytest.approx(seconds, abs=2)
    assert (notice.kind, notice.cancelled, polled.warnings) == ("machine", False, ())
    assert look(command, 5).notices == ()
    said.write_text("")
    gone = [(notice.id, True)] if seconds else []
    assert [(n.id, n.cancelled) for n in look(command, 6).notices] == gone


def test_a_countdown_is_one_deadline_and_a_later_one_moves_it(said):
    """What is left, counted down, names no new deadline; another one is the same notice moved."""
    command = CommandMetadata(["cat", str(said)])
    said.write_text('{"seconds": 120}')
    (first,) = look(command).notices
    said.write_text('{"seconds": 115.0}')
    assert look(command, 5).notices == ()
    said.write_text('{"seconds": 20}')
    (moved,) = look(command, 10).notices
    assert moved.id == first.id
    assert left_s(moved) == pytest.approx(30, abs=2)


@pytest.mark.parametrize(
    "text", ["no notice", '{"seconds": "many"}', "x" * 100_000, "[1]", '{"seconds": 1e12}']
)
def test_garbage_is_said_once_and_is_no_notice(said, text):
    """A tool that prints a message is not a machine that goes."""
    said.write_text(text)
    command = CommandMetadata(["cat", str(said)])
    polled = look(command)
    assert (polled.notices, len(polled.warnings)) == ((), 1)
    assert look(command, 5).warnings == ()


def test_a_fault_leaves_what_was_said_and_is_said_again_after_it_worked(said):
    """A failing command neither gives a notice nor takes one back."""
    command = CommandMetadata(["cat", str(said)])
    said.write_text('{"seconds": 120}')
    (notice,) = look(command).notices
    said.rename(said.with_name("away"))
    polled = look(command, 5)
    assert polled.notices == ()
    assert "ended with 1" in polled.warnings[0]
    said.write_text("")
    assert [n.id for n in look(command, 10).notices] == [notice.id]
    said.unlink()
    assert len(look(command, 15).warnings) == 1


def test_a_command_that_is_not_there_is_said():
    """The name is wrong: one line, no error."""
    assert "nowhere" in look(CommandMetadata(["/nowhere/at-all"])).warnings[0]


@pytest.mark.timeout(30)
def test_a_command_that_hangs_is_killed_with_what_it_started(tmp_path):
    """Both processes are gone, and the look ends in time."""
    pids = tmp_path / "pids"
    script = (
        "import os, signal, subprocess, sys\n"
        "child = subprocess.Popen(['sleep', '600'])\n"
        f"open({str(pids)!r}, 'w').write(f'{{os.getpid()}} {{child.pid}}')\n"
        "signal.pause()\n"
    )
    polled = look(CommandMetadata([sys.executable, "-S", "-c", script], timeout_s=2.0))
    assert "was killed" in polled.warnings[0]
    leader, child = map(int, pids.read_text().split())
    with pytest.raises(ProcessLookupError):
        os.kill(leader, 0)
    until_s = time.monotonic() + 10
    while _runs(child):
        assert time.monotonic() < until_s


def _runs(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.timeout(30)
def test_the_agent_runs_the_command_that_the_environment_names(said):
    """Split into words as a shell does, but run by none; an open quote is refused."""
    said.write_text('{"seconds": 120}')
    watch = watch_machine({"OUTLAST_NOTICE_COMMAND": f"cat '{said}' "})
    try:
        while not watch.poll().new:
            select.select(watch.filenos, [], [])
        assert [n.source for n in watch.notices] == ["command cat"]
    finally:
        watch.close()
    with pytest.raises(ConfigError, match="OUTLAST_NOTICE_COMMAND"):
        watch_machine({"OUTLAST_NOTICE_COMMAND": "cat 'open"})
