"""How a metadata service is asked: plain HTTP to one fixed place, with every answer bounded in time and size."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from http.client import HTTPConnection

MAX_BODY_BYTES = 64 * 1024
"""Far more than any of the vendors' answers: a longer one is no metadata service's."""
TIMEOUT_S = 2.0
"""A metadata service is one hop away and answers in milliseconds; a notice lasts tens of seconds."""


@dataclass(frozen=True)
class Response:
    """An answer; names of headers in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Transport(Protocol):
    """What a source asks through. Used from one thread; `close` may come from any."""

    def request(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        body: bytes | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> Response:
        """Ask once, and give back whatever status came.

        Raises:
            TimeoutError: nobody answered in time.
            OSError: the service cannot be reached, or what answers does not speak HTTP.
        """

    def close(self) -> None:
        """Give back the connection: a request that waits ends with an error, and so does every later one."""


class HttpTransport:
    """HTTP over one kept connection; never through a proxy, and no redirect is followed."""

    def __init__(self, base_url: str) -> None:
        parts = urlsplit(base_url if "://" in base_url else f"http://{base_url}")
        self.base_url = base_url
        self._host = parts.hostname or ""
        self._port = parts.port or 80
        self._prefix = parts.path.rstrip("/")
        self._connection: HTTPConnection | None = None
        self._is_closed = False

    def request(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        body: bytes | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> Response:
        """See `Transport`."""
        from http.client import HTTPConnection, HTTPException

        if self._connection is not None:
            try:
                return self._ask(self._connection, method, path, headers, body, timeout_s=timeout_s)
            except TimeoutError:
                self._drop()
                raise
            except (OSError, HTTPException):
                self._drop()  # a kept connection that the service has closed meanwhile
        if self._is_closed:
            msg = f"{self.base_url} is asked no more"
            raise OSError(msg)
        self._connection = HTTPConnection(self._host, self._port, timeout=timeout_s)
        try:
            return self._ask(self._connection, method, path, headers, body, timeout_s=timeout_s)
        except HTTPException as error:
            self._drop()
            msg = f"{self.base_url} does not speak HTTP ({type(error).__name__})"
            raise OSError(msg) from error
        except OSError:
            self._drop()
            raise

    def close(self) -> None:
        """See `Transport`."""
        self._is_closed = True
        self._drop()

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is None:
            return
        sock = connection.sock
        if isinstance(sock, socket.socket):
            with contextlib.suppress(OSError):  # it was not connected any more
                sock.shutdown(socket.SHUT_RDWR)
        connection.close()

    def _ask(
        self,
        connection: HTTPConnection,
        method: str,
        path: str,
        headers: Mapping[str, str],
        body: bytes | None,
        *,
        timeout_s: float,
    ) -> Response:
        try:
            return self._answer(connection, method, path, headers, body, timeout_s=timeout_s)
        finally:
            if self._is_closed:
                connection.close()  # it may have connected after `close` looked at it

    def _answer(
        self,
        connection: HTTPConnection,
        method: str,
        path: str,
        headers: Mapping[str, str],
        body: bytes | None,
        *,
        timeout_s: float,
    ) -> Response:
        until_s = time.monotonic() + timeout_s
        connection.timeout = timeout_s
        if connection.sock is not None:
            connection.sock.settimeout(timeout_s)
        connection.request(method, self._prefix + path, body=body, headers=dict(headers))
        answer = connection.getresponse()
        content = bytearray()
        while piece := answer.read1(MAX_BODY_BYTES + 1 - len(content)):
            content += piece
            if len(content) > MAX_BODY_BYTES:
                msg = f"{self.base_url}{path} answered more than {MAX_BODY_BYTES} bytes"
                raise OSError(msg)
            if time.monotonic() > until_s:
                msg = f"{self.base_url}{path} was not answered in {timeout_s:.0f} s"
                raise TimeoutError(msg)
        answer.close()
        return Response(
            answer.status, {name.lower(): value for name, value in answer.getheaders()}, bytes(content)
        )
