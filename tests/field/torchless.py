"""A trainer without torch, in this process: a real link to a real agent, and bytes for a state.

Also a reader of checkpoints that uses none of Outlast's: plain JSON and bytes.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

from launch import eventually, files_below
from outlast import _process
from outlast._types import Keep, Reason
from outlast.agent.link import Link
from outlast.agent.protocol import PROTOCOL, Ending, Hello, Placed, Snapshot, Taken
from outlast.checkpoint.manifest import ProcessId
from outlast.checkpoint.plan import plan
from outlast.snapshot.arena import Arena

ARENAS = 2
SLOT_BYTES = 32 << 20


class Trainer:
    """One attempt: `join` opens the run, `save` hands a state over, `kill` or `close` ends it.

    Attributes:
        offered: step that the resume came from, 0 for a fresh start.
        state: what came back; None for a fresh start.
        notes: what the agent said about checkpoints that it did not use.
    """

    def __init__(self, url: str, process: ProcessId | None = None) -> None:
        # The process that counts as the trainer, if none is named: it can be killed, and it ends with the tests.
        self._body = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
        self.link = Link(
            Hello(
                protocol=PROTOCOL,
                trainer=process or _process.process_id(self._body.pid),
                rank=0,
                world_size=1,
                global_batch=None,
                url=url,
                resume="auto",
                take_over=False,
                launch_id=_process.launch_id(os.environ),
                job_id=None,
                interval_s=300.0,
                interval_steps=None,
                settings={},
                keep=Keep(),
                rejoin=None,
            )
        )
        self.offered = 0
        self.state: bytes | None = None
        self.notes: tuple[str, ...] = ()
        self.arenas: dict[int, Arena] = {}
        self._number = 0
        self._ended = False

    def join(self) -> None:
        """Accept what the agent offers, older and older until it is whole, as `trainer/resume.py` does."""
        offer = self.link.offer()
        while True:
            if offer.checkpoint is None:
                newer = self.link.accept((), None, 0, lambda *_: None)
                if newer is None:
                    return
                offer = newer
                continue
            state = bytearray(offer.tensors[0].shape[0])
            batches = plan(offer.tensors, SLOT_BYTES)
            ring = Arena.create(SLOT_BYTES)

            def copy(filled, lent, answer, ring=ring, batches=batches, state=state):
                for index, part in enumerate(batches[filled.batch]):
                    source, at = (
                        (ring, filled.at + part.at) if filled.lent is None else (lent, filled.lent[index])
                    )
                    state[part.start : part.stop] = source.view[at : at + part.nbytes]
                answer(Taken(batch=filled.batch, refused=tuple(lack.fault for lack in filled.lacks)))

            older = self.link.accept(batches, ring, SLOT_BYTES, copy)
            ring.close()
            if older is None:
                self.offered, self.state = offer.step, bytes(state)
                self.notes = offer.notes
                return
            offer = older

    @property
    def agent(self) -> int:
        """The agent's pid."""
        assert self.link._own_agent is not None
        return self.link._own_agent.pid

    def save(
        self,
        step: int,
        state: bytes,
        *,
        reason: Reason = Reason.INTERVAL,
        hold: bool = False,
        index: int | None = None,
    ) -> int:
        """Put a state into a free arena and hand it over; the snapshot's number."""
        if index is None:
            index = self.link.wait_free(tuple(range(ARENAS)), lambda: None)
            assert index is not None
        if index not in self.arenas:
            self.arenas[index] = Arena.create(len(state))
            self.link.add_arena(index, self.arenas[index])
        self.arenas[index].view[: len(state)] = state
        self._number += 1
        placed = Placed("x", "uint8", (len(state),), "cpu", (0,), (len(state),), 0, len(state))
        self.link.submit(
            Snapshot(
                number=self._number, index=index, step=step, repeat=0, reason=reason, pinned=False, finished=False,
                hold=hold, tree=None, position={"step": step}, settings={}, tensors=(placed,), base=None, best=None,
            )
        )  # fmt: skip
        return self._number

    def save_and_wait(self, step: int, state: bytes) -> str:
        """Save, and wait until it is durable; the checkpoint's name."""
        saved = self.link.wait_saved(self.save(step, state), lambda: None, "it is saved")
        assert saved is not None
        assert saved.checkpoint is not None, saved.error
        return saved.checkpoint

    def stop_agent(self) -> None:
        """Freeze the agent, as a filesystem that hangs does; returns once it is frozen."""
        os.kill(self.agent, signal.SIGSTOP)
        eventually("the agent is frozen", lambda: _state(self.agent) == "T")

    def continue_agent(self) -> None:
        """Let it go on."""
        os.kill(self.agent, signal.SIGCONT)

    def close(self, outcome: Ending = "ended") -> None:
        """End as a script ends that reaches its last line."""
        self.link.close(outcome)
        self._end()

    def kill(self, *, agent_too: bool = False) -> None:
        """Be gone without a word; returns once the agent has ended, by itself or (`agent_too`) killed at once."""
        if self._ended:
            return
        agent = self.link._own_agent
        with self.link._lock:  # from here on the link starts no new agent
            self.link._leaving = True
            self.link._told.unsaved.clear()
        if agent is not None and agent_too:
            agent.kill()
        self._body.kill()
        self._body.wait()
        if self.link._wire is not None:
            self.link._wire.close()
        if agent is not None:
            agent.wait()
        self._end()

    def _end(self) -> None:
        self._ended = True
        self._body.kill()
        self._body.wait()
        if self._body.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._body.stdin.close()
        for arena in self.arenas.values():
            arena.close()


def commits(root: Path) -> list[tuple[int, int, Path]]:
    """(attempt, step, folder) of every checkpoint that exists, oldest first."""
    found = []
    for path in root.glob("checkpoints/*/commit.json"):
        try:
            commit = json.loads(path.read_bytes())
        except FileNotFoundError:
            continue  # an old one, deleted just now
        found.append((commit["attempt"], commit["step"], path.parent))
    return sorted(found)


def read_tensors(folder: Path) -> dict[str, bytes]:
    """The bytes of every tensor of a checkpoint, read from its files by the format alone; each is one whole slice."""
    root = folder.parents[1]
    manifest = json.loads((folder / "rank-00000.json").read_bytes())
    found = {}
    for tensor in manifest["tensors"]:
        (held,) = tensor["slices"]
        assert held["shape"] == tensor["shape"]
        data = b""
        for segment, at, nbytes, _ in held["chunks"]:
            with (root / segment).open("rb") as file:
                file.seek(at)
                data += file.read(nbytes)
        found[tensor["name"]] = data
    return found


def events(root: Path) -> list[dict[str, Any]]:
    """Every record of the ledger, in the order of its parts; not the digest that ends each part."""
    lines = [line for path in sorted(root.glob("events/*/*.jsonl")) for line in path.read_text().splitlines()]
    return [record for line in lines if "kind" in (record := json.loads(line))]


def files(root: Path) -> dict[str, bytes]:
    """Every file below a run; one that is deleted meanwhile is none."""
    found = {}
    for path in sorted(files_below(root)):
        with contextlib.suppress(FileNotFoundError):
            found[str(path.relative_to(root))] = path.read_bytes()
    return found


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
