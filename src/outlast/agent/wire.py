"""How messages travel: framed msgpack over a stream socket, with file descriptors beside it."""

from __future__ import annotations

import array
import os
import socket
import struct
import threading

import msgspec

from outlast.agent.protocol import AnyMessage, Message

_LENGTH = struct.Struct("<I")
_MAX_MESSAGE_BYTES = 1 << 30
"""Larger than any manifest that fits in memory; a longer length is a stream out of step."""
_MAX_FDS = 4
_PEER_CREDENTIALS = struct.Struct("3i")

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[AnyMessage] = msgspec.msgpack.Decoder(AnyMessage)


class Closed(ConnectionError):
    """The other side has gone."""


class Wire:
    """One connected socket. Sending is thread-safe; receiving belongs to one thread."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(True)
        self._sock = sock
        self._lock = threading.Lock()
        self._fds: list[int] = []

    def fileno(self) -> int:
        """Descriptor to wait on."""
        return self._sock.fileno()

    def send(self, message: Message, fds: tuple[int, ...] = ()) -> None:
        """Send one message; raises `Closed` when the other side has gone."""
        body = _encoder.encode(message)
        with self._lock:
            try:
                if fds:
                    socket.send_fds(self._sock, [_LENGTH.pack(len(body))], list(fds))
                else:
                    self._sock.sendall(_LENGTH.pack(len(body)))
                self._sock.sendall(body)
            except OSError as error:
                raise Closed(str(error)) from error

    def receive(self) -> tuple[AnyMessage, list[int]]:
        """Wait for the next message and the descriptors that came with it (now owned by the caller)."""
        header = self._read(_LENGTH.size)
        (length,) = _LENGTH.unpack(header)
        if length > _MAX_MESSAGE_BYTES:
            msg = f"a message of {length} bytes: the stream is out of step"
            raise Closed(msg)
        body = self._read(length)
        fds, self._fds = self._fds, []
        return _decoder.decode(body), fds

    def finish_reading(self) -> None:
        """End the stream after what has arrived: a receive then gets the rest, and `Closed` after it."""
        try:
            self._sock.shutdown(socket.SHUT_RD)
        except OSError:
            pass  # already gone, which is what is wanted

    def close(self) -> None:
        """Close; a receive that waits in another thread ends with `Closed`."""
        try:
            self._sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # already gone, which is what is wanted
        self._sock.close()

    def _read(self, length: int) -> bytearray:
        data = bytearray(length)
        view = memoryview(data)
        got = 0
        while got < length:
            try:
                count = self._receive_into(view[got:])
            except OSError as error:
                raise Closed(str(error)) from error
            if count == 0:
                msg = "the other side has closed the connection"
                raise Closed(msg)
            got += count
        return data

    def _receive_into(self, view: memoryview) -> int:
        space = socket.CMSG_SPACE(_MAX_FDS * array.array("i").itemsize)
        count, ancillary, flags, _ = self._sock.recvmsg_into([view], space, socket.MSG_CMSG_CLOEXEC)
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                received = array.array("i")
                received.frombytes(payload[: len(payload) - len(payload) % received.itemsize])
                self._fds.extend(received)
        if flags & socket.MSG_CTRUNC:
            msg = "file descriptors were lost on the way: is the limit of open files reached (ulimit -n)?"
            raise OSError(msg)
        return count


def peer_is_me(sock: socket.socket) -> bool:
    """Whether the process at the other end is of this user (abstract sockets have no file mode to guard them)."""
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER_CREDENTIALS.size)
    _, uid, _ = _PEER_CREDENTIALS.unpack(raw)
    return bool(uid == os.getuid())
