"""Azure's Scheduled Events over real HTTP: this machine's events only, cancelled or acknowledged."""

from __future__ import annotations

import dataclasses
import threading
from datetime import UTC, datetime, timedelta

import pytest

from outlast.drill.metadata import AZURE_EVENTS, AZURE_NAME, azure_event, azure_events, metadata_service
from outlast.notice.azure import AzureMetadata
from outlast.notice.base import Polled
from outlast.notice.threaded import NotHere
from outlast.notice.transport import HttpTransport

NOW_S = 1000.0
NOW_UTC = datetime(2016, 9, 19, 18, 29, 0, tzinfo=UTC)
NOT_BEFORE = "Mon, 19 Sep 2016 18:29:47 GMT"


@pytest.fixture
def service():
    with metadata_service() as service:
        service.say(AZURE_NAME, "vm0")
        service.say(AZURE_EVENTS, azure_events())
        yield service


@pytest.fixture
def azure(service):
    metadata = AzureMetadata(HttpTransport(service.url), is_azure=True)
    yield metadata
    metadata.close()


def look(metadata, later_s=0.0):
    return metadata.look(NOW_S + later_s, NOW_UTC + timedelta(seconds=later_s))


def only(polled):
    assert len(polled.notices) == 1, polled
    return polled.notices[0]


@pytest.mark.parametrize(
    ("event", "kind"),
    [
        ("Preempt", "machine"),
        ("Terminate", "machine"),
        ("Reboot", "machine"),
        ("Redeploy", "machine"),
        ("Freeze", "hint"),
    ],
)
def test_an_event_is_a_notice_with_its_deadline(service, azure, event, kind):
    """`NotBefore` is the deadline; said once."""
    assert look(azure).notices == ()
    service.say(AZURE_EVENTS, azure_events(azure_event(event, NOT_BEFORE)))
    notice = only(look(azure, 1))
    assert (notice.kind, notice.deadline_s) == (kind, NOW_S + 47)
    assert look(azure, 2).notices == ()


def test_a_siblings_event_is_none_of_ours(service, azure):
    """An event that names another machine of the same group says nothing here."""
    service.say(AZURE_EVENTS, azure_events(azure_event("Preempt", NOT_BEFORE, vm="vm1")))
    assert look(azure).notices == ()
    service.say(
        AZURE_EVENTS,
        azure_events(
            azure_event("Preempt", NOT_BEFORE, vm="vm1"), azure_event("Preempt", NOT_BEFORE, id="B", vm="vm0")
        ),
    )
    assert "B" in only(look(azure, 1)).id


def test_an_event_gone_before_its_time_is_cancelled_and_later_is_over(service, azure):
    """Before `NotBefore` it was taken back; after it the deadline alone speaks."""
    service.say(AZURE_EVENTS, azure_events(azure_event("Preempt", NOT_BEFORE)))
    first = only(look(azure))
    service.say(AZURE_EVENTS, azure_events())
    gone = only(look(azure, 10))
    assert (gone.id, gone.cancelled) == (first.id, True)
    service.say(AZURE_EVENTS, azure_events(azure_event("Freeze", NOT_BEFORE, id="F")))
    only(look(azure, 20))
    service.say(AZURE_EVENTS, azure_events())
    assert look(azure, 60).notices == ()


def test_a_deadline_moved_and_an_event_begun_are_the_same_notice(service, azure):
    """An earlier `NotBefore` moves it; one that has begun names no time, and keeps the last."""
    service.say(AZURE_EVENTS, azure_events(azure_event("Preempt", NOT_BEFORE)))
    first = only(look(azure))
    service.say(AZURE_EVENTS, azure_events(azure_event("Preempt", "Mon, 19 Sep 2016 18:29:30 GMT")))
    moved = only(look(azure, 1))
    assert (moved.id, moved.deadline_s) == (first.id, NOW_S + 30)
    service.say(AZURE_EVENTS, azure_events(azure_event("Preempt", "")))
    assert look(azure, 2).notices == ()


def test_an_acknowledged_event_is_named_to_azure(service, azure):
    """`StartRequests` holds the event's id; what does not stand is not acknowledged, and a refusal is an error."""
    service.say(AZURE_EVENTS, azure_events(azure_event("Preempt", NOT_BEFORE, id="602d9444-d2cd-49c7")))
    notice = only(look(azure))
    azure.acknowledge("azure-other-1")
    assert service.acknowledged == []
    azure.acknowledge(notice.id)
    assert service.acknowledged == ["602d9444-d2cd-49c7"]
    service.faults[AZURE_EVENTS] = 500
    with pytest.raises(OSError, match="500"):
        azure.acknowledge(notice.id)


def test_the_first_answer_may_take_longer_than_any_other(service):
    """The service warms up: only the first question for events waits for it."""
    allowed_s = []

    class Noting(HttpTransport):
        def request(self, method, path, headers, body=None, timeout_s=2.0):
            allowed_s.append(timeout_s)
            return super().request(method, path, headers, body, timeout_s)

    azure = AzureMetadata(Noting(service.url), is_azure=True)
    held = service.slow[AZURE_EVENTS] = threading.Event()
    threading.Timer(0.1, held.set).start()
    look(azure)
    look(azure, 1)
    azure.close()
    assert allowed_s == [2.0, 130.0, 2.0]


@pytest.mark.parametrize("body", ["soon", "{}", '{"Events": 3}'])
def test_events_that_are_not_as_documented_are_a_fault(service, azure, body):
    """What stood before still stands."""
    service.say(AZURE_EVENTS, azure_events(azure_event("Preempt", NOT_BEFORE)))
    only(look(azure))
    service.say(AZURE_EVENTS, body)
    with pytest.raises(OSError, match="not as documented"):
        look(azure, 1)
    service.say(AZURE_EVENTS, azure_events(azure_event("Preempt", NOT_BEFORE)))
    assert look(azure, 2).notices == ()


@pytest.mark.parametrize(
    "unbelievable",
    [
        azure_event("Freeze", "Sat, 22 Oct 2016 18:29:47 GMT", id="F"),
        azure_event("Freeze", "tomorrow", id="F"),
        {"EventId": "F", "Resources": 3},
        {},
    ],
)
@pytest.mark.parametrize("is_first", [True, False])
def test_an_event_that_cannot_be_believed_hides_no_other(service, azure, unbelievable, is_first):
    """33 days ahead, no date, or no event: the eviction beside it is heard, and the rest is said once, in the same words each time."""
    events = [unbelievable, azure_event("Preempt", NOT_BEFORE)]
    service.say(AZURE_EVENTS, azure_events(*(events if is_first else events[::-1])))
    polled = look(azure)
    assert only(polled).kind == "machine"
    assert "not as documented" in polled.warnings[0]
    assert look(azure, 10) == Polled((), polled.warnings)


@pytest.mark.parametrize("not_before", ["Mon, 19 Sep 2044 18:29:47 GMT", "tomorrow"])
def test_an_event_that_cannot_be_believed_any_more_stands_as_it_was(service, azure, not_before):
    """And another that is gone beside it is taken back."""
    service.say(
        AZURE_EVENTS,
        azure_events(azure_event("Preempt", NOT_BEFORE), azure_event("Reboot", NOT_BEFORE, id="R")),
    )
    first, second = look(azure).notices
    assert "R" in second.id
    service.say(AZURE_EVENTS, azure_events(azure_event("Preempt", not_before)))
    assert only(look(azure, 1)) == dataclasses.replace(second, cancelled=True)
    service.say(AZURE_EVENTS, azure_events())
    assert only(look(azure, 2)) == dataclasses.replace(first, cancelled=True)


def test_what_does_not_say_which_event_it_is_takes_none_back(service, azure):
    """It may be any of those that stood."""
    service.say(AZURE_EVENTS, azure_events(azure_event("Preempt", NOT_BEFORE)))
    only(look(azure))
    service.say(AZURE_EVENTS, azure_events({}))
    assert look(azure, 1).notices == ()


def test_no_answer_is_not_azure_unless_the_machine_says_so(service):
    """Elsewhere the source ends with one line; on Azure it is asked again."""
    service.faults[AZURE_NAME] = 404
    for is_azure, error in ((False, NotHere), (True, OSError)):
        metadata = AzureMetadata(HttpTransport(service.url), is_azure=is_azure)
        with pytest.raises(error):
            look(metadata)
        metadata.close()
