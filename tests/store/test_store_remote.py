"""What only a network can do to a store: refuse, stall, lose an answer, cut a body, stop half-way."""

from __future__ import annotations

import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from outlast import _errors as errors
from outlast.checkpoint import catalog
from outlast.store import open_store
from outlast.store._client import Patience
from outlast.store.remote import RemoteStore
from servers import ACCESS_KEY, SECRET_KEY, Fault, _request, faulty_proxy, rclone_s3, unused_endpoint

MIB = 1 << 20
FOR_EVER = 10_000
SHORT = Patience(total_s=0.6)
"""For faults that do not end; `LONG` for those that do, so that a noisy machine is not taken for one."""
LONG = Patience(total_s=60)
KEY = "a/1.bin"
SMALL = b"0123456789"
LARGE = random.Random(1).randbytes(9 * MIB)
"""More than one part of an upload and one range of a download."""

CALLS = {
    "create": lambda store: store.create("new/1", b"x"),
    "put": lambda store: store.put("new/1", b"x"),
    "write small": lambda store: store.write("new/1", [memoryview(SMALL)]),
    "write large": lambda store: store.write("new/1", [memoryview(LARGE)]),
    "get": lambda store: store.get(KEY),
    "read_into": lambda store: store.read_into(KEY, 0, memoryview(bytearray(5))),
    "list": lambda store: store.list(),
    "delete": lambda store: store.delete([KEY]),
}


@pytest.fixture
def env(monkeypatch):
    def set_(variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return set_


@pytest.fixture
def proxied(moto, env, prefix):
    """A proxy in front of moto, and the URL of a run that holds one object."""
    with faulty_proxy(moto) as (proxy, server):
        env(server.env)
        url = server.url(prefix)
        RemoteStore(url).put(KEY, SMALL)
        yield proxy, url


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("kind", [503, "hang", "drop"])
def test_a_store_that_stays_away_is_out_of_reach_in_bounded_time(proxied, call, kind):
    """However it fails, each operation gives up within its patience, and names store and key."""
    proxy, url = proxied
    store = RemoteStore(url, patience=SHORT)
    proxy.plan(Fault(kind, FOR_EVER))
    start = time.monotonic()
    with pytest.raises(errors.StoreUnavailable, match=re.escape(url)):
        CALLS[call](store)
    # The rest is for a noisy machine.
    assert time.monotonic() - start < SHORT.total_s + 10


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Fault(403, FOR_EVER, body="<Code>AccessDenied</Code>"), errors.StoreDenied),
        (Fault(401, FOR_EVER), errors.StoreDenied),
        (Fault(400, FOR_EVER, body="<Code>ExpiredToken</Code>"), errors.StoreDenied),
        (Fault(301, FOR_EVER), errors.StoreDenied),
        (Fault(507, FOR_EVER), errors.StoreFull),
        (Fault(403, FOR_EVER, body="<Code>QuotaExceeded</Code>"), errors.StoreFull),
        (Fault(500, FOR_EVER, body="write: no space left on device"), errors.StoreFull),
    ],
    ids=lambda value: f"{value.kind} {value.body}" if isinstance(value, Fault) else value.__name__,
)
def test_a_refusal_is_told_apart(proxied, call, fault, error):
    """What no patience helps against is said as what it is, with store and key, and without our secrets."""
    proxy, url = proxied
    store = RemoteStore(url, patience=SHORT if error is errors.StoreFull else LONG)
    proxy.plan(Fault(fault.kind, fault.times, body=fault.body))
    with pytest.raises(error, match=re.escape(url)) as caught:
        CALLS[call](store)
    assert SECRET_KEY not in str(caught.value)
    assert ACCESS_KEY not in str(caught.value)
    assert "Debug" not in str(caught.value)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("kind", [503, "drop", 429])
def test_a_fault_that_passes_is_ridden_out(proxied, call, kind):
    """Two failed answers in a row, and the operation still does what it should, once."""
    proxy, url = proxied
    store = RemoteStore(url, patience=LONG)
    assert store.honours_create
    proxy.plan(Fault(kind, 2))
    result = CALLS[call](store)
    assert proxy.faults_left == 0
    if call == "create":
        assert result is True
    assert sorted(info.key for info in RemoteStore(url).list()) == {
        "delete": [],
        "get": [KEY],
        "read_into": [KEY],
        "list": [KEY],
    }.get(call, [KEY, "new/1"])


def test_a_create_whose_answer_was_lost_is_ours(proxied):
    """The object that refuses the second try is our own: the claim is True, not lost to ourselves."""
    proxy, url = proxied
    store = RemoteStore(url, patience=LONG)
    assert store.honours_create
    proxy.plan(Fault("lost", 1))
    assert store.create("attempts/00001.json", b"mine") is True
    assert len([request for request in proxy.requests if request.startswith("PUT")]) == 2
    assert RemoteStore(url).get("attempts/00001.json") == b"mine"


def test_a_create_that_was_interrupted_and_then_refused_is_not_ours(proxied):
    """After a dropped connection the refusal may be real: the bytes there are somebody else's, so False."""
    proxy, url = proxied
    RemoteStore(url).put("attempts/00001.json", b"theirs")
    store = RemoteStore(url, patience=LONG)
    assert store.honours_create
    proxy.plan(Fault("drop", 1))
    assert store.create("attempts/00001.json", b"mine") is False
    assert store.get("attempts/00001.json") == b"theirs"


@pytest.mark.parametrize("answer", [501, 200])
def test_a_store_without_create_if_absent_is_found_out(proxied, answer, rclone, env, prefix):
    """Some answer 501, some 200 and overwrite: create is then check, put and read back."""
    proxy, url = proxied
    if answer == 200:
        env(rclone[0].env)
        store = RemoteStore(rclone[0].url(prefix))
    else:
        store = RemoteStore(url, patience=LONG)
        proxy.plan(Fault(501, 1, "PUT .*/probe/", body="<Code>NotImplemented</Code>"))
    assert store.honours_create is False
    assert store.create("attempts/00001.json", b"first") is True
    assert store.create("attempts/00001.json", b"second") is False
    assert store.get("attempts/00001.json") == b"first"
    assert [info.key for info in store.list("attempts")] == ["attempts/00001.json"]


def test_folders_as_consoles_make_them_are_no_objects_of_the_run(moto, env, prefix):
    """An empty object whose key ends in `/` stands for a folder: it is not below itself, and makes no run foreign."""
    env(moto.env)
    for name in ("", "checkpoints/", "attempts/"):
        assert _request(moto.endpoint, "PUT", f"/{moto.bucket}/{prefix}/{name}") == 200
    store = RemoteStore(moto.url(prefix))
    assert list(store.list("checkpoints")) == []
    assert catalog.folders(store) == {}
    assert catalog.read_run(store) is None


def test_the_probe_is_made_once_and_leaves_nothing(proxied):
    """Ten creates cost ten requests and one probe."""
    proxy, url = proxied
    store = RemoteStore(url)
    proxy.plan()
    for number in range(10):
        store.create(f"many/{number}", b"x")
    assert len([request for request in proxy.requests if "/probe/" in request]) == 2
    assert len([request for request in proxy.requests if "/many/" in request]) == 10
    assert list(store.list("probe")) == []


def test_a_large_upload_goes_on_over_a_line_that_loses_parts(proxied):
    """Parts that fail are sent again, alone; the object is whole."""
    proxy, url = proxied
    proxy.plan(
        Fault(503, 1, "partNumber=1"), Fault("drop", 1, "partNumber=2"), Fault("lost", 1, "POST .*uploadId=")
    )
    RemoteStore(url, patience=LONG).write("segments/x.bin", [memoryview(LARGE)])
    assert proxy.faults_left == 0
    assert RemoteStore(url).get("segments/x.bin") == LARGE


def test_an_upload_that_never_gets_through_leaves_no_object(proxied):
    """A segment whose second part is refused for ever is not there at all."""
    proxy, url = proxied
    proxy.plan(Fault(503, FOR_EVER, "partNumber=2"))
    with pytest.raises(errors.StoreUnavailable):
        RemoteStore(url, patience=SHORT).write("segments/x.bin", [memoryview(LARGE)])
    proxy.plan()
    assert [info.key for info in RemoteStore(url).list()] == [KEY]


def test_a_body_that_is_cut_is_read_again(proxied):
    """Half an answer is never taken for an object."""
    proxy, url = proxied
    store = RemoteStore(url, patience=LONG)
    store.write("segments/x.bin", [memoryview(LARGE)])
    proxy.plan(Fault("cut", 2, "GET"))
    assert store.get("segments/x.bin") == LARGE
    assert proxy.faults_left == 0
    proxy.plan(Fault("cut", 2, "GET"))
    target = bytearray(len(LARGE))
    store.read_into("segments/x.bin", 0, memoryview(target))
    assert target == LARGE


def test_a_listing_has_all_pages_or_is_an_error(tmp_path, env):
    """1100 objects come on two pages: both, or an error when the second fails or is cut; never the first alone."""
    folder = tmp_path / "rclone" / "bucket" / "run" / "many"
    folder.mkdir(parents=True)
    names = [f"{number:04}" for number in range(1100)]
    for name in names:
        (folder / name).touch()
    with rclone_s3(tmp_path) as real, faulty_proxy(real) as (proxy, server):
        env(server.env)
        store = RemoteStore("s3://bucket/run", patience=LONG)
        assert [info.key for info in store.list()] == [f"many/{name}" for name in names]
        assert len([request for request in proxy.requests if "continuation-token" in request]) == 1
        proxy.plan(Fault(503, 1, "continuation-token"), Fault("cut", 1, "continuation-token"))
        assert len(store.list()) == 1100
        assert proxy.faults_left == 0
        for kind, error in (
            (503, errors.StoreUnavailable),
            ("cut", errors.StoreUnavailable),
            (403, errors.StoreDenied),
        ):
            proxy.plan(Fault(kind, FOR_EVER, "continuation-token"))
            with pytest.raises(error):
                RemoteStore("s3://bucket/run", patience=Patience(total_s=3)).list()


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("kind", ["rclone", "moto"])
def test_a_bucket_that_is_not_there_is_no_empty_store(request, env, kind, call):
    """A typo in the bucket's name must stop a run, not start it afresh."""
    server = request.getfixturevalue(kind)
    env((server[0] if kind == "rclone" else server).env)
    with pytest.raises(errors.StoreDenied, match=r"bucket does not exist: create it"):
        CALLS[call](RemoteStore("s3://no-such-bucket/run", patience=LONG))


@pytest.mark.parametrize("call", CALLS)
def test_wrong_credentials_are_refused_by_name(rclone, env, prefix, call):
    """A real server that checks the signature says no, and the error does not repeat the secret."""
    env(rclone[0].env | {"AWS_SECRET_ACCESS_KEY": "wrong-wrong-wrong"})
    with pytest.raises(errors.StoreDenied, match="Check the credentials") as caught:
        CALLS[call](RemoteStore(rclone[0].url(prefix), patience=LONG))
    assert "wrong-wrong-wrong" not in str(caught.value)


@pytest.mark.parametrize("call", CALLS)
def test_nobody_listening_is_out_of_reach(rclone, env, call):
    """Opening does not notice; every operation says so in bounded time."""
    env(rclone[0].env | {"AWS_ENDPOINT_URL": unused_endpoint()})
    store = RemoteStore("s3://bucket/run", patience=SHORT)
    with pytest.raises(errors.StoreUnavailable, match=r"s3://bucket/run"):
        CALLS[call](store)


def test_the_patience_comes_from_the_environment(monkeypatch, rclone, env):
    """`OUTLAST_STORE_PATIENCE_S` bounds the whole operation; what is no number of seconds is refused."""
    env(rclone[0].env | {"AWS_ENDPOINT_URL": unused_endpoint(), "OUTLAST_STORE_PATIENCE_S": "0.6"})
    start = time.monotonic()
    with pytest.raises(errors.StoreUnavailable):
        open_store("s3://bucket/run").list()
    assert time.monotonic() - start < 6
    assert Patience().total_s == 60
    for bad in ("soon", "0", "-1", "inf", "nan"):
        monkeypatch.setenv("OUTLAST_STORE_PATIENCE_S", bad)
        with pytest.raises(errors.ConfigError, match="OUTLAST_STORE_PATIENCE_S"):
            open_store("s3://bucket/run")


def test_the_service_endpoint_goes_before_the_general_one(rclone, moto, env, prefix):
    """`AWS_ENDPOINT_URL_S3` wins over `AWS_ENDPOINT_URL`, as in every AWS SDK."""
    env(rclone[0].env | {"AWS_ENDPOINT_URL": unused_endpoint(), "AWS_ENDPOINT_URL_S3": rclone[0].endpoint})
    store = RemoteStore(rclone[0].url(prefix))
    store.put("run.json", b"x")
    assert (rclone[1] / prefix / "run.json").read_bytes() == b"x"


def test_an_upload_needs_no_copy_of_the_object(rclone, env, prefix):
    """128 MiB are written with much less memory than that, read off the kernel's own count."""
    script = (
        "import mmap, resource, sys\n"
        "from outlast.store import open_store\n"
        "size = 128 << 20\n"
        "arena = memoryview(mmap.mmap(-1, size))\n"
        "for at in range(0, size, 4096): arena[at] = at >> 12 & 255\n"
        "store = open_store(sys.argv[1])\n"
        "store.write('warm/up.bin', [arena[: 9 << 20]])\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "store.write('segments/x.bin', [arena[at : at + (16 << 20)] for at in range(0, size, 16 << 20)])\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, rclone[0].url(prefix)],
        env=os.environ | rclone[0].env, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert int(done.stdout) < 48 << 10, "KiB: much of the object was copied"
    assert (rclone[1] / prefix / "segments/x.bin").stat().st_size == 128 * MIB


@pytest.mark.parametrize(
    "url", ["s3://key:hunter2@bucket/run", "s3://key:hunter2@bucket", "s3://hunter2@bucket/run"]
)
def test_credentials_in_a_url_are_refused_and_not_repeated(url):
    """They would end up in logs and records."""
    with pytest.raises(errors.ConfigError, match="do not belong") as caught:
        open_store(url)
    assert "hunter2" not in str(caught.value)


def test_a_server_ends_when_its_tests_are_killed(tmp_path):
    """SIGKILL of the process that started it leaves no server behind."""
    script = (
        "import sys, time\nfrom pathlib import Path\nfrom servers import rclone_s3\n"
        "with rclone_s3(Path(sys.argv[1])) as server:\n    print(server.endpoint, flush=True)\n    time.sleep(600)\n"
    )
    tests = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with tests:
        address = urlsplit(tests.stdout.readline().strip())
        tests.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            socket.create_connection((address.hostname, address.port), timeout=1).close()
        except OSError:
            return
        time.sleep(0.02)
    pytest.fail("the server still listens")
