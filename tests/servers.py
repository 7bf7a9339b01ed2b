"""Real S3 servers on loopback, and a proxy that makes one fail on purpose. `clouds.py` has the other clouds.

Each is a context manager; `tests/store/conftest.py` has fixtures made of them. A server is a process of its own that
the kernel ends with the tests, however those end, and picks its own free port.
"""

from __future__ import annotations

import contextlib
import http.client
import http.server
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

ACCESS_KEY = "outlast-tests"
SECRET_KEY = "not-a-secret-0123456789"
BUCKET = "bucket"
START_S = 60.0
"""Longest wait for a server to listen: moto imports for several seconds on a busy machine."""

Server = TypeVar("Server")

_DIE_WITH_PARENT = "import ctypes, os, signal, sys; ctypes.CDLL(None).prctl(1, signal.SIGKILL); os.execv(sys.argv[1], sys.argv[1:])"


@dataclass(frozen=True)
class S3Server:
    """One running server: where it listens, and whether it honours `If-None-Match: *`."""

    endpoint: str
    honours_create: bool
    bucket: str = BUCKET

    @property
    def env(self) -> dict[str, str]:
        """The environment variables with which Outlast reaches it."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_REGION": "us-east-1",
        }

    def url(self, prefix: str) -> str:
        """The URL of a run in its bucket."""
        return f"s3://{self.bucket}/{prefix}"


@contextlib.contextmanager
def rclone_s3(folder: Path) -> Iterator[S3Server]:
    """`rclone serve s3`: checks signatures, ignores create-if-absent.

    Objects are the files below `folder/rclone/bucket`, to be read there. It caches its folders: what is changed there
    behind its back may not be seen. (`--dir-cache-time 0s` would see it, but spins for seconds in every request.)
    """
    root = folder / "rclone"
    (root / BUCKET).mkdir(parents=True, exist_ok=True)
    command = [
        _program("rclone"), "serve", "s3", str(root), "--config", str(folder / "no-rclone.conf"),
        "--addr", "127.0.0.1:0", "--auth-key", f"{ACCESS_KEY},{SECRET_KEY}", "-v",
    ]  # fmt: skip
    with _serving(command, folder / "rclone.log") as endpoint:
        yield S3Server(endpoint, honours_create=False)


@contextlib.contextmanager
def moto_s3(folder: Path) -> Iterator[S3Server]:
    """`moto_server`: honours create-if-absent, checks no signature, keeps objects in memory."""
    command = [sys.executable, _program("moto_server"), "-H", "127.0.0.1", "-p", "0"]
    with _serving(command, folder / "moto.log") as endpoint:
        _request(endpoint, "PUT", f"/{BUCKET}")
        yield S3Server(endpoint, honours_create=True)


@dataclass
class Fault:
    """What happens to the next `times` requests whose `METHOD /path?query` matches `pattern`, after `skip` of them.

    kind: an HTTP status to answer; "hang" (no answer), "deaf" (the body is not even read), "stall" (half of the answer's
    body, then nothing), "drop" (connection closed), "lost" (done by the server, but the answer never arrives), or "cut"
    (half of the body, then closed).
    """

    kind: int | str
    times: int
    pattern: str = ""
    skip: int = 0
    body: str = ""


@dataclass
class FaultyProxy:
    """Passes requests through to a server, but for those that `faults` are planned for.

    Attributes:
        endpoint: where it listens.
        requests: `METHOD /path?query` of every request so far, answered or not.
        headers: the headers of each of them.
    """

    endpoint: str
    requests: list[str] = field(default_factory=list)
    headers: list[Mapping[str, str]] = field(default_factory=list)
    _faults: list[Fault] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def plan(self, *faults: Fault) -> None:
        """Replace the plan, and forget the requests so far."""
        with self._lock:
            self._faults = list(faults)
            self.requests.clear()
            self.headers.clear()

    @property
    def faults_left(self) -> int:
        """How many of the planned faults have not happened."""
        with self._lock:
            return sum(fault.times for fault in self._faults)

    def take(self, request: str, headers: Mapping[str, str]) -> Fault | None:
        """Note a request; return the fault that is planned for it."""
        with self._lock:
            self.requests.append(request)
            self.headers.append(headers)
            for fault in self._faults:
                if fault.times and re.search(fault.pattern, request):
                    if fault.skip:
                        fault.skip -= 1
                        return None
                    fault.times -= 1
                    return fault
        return None


@contextlib.contextmanager
def faulty_proxy(
    server: Server, renamed: Mapping[str, tuple[str, str]] | None = None
) -> Iterator[tuple[FaultyProxy, Server]]:
    """Listen in front of `server`; yields the proxy, and the server as seen through it.

    `renamed`: request headers (in lower case) that go on as another name and value.
    """
    closing = threading.Event()
    listener = _Listener(("127.0.0.1", 0), _Handler)
    proxy = FaultyProxy(f"http://127.0.0.1:{listener.server_address[1]}")
    listener.proxy, listener.upstream, listener.closing = proxy, urlsplit(server.endpoint).netloc, closing
    listener.renamed = renamed or {}
    thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield proxy, replace(server, endpoint=proxy.endpoint)
    finally:
        closing.set()
        listener.shutdown()
        listener.server_close()
        thread.join()


def unused_endpoint() -> str:
    """An address at which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return f"http://127.0.0.1:{taken.getsockname()[1]}"


@contextlib.contextmanager
def _serving(command: list[str], log: Path, env: Mapping[str, str] | None = None) -> Iterator[str]:
    """Start a server, wait until it says where it listens and answers there, and end it at last."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _DIE_WITH_PARENT, *command],
            stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=env,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + START_S
        while not (found := re.search(r"http://127\.0\.0\.1:[1-9]\d*", log.read_text(errors="replace"))):
            if process.poll() is not None or time.monotonic() > deadline:
                msg = f"{command[0]} does not listen: {log.read_text(errors='replace')}"
                raise RuntimeError(msg)
            time.sleep(0.02)
        endpoint = found.group()
        while not _answers(endpoint):
            if time.monotonic() > deadline:
                msg = f"{endpoint} does not answer"
                raise RuntimeError(msg)
            time.sleep(0.02)
        yield endpoint
    finally:
        process.kill()
        process.wait()


def _program(name: str) -> str:
    beside_python = Path(sys.executable).with_name(name)
    found = str(beside_python) if beside_python.exists() else shutil.which(name)
    if found is None:
        msg = f"{name} is not installed: run `make test`, which installs what the tests need"
        raise RuntimeError(msg)
    return found


def _answers(endpoint: str) -> bool:
    try:
        _request(endpoint, "GET", "/")
    except OSError:
        return False
    return True


def _request(endpoint: str, method: str, path: str) -> int:
    connection = http.client.HTTPConnection(urlsplit(endpoint).netloc, timeout=10)
    try:
        connection.request(method, path)
        response = connection.getresponse()
        response.read()
        return response.status
    finally:
        connection.close()


class _Listener(http.server.ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128
    proxy: FaultyProxy
    upstream: str
    closing: threading.Event
    renamed: Mapping[str, tuple[str, str]]

    def handle_error(self, request, client_address):
        """A client that gave up is what these tests are about."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Listener

    def log_message(self, format, *args):
        pass

    def _pass(self):
        fault = self.server.proxy.take(f"{self.command} {self.path}", self.headers)
        if fault is not None and fault.kind == "deaf":
            self.close_connection = True
            self.server.closing.wait()
            return
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if fault is None:
            self._answer(*self._upstream(body))
        elif isinstance(fault.kind, int):
            self._answer(fault.kind, {}, fault.body.encode())
        else:
            self.close_connection = True
            if fault.kind == "hang":
                self.server.closing.wait()
            if fault.kind == "lost":
                self._upstream(body)
            if fault.kind in ("cut", "stall"):
                status, headers, data = self._upstream(body)
                self._answer(status, headers, data, cut=True)
            if fault.kind == "stall":
                self.server.closing.wait()

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _pass

    def _upstream(self, body):
        connection = http.client.HTTPConnection(self.server.upstream, timeout=60)
        try:
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() != "connection":
                    connection.putheader(*self.server.renamed.get(name.lower(), (name, value)))
            connection.endheaders(body)
            response = connection.getresponse()
            return response.status, dict(response.getheaders()), response.read()
        finally:
            connection.close()

    def _answer(self, status, headers, body, *, cut=False):
        self.send_response_only(status)
        length = headers.get("Content-Length") if self.command == "HEAD" else None
        for name, value in headers.items():
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                self.send_header(name, value)
        self.send_header("Content-Length", length or str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if cut else body)
