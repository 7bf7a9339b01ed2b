"""Google Cloud's metadata server over real HTTP: requests that are answered on a change."""

from __future__ import annotations

import time
from datetime import UTC, datetime

import pytest

from outlast.drill.metadata import GCP_MAINTENANCE, GCP_PREEMPTED, environment, metadata_service
from outlast.notice.detect import metadata_sources
from outlast.notice.gcp import MAINTENANCE, PREEMPTED, GcpMetadata
from outlast.notice.threaded import NotHere, ThreadedSource
from outlast.notice.transport import HttpTransport
from outlast.notice.watch import Watch

NOW_S = 1000.0
NOW_UTC = datetime(2026, 1, 31, 12, 0, 0, tzinfo=UTC)


@pytest.fixture
def service():
    with metadata_service() as service:
        service.say(GCP_PREEMPTED, "FALSE")
        service.say(GCP_MAINTENANCE, "NONE")
        yield service


def gcp(service, value=PREEMPTED, *, is_gce=True):
    return GcpMetadata(HttpTransport(service.url), value, is_gce=is_gce)


def test_a_preemption_is_answered_while_the_request_waits(service):
    """The first question is answered at once; the second hangs until the value turns, and leaves 30 s."""
    source = ThreadedSource(gcp(service))
    watch = Watch([source])
    try:
        until_s = time.monotonic() + 10
        while not any("wait_for_change" in query for _, _, query in list(service.asked)):
            assert time.monotonic() < until_s
            time.sleep(0.005)
        assert not watch.poll()
        service.say(GCP_PREEMPTED, "TRUE")
        while not (new := watch.poll().new):
            assert time.monotonic() < until_s
            time.sleep(0.005)
        assert new[0].kind == "machine"
        assert 25 < new[0].deadline_s - time.monotonic() <= 30
        hanging = [query for _, _, query in service.asked if query]
        assert hanging[0]["last_etag"] == b"FALSE".hex()
    finally:
        watch.close()


@pytest.mark.parametrize(
    ("said", "kind"),
    [("MIGRATE_ON_HOST_MAINTENANCE", "hint"), ("TERMINATE_ON_HOST_MAINTENANCE", "machine")],
)
def test_maintenance_moves_or_ends_this_machine(service, said, kind):
    """A live migration is a hint; a termination is not. When the value goes back, it is taken back."""
    metadata = gcp(service, MAINTENANCE)
    assert metadata.look(NOW_S, NOW_UTC).notices == ()
    service.say(GCP_MAINTENANCE, said)
    (notice,) = metadata.look(NOW_S, NOW_UTC).notices
    assert (notice.kind, notice.deadline_s, notice.cancelled) == (kind, None, False)
    service.say(GCP_MAINTENANCE, "NONE")
    (gone,) = metadata.look(NOW_S, NOW_UTC).notices
    assert (gone.id, gone.cancelled) == (notice.id, True)
    metadata.close()


def test_what_is_not_googles_server_is_not_believed(service):
    """An answer without its header says nothing, whatever its body."""
    service.google_flavor = False
    service.say(GCP_PREEMPTED, "TRUE")
    metadata = gcp(service)
    with pytest.raises(OSError, match="not Google's metadata server"):
        metadata.look(NOW_S, NOW_UTC)
    metadata.close()
    elsewhere = gcp(service, is_gce=False)
    with pytest.raises(NotHere, match="not Google's metadata server"):
        elsewhere.look(NOW_S, NOW_UTC)
    elsewhere.close()
    with pytest.raises(NotHere, match="not Google Cloud"):
        GcpMetadata(HttpTransport("http://127.0.0.1:1"), PREEMPTED, is_gce=False).look(NOW_S, NOW_UTC)


def test_a_fault_or_an_unknown_value_is_followed_by_a_plain_question(service):
    """After a 503 or a value that is not documented nothing hangs on what was not understood."""
    metadata = gcp(service)
    metadata.look(NOW_S, NOW_UTC)
    service.faults[GCP_PREEMPTED] = 503
    with pytest.raises(OSError, match="503"):
        metadata.look(NOW_S, NOW_UTC)
    del service.faults[GCP_PREEMPTED]
    service.say(GCP_PREEMPTED, "PERHAPS")
    with pytest.raises(OSError, match="expected TRUE or FALSE"):
        metadata.look(NOW_S, NOW_UTC)
    service.say(GCP_PREEMPTED, "TRUE")
    assert len(metadata.look(NOW_S, NOW_UTC).notices) == 1
    assert [bool(query) for _, _, query in service.asked] == [False, True, False, False]
    metadata.close()


def test_the_grace_that_is_given_is_from_the_change_to_the_end(service, tmp_path):
    """Google's opt-in notice of 120 s: nothing on the machine tells of it but who runs it."""
    service.say(GCP_PREEMPTED, "TRUE")
    watch = Watch(metadata_sources({**environment(service, "gcp"), "OUTLAST_GRACE_S": "120"}, tmp_path))
    try:
        until_s = time.monotonic() + 10
        while not (new := watch.poll().new):
            assert time.monotonic() < until_s
            time.sleep(0.005)
        assert 115 < new[0].deadline_s - time.monotonic() <= 120
    finally:
        watch.close()
