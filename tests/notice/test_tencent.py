"""Tencent Cloud's metadata service over real HTTP: the time of repossession, which is in UTC+8."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from outlast.drill.metadata import TENCENT_TERMINATION, metadata_service
from outlast.notice.tencent import TencentMetadata
from outlast.notice.threaded import NotHere
from outlast.notice.transport import HttpTransport

NOW_S = 1000.0
NOW_UTC = datetime(2018, 8, 18, 4, 3, 33, tzinfo=UTC)


@pytest.fixture
def service():
    with metadata_service("tencent") as service:
        yield service


@pytest.fixture
def tencent(service):
    metadata = TencentMetadata(HttpTransport(service.url), is_cvm=True)
    yield metadata
    metadata.close()


def look(metadata):
    return metadata.look(NOW_S, NOW_UTC).notices


def test_a_repossession_is_a_notice_with_its_deadline(service, tencent):
    """The body as documented; said once, and taken back when it is gone."""
    assert look(tencent) == ()
    service.say(TENCENT_TERMINATION, "2018-08-18 12:05:33")
    (notice,) = look(tencent)
    assert (notice.kind, notice.deadline_s) == ("machine", NOW_S + 120)
    assert notice.deadline_utc == datetime(2018, 8, 18, 4, 5, 33, tzinfo=UTC)
    assert look(tencent) == ()
    service.say(TENCENT_TERMINATION, None)
    (gone,) = look(tencent)
    assert (gone.id, gone.cancelled) == (notice.id, True)


@pytest.mark.parametrize("said", ["soon", "2018-08-18T12:05:33Z", "2031-08-18 12:05:33"])
def test_what_is_no_time_is_a_fault_that_says_so(service, tencent, said):
    """Neither a notice nor silence: another format, another year."""
    service.say(TENCENT_TERMINATION, said)
    with pytest.raises(OSError, match=f"holds .*{said}.*2018-08-18 12:05:33"):
        look(tencent)


def test_a_service_that_fails_keeps_what_stands(service, tencent):
    """An answer of 500 takes no notice back."""
    service.say(TENCENT_TERMINATION, "2018-08-18 12:05:33")
    look(tencent)
    service.faults[TENCENT_TERMINATION] = 500
    with pytest.raises(OSError, match="500"):
        look(tencent)
    service.faults.clear()
    assert look(tencent) == ()


def test_a_machine_elsewhere_has_no_such_service():
    """Nobody there is said once; on a CVM instance it is a fault."""
    with metadata_service("tencent") as service:
        url = service.url
    with pytest.raises(NotHere, match="not Tencent Cloud"):
        look(TencentMetadata(HttpTransport(url), is_cvm=False))
    with pytest.raises(OSError, match="refused"):
        look(TencentMetadata(HttpTransport(url), is_cvm=True))
