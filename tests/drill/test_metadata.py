"""What the drill's metadata services announce is what Outlast hears of them, whatever fault is armed."""

from __future__ import annotations

import contextlib
import socket
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from outlast.drill import metadata as drill
from outlast.drill.metadata import (
    FAULTS,
    MOVED_S,
    NOTICE,
    announce,
    arm,
    cancel,
    environment,
    metadata_service,
)
from outlast.notice import threaded
from outlast.notice.alibaba import AlibabaMetadata
from outlast.notice.aws import AwsMetadata
from outlast.notice.azure import AzureMetadata
from outlast.notice.detect import metadata_sources
from outlast.notice.tencent import TencentMetadata
from outlast.notice.watch import Watch

NEW, MOVED, CANCELLED = "new", "moved", "cancelled"


class Ear:
    """One cloud's service, and a watch that listens to it."""

    def __init__(self, cloud, stack):
        self.cloud = cloud
        self.service = stack.enter_context(metadata_service(cloud))
        self.watch = Watch(metadata_sources(environment(self.service, cloud)))
        stack.callback(self.watch.close)
        self.heard = []
        self._settled_at = None

    def hear(self):
        changes = self.watch.poll()
        for what in (NEW, MOVED, CANCELLED):
            self.heard += [(what, notice) for notice in getattr(changes, what)]

    def is_settled(self):
        """All that is to be answered was answered, and then was asked for again."""
        path = NOTICE[self.cloud]
        if self.service.passing.get(path) or self.service.then.get(path):
            return False
        queries = [query for _, asked, query in list(self.service.asked) if asked == path]
        if self.cloud == "gcp":  # it waits for what comes after the newest
            return queries[-1].get("last_etag") == self.service.etag(path)
        self._settled_at = self._settled_at or len(queries)
        return len(queries) >= self._settled_at + 2


@pytest.fixture
def stack(monkeypatch):
    """Twenty times quicker than life: the pauses between two questions are nothing but waiting."""
    for metadata in (AwsMetadata, AzureMetadata, AlibabaMetadata, TencentMetadata):
        monkeypatch.setattr(metadata, "pause_s", 0.05)
    monkeypatch.setattr(threaded, "MAX_PAUSE_S", 0.2)
    monkeypatch.setattr(drill, "SLOW_S", 0.1)
    with contextlib.ExitStack() as stack:
        yield stack


def hear_all(ears, until):
    end_s = time.monotonic() + 30
    while not all(until(ear) for ear in ears):
        assert time.monotonic() < end_s, {ear.cloud: ear.heard for ear in ears if not until(ear)}
        time.sleep(0.01)
        for ear in ears:
            ear.hear()


def is_asked(ear):
    """The first answer was heard: what comes now is a change."""
    return ear.service.times_asked(NOTICE[ear.cloud]) >= 2


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_leads_to_the_true_notice_and_to_it_once(stack, fault):
    """All clouds that have it, side by side: one notice; taken back or moved where that is what happened."""
    ears = [Ear(cloud, stack) for cloud in FAULTS[fault]]
    hear_all(ears, is_asked)
    deadline = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=90)
    for ear in ears:
        arm(ear.service, ear.cloud, fault)
        announce(ear.service, ear.cloud, deadline)
    expected = [NEW, *{"cancelled": [CANCELLED], "moved-earlier": [MOVED]}.get(fault, [])]
    hear_all(ears, lambda ear: len(ear.heard) >= len(expected) and ear.is_settled())
    for ear in ears:
        assert [what for what, _ in ear.heard] == expected, ear.cloud
        notices = [notice for _, notice in ear.heard]
        assert {notice.kind for notice in notices} == {"machine"}
        if ear.cloud != "gcp":
            assert notices[-1].deadline_utc == deadline, ear.cloud
        if fault == "moved-earlier":
            assert notices[0].deadline_utc == deadline + timedelta(seconds=MOVED_S)


def test_what_is_cancelled_by_hand_is_heard_as_cancelled(stack):
    """The director's own order, at a moment of its choice."""
    ears = [Ear(cloud, stack) for cloud in NOTICE]
    for ear in ears:
        announce(ear.service, ear.cloud, datetime.now(UTC) + timedelta(seconds=90))
    hear_all(ears, lambda ear: ear.heard)
    for ear in ears:
        cancel(ear.service, ear.cloud)
    hear_all(ears, lambda ear: len(ear.heard) == 2)
    assert all([what for what, _ in ear.heard] == [NEW, CANCELLED] for ear in ears)


def test_a_fault_that_a_cloud_cannot_have_is_refused():
    """Google names no deadline that could move."""
    with (
        metadata_service("gcp") as service,
        pytest.raises(ValueError, match="moved-earlier is no fault of gcp"),
    ):
        arm(service, "gcp", "moved-earlier")


def test_it_listens_on_this_machine_alone():
    """Nobody else on the network is told that this machine goes, or may say so."""
    with metadata_service() as service:
        port = int(service.url.rpartition(":")[2])
        listening = [
            bytes.fromhex(local.split(":")[0])[::-1]
            for local in (line.split()[1] for line in Path("/proc/net/tcp").read_text().splitlines()[1:])
            if int(local.split(":")[1], 16) == port
        ]
        assert socket.inet_aton("127.0.0.1") in listening
        assert socket.inet_aton("0.0.0.0") not in listening
