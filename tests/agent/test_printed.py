"""What a script prints waits in memory: never for the store, never without a bound, and never beside a save that counts."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from collections.abc import Iterator

import pytest

from launch import eventually
from outlast import _process
from outlast._errors import StoreUnavailable
from outlast.agent.printed import MOST_WAITING_BYTES, Printed
from outlast.agent.tee import Stream, Tee
from outlast.checkpoint.manifest import AttemptRecord
from outlast.checkpoint.output import list_output, read_output
from saving import RUN_ID, UTC, MemoryStore

HERE = _process.process_id()


def record(attempt: int = 1) -> AttemptRecord:
    return AttemptRecord(
        format=1, run_id=RUN_ID, attempt=attempt, nonce="aaaa", claimed_utc=UTC, world_size=1, global_batch=8,
        launch_id="l", job_id=None, agent=HERE, trainer=HERE, settings={}, resumed_from=None,
    )  # fmt: skip


def text(store: MemoryStore, attempt: int = 1) -> str:
    objects = [data for key, data in sorted(store.objects.items()) if key.startswith(f"output/{attempt:05d}")]
    return "".join(json.loads(line).get("text", "") for data in objects for line in data.splitlines())


class Hanging(MemoryStore):
    """A store whose puts take as long as the test says."""

    def __init__(self) -> None:
        super().__init__()
        self.began, self.goes_on = threading.Event(), threading.Event()

    def put(self, key: str, data: bytes) -> None:
        self.began.set()
        self.goes_on.wait(60)
        super().put(key, data)


@pytest.fixture
def hanging() -> Iterator[Hanging]:
    store = Hanging()
    yield store
    store.goes_on.set()


def test_a_store_that_hangs_holds_up_nobody_who_prints(
    hanging: Hanging, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nor the end of the script for longer than is said; what waits meanwhile is bounded, and its newest is kept."""
    printed = Printed()
    printed.claimed(hanging, record(), 0, may_put=lambda: True)
    printed.keep("stdout", b"first\n")
    assert hanging.began.wait(60)
    for n in range(1000):
        printed.keep("stdout", f"{n}\n".encode() + b"x" * 10_000 + b"\n")
    assert printed._waiting_bytes <= MOST_WAITING_BYTES
    hanging.goes_on.set()
    printed.end(60.0)
    assert text(hanging).startswith("first\n")
    assert text(hanging).endswith("\n999\n" + "x" * 10_000 + "\n")
    hanging.goes_on.clear()
    printed.claimed(hanging, record(2), 0, may_put=lambda: True)
    printed.keep("stdout", b"never\n")
    printed.end(0.01)
    assert "the store did not answer within 0.0 s" in capsys.readouterr().err


def test_nothing_is_put_while_a_save_counts_but_at_the_end() -> None:
    """Between a notice and its commit nothing else goes to the store."""
    store = MemoryStore()
    asked = threading.Semaphore(0)
    may_put = threading.Event()

    def look() -> bool:
        asked.release()
        return may_put.is_set()

    printed = Printed()
    printed.claimed(store, record(), 0, may_put=look)
    printed.keep("stdout", b"one\n")
    for _ in range(3):
        assert asked.acquire(timeout=60)
    assert store.objects == {}
    may_put.set()
    eventually("it is put", lambda: text(store) == "one\n")
    may_put.clear()
    printed.keep("stdout", b"two\n")
    assert asked.acquire(timeout=60)
    printed.end(60.0)
    assert text(store) == "one\ntwo\n"


def test_a_store_that_was_away_gets_what_was_printed_once() -> None:
    """The end does not wait for the next try."""
    away = True

    def before(operation: str, _key: str) -> None:
        failed.set()
        if operation == "put" and away:
            msg = "away"
            raise StoreUnavailable(msg)

    failed = threading.Event()
    store = MemoryStore(before)
    printed = Printed()
    printed.claimed(store, record(), 0, may_put=lambda: True)
    printed.keep("stdout", b"one\n")
    assert failed.wait(60)
    printed.keep("stdout", b"two\n")
    away = False
    printed.end(60.0)
    assert text(store) == "one\ntwo\n"


def test_the_places_of_each_attempt_are_counted_from_its_own_start() -> None:
    """Also where one command runs two scripts, so that nothing seems to be missing."""
    store = MemoryStore()
    printed = Printed()
    printed.claimed(store, record(1), 0, may_put=lambda: True)
    printed.keep("stdout", b"one\n")
    eventually("it is put", lambda: text(store, 1) == "one\n")
    printed.claimed(store, record(2), 0, may_put=lambda: True)
    printed.keep("stdout", b"two\n")
    printed.end(60.0)
    printed.keep("stdout", b"before\n")
    printed.claimed(store, record(3), 0, may_put=lambda: True)
    printed.keep("stdout", b"three\n")
    printed.end(60.0)
    places = [(output.attempt, output.at) for output in read_output(store, list_output(store), pytest.fail)]
    assert places == [(1, 0), (2, 0), (3, 0)]


def test_a_character_that_comes_in_two_reads_is_whole() -> None:
    """And bytes that are none are written out."""
    store = MemoryStore()
    printed = Printed()
    for byte in "Grüße ✓\n".encode():
        printed.keep("stdout", bytes([byte]))
    printed.keep("stdout", b"\xff\x00\n")
    printed.claimed(store, record(), 0, may_put=lambda: True)
    printed.end(60.0)
    assert text(store) == "Grüße ✓\n\\xff\x00\n"


def test_an_agent_that_is_told_to_end_before_it_has_begun_to_read_reads_all_the_same() -> None:
    """The one before it is gone, and the script's last words come with its farewell: whichever thread is first."""
    done = subprocess.Popen(["sleep", "60"])
    gone = _process.process_id(done.pid)
    done.kill()
    done.wait()
    for _ in range(30):
        printed, store = Printed(), MemoryStore()
        printed.claimed(store, record(), 0, may_put=lambda: True)
        source, sink = os.pipe2(os.O_NONBLOCK)
        os.write(sink, b"the last words\n")
        Tee((Stream("stdout", source, None),), printed, gone).end(30.0)
        assert text(store) == "the last words\n"
