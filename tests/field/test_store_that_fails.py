"""A store that fails while training (DESIGN.md rule 11): a real agent, a real server, and a proxy that fails on purpose."""

from __future__ import annotations

import pytest
from torchless import commits, events, read_tensors

from launch import eventually
from outlast._types import Reason
from outlast.agent.control import Word
from servers import Fault

OLD, NEW, NEWEST = (bytes([value]) * 100_000 for value in (1, 2, 3))

EXPIRED = "<Error><Code>ExpiredToken</Code><Message>The provided token has expired.</Message></Error>"
FULL = "<Error><Code>QuotaExceeded</Code><Message>Bucket is full.</Message></Error>"
FAULTS = {
    "503 for a long time": Fault(503, 10**9, r"(PUT|POST) "),
    "credentials that expire": Fault(403, 10**9, "", body=EXPIRED),
    "a bucket that is full": Fault(403, 10**9, r"(PUT|POST) ", body=FULL),
    "requests that hang": Fault("hang", 10**9, r"(PUT|POST) .*/segments/"),
    "a server that is not there": Fault("drop", 10**9),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_it_is_ridden_out(trainer, bucket, monkeypatch, capfd, fault):
    """Training goes on and hands over newer states; since when nothing is durable is shown and said; the newest state
    becomes durable once the store is back."""
    proxy, server, folder = bucket
    for name, value in {**server.env, "OUTLAST_STORE_PATIENCE_S": "1"}.items():
        monkeypatch.setenv(name, value)
    proxy.plan()
    where = fault.replace(" ", "-")
    one = trainer(server.url(where))
    one.save_and_wait(1, OLD)
    page = one.link.page
    assert page is not None
    assert page[Word.STORE_LOST_NS] == 0
    proxy.plan(FAULTS[fault])
    number = one.save(2, NEW, index=0)
    page[Word.STEPS] = 7
    eventually("the trainer sees that the store fails", lambda: page[Word.STORE_LOST_NS] > 0)
    newest = one.save(3, NEWEST, reason=Reason.FINAL, index=1)
    passed = one.link.wait_saved(number, lambda: None, "the older one makes way")
    assert passed is not None
    assert passed.checkpoint is None
    assert [step for _, step, _ in commits(folder / where)] == [1]
    said = capfd.readouterr().err
    assert "step 2 is not durable" in said
    assert "the newest checkpoint is of step 1, 6 steps and 0 min of work are at risk" in said
    proxy.plan()
    saved = one.link.wait_saved(newest, lambda: None, "the store is back")
    assert saved is not None
    assert saved.checkpoint is not None
    assert page[Word.STORE_LOST_NS] == 0
    one.close()
    found = commits(folder / where)
    assert [step for _, step, _ in found] == [1, 3]
    assert read_tensors(found[-1][2]) == {"x": NEWEST}
    assert "the store is back" in capfd.readouterr().err
    kinds = [record["kind"] for record in events(folder / where)]
    assert [kind for kind in kinds if kind.startswith("store-")] == ["store-lost", "store-back"]
