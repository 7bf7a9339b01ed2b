"""A request that stands still: cut off by the time in which nothing moved, sent again, and never waited for."""

from __future__ import annotations

import contextlib
import dataclasses
import random
import re
import time
from urllib.parse import urlsplit

import pytest

from outlast import _errors as errors
from outlast.drill.throttle import throttled
from outlast.store import remote
from outlast.store._client import Patience
from outlast.store.base import Unwanted
from outlast.store.remote import RemoteStore
from servers import Fault, faulty_proxy

MIB = 1 << 20
PIECE = 8 * MIB
"""One part of a fast upload and one range of a download."""
LARGE = random.Random(2).randbytes(PIECE + 3 * MIB)
FOR_EVER = 10_000
PATIENCE = Patience(total_s=8)
"""A request may stand still for 0.7 s at first and for 2 s then."""
SHORT = Patience(total_s=0.6)
NOISE_S = 10
"""For a noisy machine, on top of a bound."""
KEY = "segments/x.bin"


@pytest.fixture
def proxied(moto, prefix, monkeypatch):
    """A proxy in front of moto, and the URL of a run."""
    with faulty_proxy(moto) as (proxy, server):
        for name, value in server.env.items():
            monkeypatch.setenv(name, value)
        RemoteStore(server.url(prefix)).put("run.json", b"{}")
        yield proxy, server.url(prefix)


@contextlib.contextmanager
def slowed(moto, monkeypatch, bytes_per_s):
    """A slow line to moto, and moto as it is reached over it."""
    address = urlsplit(moto.endpoint)
    with throttled((address.hostname, address.port), bytes_per_s) as line:
        server = dataclasses.replace(moto, endpoint=f"http://127.0.0.1:{line.port}")
        for name, value in server.env.items():
            monkeypatch.setenv(name, value)
        yield line, server


def read(store: RemoteStore) -> bytes:
    target = bytearray(len(LARGE))
    store.read_into(KEY, 0, memoryview(target))
    return bytes(target)


def asked_bytes(proxy) -> int:
    """How many bytes all the ranges asked for so far had together."""
    ranges = [re.fullmatch(r"bytes=(\d+)-(\d+)", headers["Range"]) for headers in proxy.headers]
    return sum(int(found[2]) + 1 - int(found[1]) for found in ranges)


def test_the_patience_of_a_request_is_a_part_of_the_whole():
    """5 s and then 15 s of the default minute, and all times scale with the variable."""
    assert (Patience().quick_s, Patience().request_s, Patience().repeat_s) == (5, 15, 10)
    assert Patience(total_s=6).quick_s == 0.5


@pytest.mark.parametrize("kind", ["hang", "deaf", "lost", 503])
@pytest.mark.parametrize("what", ["POST .*uploads", "PUT .*partNumber=1", "POST .*uploadId="])
def test_an_upload_outlasts_one_bad_request(proxied, kind, what):
    """Whichever request of an upload fails, and however, the object is whole long before the patience ends."""
    proxy, url = proxied
    store = RemoteStore(url, patience=PATIENCE)
    proxy.plan(Fault(kind, 1, what))
    start = time.monotonic()
    store.write(KEY, [memoryview(LARGE)])
    assert time.monotonic() - start < PATIENCE.total_s - 1
    assert proxy.faults_left == 0
    assert read(store) == LARGE


@pytest.mark.parametrize("kind", [503, "drop", "hang"])
def test_an_upload_outlasts_a_storm(proxied, kind):
    """Twelve requests that fail in a row, or three that hang: the upload is begun again and succeeds."""
    proxy, url = proxied
    store = RemoteStore(url, patience=PATIENCE)
    proxy.plan(Fault(kind, 3 if kind == "hang" else 12))
    store.write(KEY, [memoryview(LARGE)])
    assert proxy.faults_left == 0
    assert read(store) == LARGE


@pytest.mark.parametrize("kind", ["hang", "deaf", 503])
def test_an_upload_that_stays_stuck_is_given_up_in_time(proxied, kind):
    """Parts that never get through end in `StoreUnavailable` within the patience, and leave no object."""
    proxy, url = proxied
    proxy.plan(Fault(kind, FOR_EVER, "partNumber="))
    start = time.monotonic()
    with pytest.raises(errors.StoreUnavailable, match=re.escape(url)):
        RemoteStore(url, patience=SHORT).write(KEY, [memoryview(LARGE)])
    assert time.monotonic() - start < SHORT.total_s + NOISE_S
    proxy.plan()
    assert [info.key for info in RemoteStore(url).list()] == ["run.json"]


@pytest.mark.parametrize("data", [LARGE, LARGE[: 7 * MIB]], ids=["in parts", "whole"])
def test_a_line_that_is_too_slow_for_a_first_try_carries_the_next_upload_once(
    moto, prefix, monkeypatch, data
):
    """An answer comes when a body has arrived: what a line cannot carry in that time is sent in vain once, and then loaded less."""
    with slowed(moto, monkeypatch, 3e6) as (line, server):
        store = RemoteStore(server.url(prefix), patience=Patience(total_s=24))
        store.write(KEY, [memoryview(data)])
        before = line.passed_bytes
        store.write("segments/y.bin", [memoryview(data)])
        assert line.passed_bytes - before < 1.1 * len(data)
        assert store.get("segments/y.bin") == store.get(KEY) == data


def test_no_more_parts_are_on_their_way_than_the_line_carries_before_a_first_try_is_cut_off(
    moto, prefix, monkeypatch
):
    """Else each would be sent twice where several segments are written at a time: a save of 1 GB sent 1.4 at 75 MB/s."""
    with slowed(moto, monkeypatch, 9e6) as (line, server):
        store = RemoteStore(server.url(prefix), patience=Patience(total_s=80))
        assert store._parts_at_once(4) == 4  # nothing is known of it
        store.write(KEY, [memoryview(LARGE)])
        assert (
            store._parts_at_once(4) == 2
        )  # 9 MB/s for a quarter of 6.7 s are less than one of 8 MiB of each of four uploads
    for name, value in moto.env.items():
        monkeypatch.setenv(name, value)
    fast = RemoteStore(moto.url(prefix), patience=Patience(total_s=240))
    fast.write("segments/z.bin", [memoryview(LARGE)])
    assert fast._parts_at_once(1) > 4


def test_a_line_is_not_believed_to_carry_what_had_arrived_before():
    """The last segment of a save is short, and three others end with it: of them counts what came meanwhile."""
    others = [remote._Arrived(0.0, 10.0, 64 * MIB)] * 3
    last = remote._Arrived(9.5, 10.0, 4 * MIB)
    assert remote._rate_since(9.5, [*others, last]) == pytest.approx((3 * 3.2 + 4) * MIB / 0.5)


@pytest.mark.parametrize("data", [LARGE, LARGE[: 7 * MIB]], ids=["in parts", "whole"])
def test_a_write_that_is_not_wanted_any_more_leaves_the_line_to_others_at_once(
    moto, prefix, monkeypatch, data
):
    """It ends in the midst of a request; nothing appears, nobody reads its memory any more, and the next one is carried alone."""
    with slowed(moto, monkeypatch, 2e6) as (line, server):
        store = RemoteStore(server.url(prefix), patience=Patience(total_s=240))
        memory = bytearray(data)
        with pytest.raises(Unwanted):
            store.write(KEY, [memoryview(memory)], is_wanted=lambda: line.passed_bytes < MIB)
        memory.extend(b"nobody holds it")
        store.write("segments/y.bin", [memoryview(data[:MIB])])
        assert line.passed_bytes < 6 * MIB
        assert [info.key for info in store.list("segments")] == ["segments/y.bin"]


def test_a_write_that_stays_wanted_fails_as_any_other_does(proxied):
    """What a store says while somebody asks whether it is wanted is what is raised."""
    proxy, url = proxied
    proxy.plan(Fault(403, FOR_EVER, "POST .*uploads", body="<Code>AccessDenied</Code>"))
    with pytest.raises(errors.StoreDenied):
        RemoteStore(url).write(KEY, [memoryview(LARGE)], is_wanted=lambda: True)
    proxy.plan()
    RemoteStore(url).write(KEY, [memoryview(LARGE)], is_wanted=lambda: True)
    assert read(RemoteStore(url)) == LARGE


def test_a_line_that_is_no_longer_slow_is_loaded_in_full_again(proxied):
    """One upload in small parts after a first try in vain; it was fast, so the next is in large ones."""
    proxy, url = proxied
    store = RemoteStore(url, patience=Patience())
    proxy.plan(
        Fault("drop", 1, "POST .*uploads"), Fault(400, 1, "partNumber=", body="<Code>RequestTimeout</Code>")
    )
    store.write(KEY, [memoryview(LARGE)])
    assert proxy.faults_left == 0
    proxy.plan()
    store.write("segments/y.bin", [memoryview(LARGE)])
    assert len([request for request in proxy.requests if "partNumber=" in request]) == 2
    assert RemoteStore(url).get("segments/y.bin") == LARGE


@pytest.mark.parametrize("kind", ["stall", "cut"])
def test_a_download_goes_on_where_it_stood_still(proxied, kind):
    """Half of an answer and then nothing: only the rest is asked for again."""
    proxy, url = proxied
    store = RemoteStore(url, patience=PATIENCE)
    store.write(KEY, [memoryview(LARGE)])
    proxy.plan(Fault(kind, 1, "GET .*x.bin"))
    assert read(store) == LARGE
    assert proxy.faults_left == 0
    assert asked_bytes(proxy) < len(LARGE) + PIECE // 2 + 3 * MIB, "what had come was asked for again"


def test_a_download_that_moves_outlasts_the_patience(proxied, monkeypatch):
    """Five answers stand still after half, which takes longer than one patience: it ends all the same, since it moves on."""
    monkeypatch.setattr(remote, "_BLOCK_BYTES", 4096)
    proxy, url = proxied
    patience = Patience(total_s=2.4)
    store = RemoteStore(url, patience=patience)
    RemoteStore(url).write(KEY, [memoryview(LARGE)])
    proxy.plan(Fault("stall", 5, "GET .*x.bin"))
    assert 5 * patience.request_s > patience.total_s
    assert read(store) == LARGE
    assert asked_bytes(proxy) < 2 * len(LARGE) + 3 * MIB, "what had come was asked for again"


@pytest.mark.parametrize("kind", ["stall", "hang", 503])
def test_a_download_that_stays_stuck_is_given_up_in_time(proxied, kind):
    """A store that never sends the rest is out of reach, within the patience."""
    proxy, url = proxied
    RemoteStore(url).write(KEY, [memoryview(LARGE)])
    store = RemoteStore(url, patience=SHORT)
    proxy.plan(Fault(kind, 1 if kind == "stall" else 0, "GET .*x.bin"), Fault("hang", FOR_EVER, "GET"))
    start = time.monotonic()
    with pytest.raises(errors.StoreUnavailable, match=re.escape(url)):
        read(store)
    assert time.monotonic() - start < 3 * SHORT.total_s + NOISE_S


def test_where_no_ranges_are_served_a_long_read_is_one_pass(rclone, prefix, monkeypatch):
    """rclone answers a range with 200: once that is known, 11 MiB are one request and not one for each piece."""
    with faulty_proxy(rclone[0]) as (proxy, server):
        for name, value in server.env.items():
            monkeypatch.setenv(name, value)
        store = RemoteStore(server.url(prefix), patience=PATIENCE)
        store.write(KEY, [memoryview(LARGE)])
        proxy.plan()
        assert read(store) == LARGE
        assert len(proxy.requests) == 2, "the range that was refused, and the pass"
        proxy.plan()
        assert read(store) == LARGE
        assert len(proxy.requests) == 1


@pytest.mark.parametrize(
    ("host", "wish", "signed"),
    [("127.0.0.1", "", False), ("127.0.0.1", "false", True), ("store.example", "", True)],
)
def test_a_body_is_signed_only_where_somebody_could_change_it(proxied, monkeypatch, host, wish, signed):
    """Plain http to another machine is signed with the body's digest, within this machine only where somebody says so."""
    proxy, url = proxied
    if wish:
        monkeypatch.setenv("AWS_UNSIGNED_PAYLOAD", wish)
    if host != "127.0.0.1":
        monkeypatch.setenv("HTTP_PROXY", proxy.endpoint)
        monkeypatch.setenv("NO_PROXY", "")
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}")
    proxy.plan(Fault(403, 1))
    with pytest.raises(errors.StoreDenied):
        RemoteStore(url, patience=PATIENCE).write("segments/small.bin", [memoryview(b"bytes")])
    (headers,) = proxy.headers
    assert (headers["x-amz-content-sha256"] != "UNSIGNED-PAYLOAD") is signed
