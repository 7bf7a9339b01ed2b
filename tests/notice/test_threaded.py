"""A source that blocks is heard without blocking: in its thread, warned once, and it always ends."""

from __future__ import annotations

import select
import threading
import time
from datetime import UTC, datetime

import pytest

from outlast.drill.metadata import (
    AWS_ACTION,
    AZURE_EVENTS,
    AZURE_NAME,
    TOKEN,
    azure_event,
    azure_events,
    metadata_service,
)
from outlast.notice.aws import AwsMetadata
from outlast.notice.azure import AzureMetadata
from outlast.notice.base import Notice, Polled
from outlast.notice.threaded import NotHere, ThreadedSource, pause_after_s
from outlast.notice.transport import HttpTransport
from outlast.notice.watch import Watch

pytestmark = pytest.mark.timeout(60)


class Scripted:
    """Answers what it was given, in order, and then waits for `close`."""

    name = "Scripted"
    pause_s = 0.001

    def __init__(self, *answers):
        self.answers = list(answers)
        self.closed = threading.Event()
        self.emptied = threading.Event()
        self.acknowledged = []

    def look(self, now_s, now_utc):
        if not self.answers:
            self.emptied.set()
            self.closed.wait()
            return Polled()
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def acknowledge(self, notice_id):
        self.acknowledged.append(notice_id)

    def close(self):
        self.closed.set()


def polled(source):
    return source.poll(time.monotonic(), datetime.now(UTC))


def utc(in_s):
    from datetime import timedelta

    return (datetime.now(UTC) + timedelta(seconds=in_s)).strftime("%Y-%m-%dT%H:%M:%SZ")


def test_what_the_thread_finds_wakes_the_loop():
    """The descriptor becomes readable; a poll takes all that was found, and then there is nothing."""
    notice = Notice("x-1", "x", "machine", 1.0, None)
    source = ThreadedSource(Scripted(Polled((notice,))))
    try:
        assert select.select([source.fileno()], [], [], 10)[0]
        assert polled(source).notices == (notice,)
        assert polled(source) == Polled()
        assert not select.select([source.fileno()], [], [], 0)[0]
    finally:
        source.close()


def test_a_fault_is_said_once_however_often_it_comes():
    """Three equal faults are one warning; an error of any kind ends neither the thread nor the training."""
    faults = [OSError("answered 500")] * 3 + [KeyError("surprise")]
    metadata = Scripted(*faults)
    source = ThreadedSource(metadata)
    try:
        assert metadata.emptied.wait(30)
        warnings = polled(source).warnings
        assert len(warnings) == 2
        assert "answered 500" in warnings[0]
    finally:
        source.close()


def test_a_service_that_is_not_here_is_asked_no_more():
    """One line, and the thread is over."""
    metadata = Scripted(NotHere("not AWS"), Polled(warnings=("never",)))
    source = ThreadedSource(metadata)
    source._thread.join(10)
    assert not source._thread.is_alive()
    assert polled(source).warnings == ("not AWS",)
    source.close()


def test_nothing_is_asked_before_the_constructor_returns_nor_is_it_waited_for():
    """A service that hangs holds up neither the start, nor a poll, nor the end."""
    with metadata_service() as service:
        service.slow[TOKEN] = threading.Event()
        began_s = time.monotonic()
        source = ThreadedSource(AwsMetadata(HttpTransport(service.url), is_ec2=True))
        assert polled(source) == Polled()
        assert time.monotonic() - began_s < 1.0
        source.close()
        source.close()
        assert time.monotonic() - began_s < 4.0
        assert not source._thread.is_alive()


def test_an_interruption_reaches_the_watch():
    """From the vendor's body over HTTP and the thread to the notice that the agent answers."""
    with metadata_service() as service:
        watch = Watch([ThreadedSource(AwsMetadata(HttpTransport(service.url), is_ec2=True))])
        try:
            service.say(AWS_ACTION, {"action": "terminate", "time": utc(120)})
            assert select.select(watch.filenos, [], [], 10)[0]
            (notice,) = watch.poll().new
            assert notice.kind == "machine"
            assert 110 < notice.deadline_s - time.monotonic() <= 120
        finally:
            watch.close()


def test_what_is_acknowledged_has_been_told_when_the_call_returns():
    """What follows may be the end of the process: the request is not left to a thread that ends with it."""
    with metadata_service() as service:
        service.say(AZURE_NAME, "vm0")
        at = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 60))
        service.say(AZURE_EVENTS, azure_events(azure_event("Preempt", at, id="E-1")))
        watch = Watch([ThreadedSource(AzureMetadata(HttpTransport(service.url), is_azure=True))])
        try:
            assert select.select(watch.filenos, [], [], 10)[0]
            (notice,) = watch.poll().new
            watch.acknowledge(notice.id)
            assert service.acknowledged == ["E-1"]
        finally:
            watch.close()


def test_a_service_that_stumbles_is_asked_as_often_as_before_and_one_that_is_down_less():
    """A notice of 30 s is not heard if two answers that failed mean waiting for seconds."""
    pauses = [pause_after_s(0.5, failed) for failed in range(40)]
    assert pauses[:11] == [0.5] * 11
    assert pauses == sorted(pauses)
    assert pauses[-1] == 5.0
    assert pause_after_s(60.0, 30) == 60.0
