"""Open a run for a trainer: find what can be resumed, offer it, claim the attempt, fill the trainer's ring."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from outlast._errors import NothingToResume, NoWholeCheckpoint, ObjectDamaged, ObjectMissing, StoreUnavailable
from outlast._process import process_id
from outlast._types import FORMAT_VERSION
from outlast.agent.alive import Heartbeat
from outlast.agent.claim import Claimant, Waits, claim, utc_now, wait_until_gone
from outlast.agent.filling import Filling
from outlast.agent.ledger import Ledger
from outlast.agent.outlived import Outlived
from outlast.agent.place import is_begun_by
from outlast.agent.protocol import Accept, Hello, Offer, Rejoin, Taken
from outlast.agent.tasks import Newest
from outlast.agent.wire import Closed, Wire
from outlast.checkpoint import catalog
from outlast.checkpoint.events import EventLog
from outlast.checkpoint.manifest import AttemptRecord, CheckpointId, Chunk, TensorRecord
from outlast.snapshot.arena import Arena
from outlast.store.base import Store

_MOST_CLAIMS = 100
"""Claims lost in a row before something else must be wrong."""


@dataclass(frozen=True)
class Opened:
    """An attempt that is ours, with what it resumes in the trainer's hands.

    Attributes:
        damaged: chunks of the checkpoint resumed from that are bad on the store, and whose bytes the trainer had; None where
            nothing was resumed because the trainer trains already.
        heartbeat: beats since the claim; nobody is told yet what it finds.
    """

    store: Store
    record: AttemptRecord
    damaged: frozenset[Chunk] | None
    heartbeat: Heartbeat


class Opening:
    """The handshake with one trainer, after its Hello.

    Args:
        wire: to the trainer.
        hello: what it said.
        store: the run's store.
        say: a line for whoever watches.
        waits: how long an attempt that may live is waited for.
        kept: see `Ledger`.
        newest: what the arena of an earlier trainer of this agent still holds.
        held: URLs at which an earlier trainer of this agent had a checkpoint.
    """

    def __init__(
        self,
        wire: Wire,
        hello: Hello,
        store: Store,
        *,
        say: Callable[[str], None],
        waits: Waits,
        kept: Callable[[int], None],
        newest: Newest | None = None,
        held: Collection[str] = (),
    ) -> None:
        self._wire = wire
        self._hello = hello
        self._store = store
        self._say = say
        self._waits = waits
        self._kept = kept
        self._newest = newest
        self._held = held
        self._heartbeat: Heartbeat | None = None
        self._damaged: frozenset[Chunk] = frozenset()

    def rejoined(self, rejoin: Rejoin) -> Opened:
        """The attempt of a trainer whose agent died: its own words, since its record may be out of reach just now."""
        record = AttemptRecord(
            format=FORMAT_VERSION,
            run_id=rejoin.run_id,
            attempt=rejoin.attempt,
            nonce=rejoin.nonce,
            claimed_utc=utc_now(),
            world_size=self._hello.world_size,
            global_batch=self._hello.global_batch,
            launch_id=self._hello.launch_id,
            job_id=self._hello.job_id,
            agent=process_id(os.getpid()),
            trainer=self._hello.trainer,
            settings=self._hello.settings,
            resumed_from=None,
            capacity=self._hello.capacity,
        )
        return Opened(self._store, record, None, self._beat(record))

    def attempt(self) -> Opened | None:
        """Offer what is there until the attempt is claimed.

        Where another start came first, what is there has to be looked at again.

        Returns:
            None where the name that `resume="never"` found free is another start's now.

        Raises:
            OutlastError: why it cannot be.
        """
        record = None
        try:
            record = self._attempt()
        finally:
            if record is None and self._heartbeat is not None:
                self._heartbeat.stop()
        if record is None or self._heartbeat is None:
            return None
        return Opened(self._store, record, self._damaged, self._heartbeat)

    def _attempt(self) -> AttemptRecord | None:
        for _ in range(_MOST_CLAIMS):
            run = catalog.read_run(self._store)
            if (
                run is not None
                and self._hello.resume == "never"
                and not is_begun_by(self._store, self._hello)
            ):
                return None
            newest, candidates = self._candidates(run.run_id if run else None)
            run = run or catalog.create_run(
                self._store, run_id=new_run_id(), created_utc=utc_now(), settle_s=self._waits.settle_s
            )
            record = self._offer_each(run.run_id, newest, candidates)
            if record is not None:
                return record
        msg = f"{self._store.url}: {_MOST_CLAIMS} attempts were claimed by others in a row; look for a loop that starts jobs"
        raise StoreUnavailable(msg)

    def _offer_each(self, run_id: str, newest: int, candidates: list[CheckpointId]) -> AttemptRecord | None:
        """Offer checkpoints, newest first, until one is whole and fits; None if the claim is lost to another start.

        An attempt that is taken over from goes on saving and deleting until the claim, and may commit one save more after it.
        So what there is, is looked at again after each claim and each fault: the newest is resumed from, not the one that was.
        """
        faults: dict[CheckpointId, str] = {}
        while (checkpoint := next((id for id in candidates if id not in faults), None)) is not None:  # noqa: A001
            try:
                loaded = catalog.load(self._store, checkpoint)
                records = catalog.tensors(loaded)
            except (ObjectMissing, ObjectDamaged) as error:
                faults[checkpoint] = str(error)
                candidates = catalog.committed(self._store)
                continue
            manifest = loaded.manifests[0]
            self._wire.send(
                Offer(
                    url=self._store.url,
                    run_id=run_id,
                    checkpoint=checkpoint.name,
                    step=checkpoint.step,
                    finished=loaded.commit.finished,
                    tree=manifest.tree,
                    position=manifest.position,
                    settings=manifest.settings,
                    tensors=tuple(records),
                    notes=_lines(candidates, faults),
                )
            )
            accept, ring = self._accept()
            # Claimed anew for each that is tried: the record names the checkpoint that was really used.
            record, bad = self._claim_and_fill(
                run_id, newest, checkpoint, records=records, accept=accept, ring=ring
            )
            if record is None:
                return None
            newest = record.attempt
            if bad:
                faults[checkpoint] = bad[0]
            candidates = catalog.committed(self._store)
            newer = [id for id in candidates if id > checkpoint and id not in faults]  # noqa: A001
            if not bad and not newer:
                return record
            if not bad:
                self._say(f"{newer[0].name} has been saved meanwhile: resuming from that one")
        if not candidates and faults:
            msg = f"{self._store.url} held {len(faults)} checkpoints when this start looked first, and holds none now: put them back"
            raise StoreUnavailable(msg)
        if candidates:
            lines = "\n".join(f"  {line}" for line in _lines(candidates, faults))
            msg = (
                f"{self._store.url} holds {len(candidates)} checkpoints and none is whole; nothing was deleted:\n{lines}\n"
                "Put the missing objects back, or start afresh under another name."
            )
            raise NoWholeCheckpoint(msg)
        return self._offer_nothing(run_id, newest)

    def _offer_nothing(self, run_id: str, newest: int) -> AttemptRecord | None:
        """Begin at step 0; or resume after all from what one that is taken over from has saved before the claim."""
        self._wire.send(
            Offer(
                url=self._store.url,
                run_id=run_id,
                checkpoint=None,
                step=0,
                finished=False,
                tree=None,
                position=None,
                settings={},
                tensors=(),
                notes=(),
            )
        )
        self._accept()
        record = self._claim(run_id, newest, None)
        saved_meanwhile = catalog.committed(self._store) if record is not None else []
        if record is None or not saved_meanwhile:
            return record
        self._say(f"{saved_meanwhile[0].name} has been saved meanwhile: resuming from that one")
        return self._offer_each(run_id, record.attempt, saved_meanwhile)

    def _candidates(self, run_id: str | None) -> tuple[int, list[CheckpointId]]:
        """The newest attempt's number, once it is gone, and what can be resumed, newest first."""
        newest, found = 0, list[CheckpointId]()
        while run_id is not None:
            newest = wait_until_gone(self._store, self._claimant(run_id), say=self._say, waits=self._waits)
            adopted = catalog.adopt(self._store, run_id)
            for checkpoint in adopted.committed:
                self._say(f"{checkpoint.name} was whole and had no commit: committed now")
            for fault in adopted.faults:
                self._say(f"without a commit, and not whole: {fault}")
            found = catalog.committed(self._store)
            saved_by = max((checkpoint.attempt for checkpoint in found), default=0)
            if saved_by <= newest:
                break
            if saved_by not in catalog.attempts(self._store):
                # An attempt's record may be lost. Its checkpoints name its number all the same, and what comes must count as newer.
                newest = saved_by
                break
        if not found and self._store.url in self._held:
            msg = (
                f"{self._store.url} holds no checkpoint any more, and did while this launch trained: the folder was deleted or "
                "moved, or is not mounted. Put it back; to begin anew, start the command again"
            )
            raise StoreUnavailable(msg)
        if self._hello.resume == "must" and not found:
            msg = f'resume="must", and {self._store.url} holds no checkpoint; start with resume="auto", or correct the place'
            raise NothingToResume(msg)
        return newest, found

    def _claim_and_fill(
        self,
        run_id: str,
        newest: int,
        checkpoint: CheckpointId,
        *,
        records: Sequence[TensorRecord],
        accept: Accept,
        ring: Arena | None,
    ) -> tuple[AttemptRecord | None, list[str]]:
        """Claim the attempt while the first bytes are read already, and have the trainer take every batch.

        Returns:
            The attempt (None if another start came first), and what is damaged and could not be mended.
        """
        if ring is None:
            return self._claim(run_id, newest, checkpoint), []
        filling = Filling(
            self._store,
            records,
            accept.batches,
            ring=ring,
            slot_bytes=accept.slot_bytes,
            send=self._wire.send,
            outlived=self._outlived(checkpoint, records),
        )
        try:
            record = self._claim(run_id, newest, checkpoint)
            if record is None:
                filling.end()
            while not filling.is_over:
                message, _ = self._wire.receive()
                if not isinstance(message, Taken):
                    msg = f"expected Taken, got {type(message).__name__}"
                    raise Closed(msg)
                filling.take_back(message)
        finally:
            filling.stop()
            ring.close()
        if record is not None and filling.error is not None:
            raise filling.error
        self._damaged = frozenset(filling.damaged)
        return record, filling.faults

    def _outlived(self, checkpoint: CheckpointId, records: Sequence[TensorRecord]) -> Outlived | None:
        if self._newest is None or self._newest.checkpoint != checkpoint.name:
            return None
        return Outlived(self._newest, {record.name: record for record in records})

    def _accept(self) -> tuple[Accept, Arena | None]:
        accept, fds = self._wire.receive()
        if not isinstance(accept, Accept):
            msg = f"expected Accept, got {type(accept).__name__}"
            raise Closed(msg)
        return accept, Arena(fds[0]) if fds else None

    def _claimant(self, run_id: str) -> Claimant:
        return Claimant(
            run_id=run_id,
            trainer=self._hello.trainer,
            agent=process_id(os.getpid()),
            launch_id=self._hello.launch_id,
            job_id=self._hello.job_id,
            world_size=self._hello.world_size,
            global_batch=self._hello.global_batch,
            settings=self._hello.settings,
            take_over=self._hello.take_over,
            keep=self._hello.keep,
            capacity=self._hello.capacity,
        )

    def _claim(self, run_id: str, newest: int, checkpoint: CheckpointId | None) -> AttemptRecord | None:
        record = claim(
            self._store,
            self._claimant(run_id),
            after=newest,
            resumed_from=checkpoint.name if checkpoint else None,
            waits=self._waits,
        )
        if record is not None:
            self._beat(record)
        return record

    def _beat(self, record: AttemptRecord) -> Heartbeat:
        """From its claim on an attempt gives signs of life: a restore may take longer than others wait for one."""
        if self._heartbeat is not None:
            self._heartbeat.stop()
        log = EventLog(self._store, record.attempt, record.nonce, self._hello.rank)
        self._heartbeat = Heartbeat(self._store, record, Ledger(log, self._kept))
        return self._heartbeat


def _lines(candidates: Sequence[CheckpointId], faults: Mapping[CheckpointId, str]) -> tuple[str, ...]:
    """What is wrong with those that still stand."""
    return tuple(f"{id.name}: {faults[id]}" for id in candidates if id in faults)  # noqa: A001


def new_run_id() -> str:
    """A name for a run that no other run has: 16 random hex digits."""
    return os.urandom(8).hex()
