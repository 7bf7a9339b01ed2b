"""Alibaba Cloud's metadata service over real HTTP: the time of release, with tokens and without."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from outlast.drill.metadata import ALIBABA_TERMINATION, TOKEN, metadata_service
from outlast.notice.alibaba import AlibabaMetadata
from outlast.notice.threaded import NotHere
from outlast.notice.transport import HttpTransport

NOW_S = 1000.0
NOW_UTC = datetime(2015, 1, 5, 17, 57, 0, tzinfo=UTC)


@pytest.fixture
def service():
    with metadata_service("alibaba") as service:
        yield service


@pytest.fixture
def alibaba(service):
    metadata = AlibabaMetadata(HttpTransport(service.url), is_ecs=True)
    yield metadata
    metadata.close()


def look(metadata):
    return metadata.look(NOW_S, NOW_UTC).notices


def test_a_release_is_a_notice_with_its_deadline(service, alibaba):
    """The body as documented, in UTC; said once, and taken back when it is gone."""
    assert look(alibaba) == ()
    service.say(ALIBABA_TERMINATION, "2015-01-05T18:02:00Z")
    (notice,) = look(alibaba)
    assert (notice.kind, notice.deadline_s) == ("machine", NOW_S + 300)
    assert notice.deadline_utc == datetime(2015, 1, 5, 18, 2, 0, tzinfo=UTC)
    assert look(alibaba) == ()
    service.say(ALIBABA_TERMINATION, None)
    (gone,) = look(alibaba)
    assert (gone.id, gone.cancelled) == (notice.id, True)


def test_a_token_that_has_ended_is_asked_for_anew(service, alibaba):
    """A notice is heard with the same look that finds the token refused."""
    look(alibaba)
    look(alibaba)
    assert service.times_asked(TOKEN) == 1
    service.tokens.clear()
    service.say(ALIBABA_TERMINATION, "2015-01-05T18:02:00Z")
    assert len(look(alibaba)) == 1
    assert service.times_asked(TOKEN) == 2


def test_where_there_are_no_tokens_it_is_asked_without(service, alibaba):
    """The service's normal mode."""
    service.needs_token = False
    service.faults[TOKEN] = 404
    service.say(ALIBABA_TERMINATION, "2015-01-05T18:02:00Z")
    assert len(look(alibaba)) == 1


@pytest.mark.parametrize("said", ["soon", "2018-08-18", "2031-01-05T18:02:00Z"])
def test_what_is_no_time_of_release_is_a_fault_that_says_so(service, alibaba, said):
    """Neither a notice nor silence: another format, another day."""
    service.say(ALIBABA_TERMINATION, said)
    with pytest.raises(OSError, match=f"holds .*{said}.*2015-01-05T18:02:00Z"):
        look(alibaba)


@pytest.mark.parametrize("path", [TOKEN, ALIBABA_TERMINATION])
def test_a_service_that_fails_keeps_what_stands(service, alibaba, path):
    """An answer of 500 takes no notice back."""
    service.say(ALIBABA_TERMINATION, "2015-01-05T18:02:00Z")
    look(alibaba)
    service.faults[path] = 500
    service.tokens.clear()
    with pytest.raises(OSError, match="500"):
        look(alibaba)
    service.faults.clear()
    assert look(alibaba) == ()


def test_a_machine_elsewhere_has_no_such_service():
    """Nobody there is said once; on an ECS instance it is a fault."""
    with metadata_service("alibaba") as service:
        url = service.url
    with pytest.raises(NotHere, match="not Alibaba Cloud"):
        look(AlibabaMetadata(HttpTransport(url), is_ecs=False))
    with pytest.raises(OSError, match="refused"):
        look(AlibabaMetadata(HttpTransport(url), is_ecs=True))
