"""Copies from CUDA devices into arenas, on streams of their own, and arenas that a device can write into by itself."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from outlast.snapshot.arena import PAGE_BYTES, Arena
from outlast.snapshot.moves import Move

_SMALL_BYTES = 64 << 10
"""Up to here a copy of its own (5 us to launch, 25 GB/s) costs more than to gather many on the device first."""
_BATCH_BYTES = 32 << 20
"""Small tensors that are gathered at a time: what this takes of a device's memory."""
_PORTABLE = 1
"""cudaHostRegisterPortable: pinned for every device of this process."""


class DeviceCopier:
    """Copies from CUDA devices, on one stream for each. Used in the main thread only."""

    def __init__(self) -> None:
        self._streams: dict[torch.device, torch.cuda.Stream] = {}

    @staticmethod
    def takes(tensor: torch.Tensor) -> bool:
        """Whether it lies on a CUDA device."""
        return tensor.device.type == "cuda"

    def stream(self, device: torch.device) -> torch.cuda.Stream:
        """Return the stream of a device's copies."""
        stream = self._streams.get(device)
        if stream is None:
            stream = self._streams[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch has no annotation there
        return stream

    def begin(self, moves: Sequence[Move]) -> DeviceCopying:
        """Begin to copy, after all that is queued on each device's current stream.

        The small ones are there when this returns. Targets that are not pinned are copied right as well, only that
        the driver may let this thread wait for it.
        """
        events = []
        by_device: dict[torch.device, list[Move]] = {}
        for move in moves:
            by_device.setdefault(move.source.device, []).append(move)
        for device, of_device in by_device.items():
            stream = self.stream(device)
            stream.wait_stream(torch.cuda.current_stream(device))
            with torch.no_grad(), torch.cuda.stream(stream):
                for move in of_device:
                    if move.nbytes > _SMALL_BYTES:
                        move.target.copy_(move.source, non_blocking=True)
                for batch in _batches([move for move in of_device if move.nbytes <= _SMALL_BYTES]):
                    _copy_gathered(batch)
                # Whoever waits for it sleeps, and takes no core from training.
                event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]  # torch has no annotation there
                event.record(stream)
            events.append((device, event))
        return DeviceCopying(moves, events)


class DeviceCopying:
    """Copies that devices have been given.

    Memory that training frees meanwhile stays what it was, for the sources are held here.
    """

    def __init__(
        self, moves: Sequence[Move], events: Sequence[tuple[torch.device, torch.cuda.Event]]
    ) -> None:
        self._moves = moves
        self._events = events

    def hold_back(self) -> None:
        """Let each device's current stream wait. A stream that is being captured cannot wait for what is not captured."""
        for device, event in self._events:
            with torch.cuda.device(device):
                if not torch.cuda.is_current_stream_capturing():
                    torch.cuda.current_stream(device).wait_event(event)

    def is_done(self) -> bool:
        """Whether all is in the arena."""
        return all(event.query() for _, event in self._events)  # type: ignore[no-untyped-call]  # see `begin`

    def wait(self) -> None:
        """Return once all is in the arena."""
        for _, event in self._events:
            event.synchronize()


class Pin:
    """Memory of an arena that is pinned, so that a device copies into it by itself.

    Where it cannot be pinned (a limit on locked memory), copies into it are slower, and right.

    Attributes:
        nbytes: how much of the arena, from its start.
        is_pinned: whether it worked.
    """

    def __init__(self, arena: Arena, nbytes: int) -> None:
        """Pin the first `nbytes`, whole pages; quicker where they were touched before.

        A tensor must lie on one side of their end: a device copies to memory that is pinned, or to such that is not.
        Not more: what is punched out of an arena later must not be pinned, for the device would write to pages that
        are not the arena's any more.
        """
        assert nbytes % PAGE_BYTES == 0 < nbytes
        self.nbytes = nbytes
        self.is_pinned = False
        # It holds the mapping: closed or not meanwhile, these addresses stay the arena's.
        self._memory = np.frombuffer(arena.view, dtype=np.uint8)[:nbytes]
        self._device = torch.cuda.current_device()
        # A failed call leaves its error to the thread that made it: training never hears of this one's. It is waited
        # for, since a call in the background would break a CUDA graph that is being captured meanwhile.
        thread = threading.Thread(target=self._register, name="outlast-pin")
        thread.start()
        thread.join()

    def release(self) -> None:
        """Unpin; before the arena is closed, and after the last copy into it."""
        if self.is_pinned:
            self.is_pinned = False
            with torch.cuda.device(self._device):
                cudart = torch.cuda.cudart()  # type: ignore[no-untyped-call]  # torch has no annotation there
                cudart.cudaHostUnregister(self._memory.ctypes.data)

    def _register(self) -> None:
        # A new thread's current device is the first one, which this process may not use at all.
        with torch.cuda.device(self._device):
            cudart = torch.cuda.cudart()  # type: ignore[no-untyped-call]  # torch has no annotation there
            code = cudart.cudaHostRegister(self._memory.ctypes.data, self.nbytes, _PORTABLE)
            self.is_pinned = int(code) == 0


def _batches(moves: Sequence[Move]) -> Iterator[list[Move]]:
    """Group small copies of one dtype."""
    by_dtype: dict[torch.dtype, list[Move]] = {}
    for move in moves:
        by_dtype.setdefault(move.source.dtype, []).append(move)
    for of_dtype in by_dtype.values():
        batch: list[Move] = []
        nbytes = 0
        for move in of_dtype:
            batch.append(move)
            nbytes += move.nbytes
            if nbytes >= _BATCH_BYTES:
                yield batch
                batch, nbytes = [], 0
        if batch:
            yield batch


def _copy_gathered(moves: Sequence[Move]) -> None:
    """Gather on the device, copy once, spread out in the arena."""
    flat = torch.cat([move.source.reshape(-1) for move in moves]).cpu()
    parts = torch.split(flat, [move.source.numel() for move in moves])
    torch._foreach_copy_(
        [move.target for move in moves],
        [part.view(move.target.shape) for part, move in zip(parts, moves, strict=True)],
    )
