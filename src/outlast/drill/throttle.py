"""A slow way to a server: what goes there passes at a rate, what comes back passes as it is."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Coroutine, Iterator

_AT_ONCE_BYTES = 64 * 1024
_WINDOW_BYTES = 256 * 1024
"""What a sender may be ahead of the way, by connection: this machine's own buffers would hold megabytes that no line has carried."""
_START_S = 10.0


class Throttle:
    """Passes connections on to a server on this machine.

    Attributes:
        port: where it listens, on loopback.
        passed_bytes: what has been sent to the server so far.
    """

    def __init__(self, target: tuple[str, int], bytes_per_s: float) -> None:
        self.port = 0
        self.passed_bytes = 0
        self._target = target
        self._bytes_per_s = bytes_per_s
        self._free_s = 0.0
        """When the way is free again, by the loop's clock."""

    async def serve(self, ready: threading.Event, closing: asyncio.Event) -> None:
        """Listen until `closing` is set."""
        listener = socket.create_server(("127.0.0.1", 0))
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _WINDOW_BYTES)
        server = await asyncio.start_server(self._pass, sock=listener, limit=_AT_ONCE_BYTES)
        self.port = server.sockets[0].getsockname()[1]
        ready.set()
        await closing.wait()
        server.close()

    async def _pass(self, client: asyncio.StreamReader, answer: asyncio.StreamWriter) -> None:
        try:
            server, sink = await asyncio.open_connection(*self._target, limit=_AT_ONCE_BYTES)
        except OSError:
            answer.close()
            return
        ways = [
            asyncio.ensure_future(self._copy(client, sink, slow=True)),
            asyncio.ensure_future(self._copy(server, answer, slow=False)),
        ]
        # Whichever side ends, the other one is told: a killed client's upload must not be completed.
        with contextlib.suppress(asyncio.CancelledError):  # the drill's end
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for way in ways:
            way.cancel()
        for writer in (sink, answer):
            writer.close()

    async def _copy(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, slow: bool) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(_AT_ONCE_BYTES):
                if slow:
                    await self._wait(len(data))
                sink.write(data)
                await sink.drain()

    async def _wait(self, nbytes: int) -> None:
        """Wait until `nbytes` may have passed; all connections share the way."""
        now = asyncio.get_running_loop().time()
        self._free_s = max(self._free_s, now) + nbytes / self._bytes_per_s
        self.passed_bytes += nbytes
        await asyncio.sleep(self._free_s - now)


@contextlib.contextmanager
def throttled(target: tuple[str, int], bytes_per_s: float) -> Iterator[Throttle]:
    """Run a `Throttle` in a thread of its own."""
    throttle = Throttle(target, bytes_per_s)
    ready, closing = threading.Event(), asyncio.Event()
    loop = asyncio.new_event_loop()
    thread = threading.Thread(
        target=_run, args=(loop, throttle.serve(ready, closing)), name="throttle", daemon=True
    )
    thread.start()
    try:
        if not ready.wait(_START_S):
            msg = f"the throttle did not listen within {_START_S:.0f} s"
            raise OSError(msg)
        yield throttle
    finally:
        loop.call_soon_threadsafe(closing.set)
        thread.join()


def _run(loop: asyncio.AbstractEventLoop, serve: Coroutine[None, None, None]) -> None:
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(serve)
