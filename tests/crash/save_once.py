"""Save one checkpoint of two ranks into a local store, and be killed (SIGKILL) at one operation of it.

    python save_once.py STORE WHERE NUMBER

WHERE is `store` (the number-th call of the store), `system` (the number-th system call of a save that changes
the disk) or `half` (the number-th write, of which only half reaches the file). Exits 0 if it was not killed.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from outlast.checkpoint import packing, writer
from outlast.checkpoint.events import EventLog
from outlast.checkpoint.writer import commit, write_rank
from outlast.store.local import LocalStore
from saving import RUN_ID, UTC, flat, header, id_of, lay_out, state_of

SIZES = {"embedding": 20_000, "bias": 10, "empty": 0, "weight": 50_000}
RANKS = 2
STORE_CALLS = ("create", "put", "write", "get", "list")
SYSTEM_CALLS = ("mkdir", "write", "fsync", "link", "rename", "replace", "unlink")


def rank_state(step: int, rank: int) -> dict[str, bytes]:
    """What rank `rank` holds at a step."""
    return {f"{name}.{rank}": data for name, data in state_of(step * RANKS + rank, SIZES).items()}


def save_world(store: object, step: int, *, attempt: int = 1, nonce: str = "aaaa", repeat: int = 0) -> None:
    """Events, both ranks, commit: a save as the agents make it."""
    id = id_of(step, attempt=attempt, nonce=nonce, repeat=repeat)
    log = EventLog(store, attempt, nonce, 0)
    log.add({"kind": "metrics", "utc": UTC, "step": step, "values": {"loss": 1 / step}})
    events = log.flush()
    for rank in range(RANKS):
        boxes, arena = lay_out([flat(name, data) for name, data in rank_state(step, rank).items()])
        write_rank(store, header(id, rank=rank, world_size=RANKS, events=events), boxes, arena, saved_utc=UTC)
    assert commit(store, id, RUN_ID, RANKS)


def shrink() -> None:
    """Chunks of 8 KiB and segments of 32 KiB: small data, and yet several of each, and boxes that are not small."""
    packing.SMALL_BYTES = 4 << 10
    writer.CHUNK_BYTES = 8 << 10
    writer.SEGMENT_BYTES = 32 << 10


def main(root: str, where: str, number: int) -> None:
    shrink()
    store = LocalStore(Path(root))
    done = 0

    def killed_before(call, half=None):
        def wrapped(*args, **kwargs):
            nonlocal done
            done += 1
            if done == number:
                if half is not None:
                    half(*args)
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **kwargs)

        return wrapped

    if where == "store":
        for name in STORE_CALLS:
            setattr(store, name, killed_before(getattr(store, name)))
    elif where == "system":
        for name in SYSTEM_CALLS:
            setattr(os, name, killed_before(getattr(os, name)))
    else:
        write = os.write
        os.write = killed_before(write, half=lambda file, data: write(file, data[: len(data) // 2]))
    save_world(store, 20, repeat=1)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
