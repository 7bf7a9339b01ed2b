"""Save and restore states by way of everything that a real save goes through, but the store."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import torch

from outlast.agent.protocol import Filled
from outlast.checkpoint.manifest import CHUNK_BYTES, Chunk, Slice, TensorRecord, digest
from outlast.snapshot import stager
from outlast.snapshot.arena import Arena
from outlast.state.capture import capture_states, check_states
from outlast.state.homes import make_homes
from outlast.state.restore import check_fit, differing, restore_states
from outlast.state.rng import capture_rng, restore_rng
from outlast.state.steps import StepWatch
from outlast.state.table import TensorTable
from outlast.state.tree import decode, encode
from outlast.trainer.reading import Reading


@dataclass
class Saved:
    """What a manifest says, and the arena that holds the bytes."""

    tree: dict
    records: list[TensorRecord]
    arena: Arena


def through_arena(tree, table) -> Saved:
    """Stage the table's tensors, send the tree through JSON and msgpack, and look at the arena."""
    placed = stager.layout(table.entries)
    arena = Arena.create(placed.size_bytes)
    stager.stage(table.entries, placed, arena)
    records = [
        TensorRecord(
            box.name, box.dtype, box.shape, box.device, (Slice(box.offset, box.shape, _chunks(box, arena)),)
        )
        for box in placed.placed
    ]
    tree = msgspec.msgpack.decode(msgspec.msgpack.encode(msgspec.json.decode(msgspec.json.encode(tree))))
    return Saved(tree, records, arena)


def _chunks(box, arena) -> tuple[Chunk, ...]:
    parts = [
        (at, min(CHUNK_BYTES, box.at + box.nbytes - at))
        for at in range(box.at, box.at + box.nbytes, CHUNK_BYTES)
    ]
    return tuple(Chunk("arena", at, nbytes, digest(arena.view[at : at + nbytes])) for at, nbytes in parts)


class Lent:
    """A link to an agent that lends the arena: what `Reading` needs of one, without a process."""

    def __init__(self, arena: Arena) -> None:
        self.arena = arena
        self.asked: list[str] = []

    def accept(self, batches, ring, slot_bytes, copy) -> None:
        self.fill(batches, copy)

    def read(self, request, ring, copy) -> None:
        self.asked += sorted({part.tensor for batch in request.batches for part in batch})
        self.fill(request.batches, copy)

    def fill(self, batches, copy) -> None:
        for number, batch in enumerate(batches):
            places = tuple(self.places[part.tensor] + part.start for part in batch)
            copy(Filled(batch=number, at=0, lent=places, lacks=(), error=None), self.arena, lambda _: None)


def reading(saved: Saved) -> Reading:
    """A reading of what was saved."""
    link = Lent(saved.arena)
    link.places = {
        record.name: record.slices[0].chunks[0].at for record in saved.records if record.slices[0].chunks
    }
    return Reading(link, "saved", saved.records)


def looks(saved: Saved) -> dict[str, torch.Tensor]:
    """Every tensor as it was read."""
    homes = make_homes({}, {**saved.tree, "states": {}}, saved.records)
    reading(saved).accept(homes)
    return homes.tensors


def save(states, watch: StepWatch | None = None) -> Saved:
    """Save states, generators and pending gradients."""
    check_states(states)
    table = TensorTable()
    tree = {"states": capture_states(states, table), "rng": capture_rng(table)}
    if watch is not None:
        tree["grad"] = watch.capture(table)
    return through_arena(tree, table)


def load(states, saved: Saved, watch: StepWatch | None = None) -> list[str]:
    """Check, restore, then overwrite the arena: whoever kept a look at it is found out by its values."""
    check_fit(states, saved.tree["states"], saved.records, "saved-run", "live-run")
    read = reading(saved)
    homes = make_homes(states, saved.tree, saved.records)
    read.accept(homes)
    saved.arena.view[:] = b"\x4d" * saved.arena.size_bytes
    rest = {name: tensor.clone() for name, tensor in homes.tensors.items()}
    notes = restore_states(states, saved.tree["states"], homes)
    notes += differing(states, saved.tree["states"], read.same).lines
    if watch is not None:
        watch.restore(saved.tree["grad"], rest)
    notes += restore_rng(saved.tree["rng"], rest)
    return notes


def round_trip(value):
    """Encode, stage, decode."""
    table = TensorTable()
    tree = encode(value, "value", table)
    saved = through_arena({"value": tree, "states": {}}, table)
    return decode(saved.tree["value"], looks(saved))


def bits(tensor: torch.Tensor) -> bytes:
    """All that a tensor holds, row by row; an oracle of its own."""
    tensor = tensor.detach().resolve_conj().resolve_neg().cpu().clone(memory_format=torch.contiguous_format)
    return bytes(tensor.reshape(-1).view(torch.uint8).numpy()) if tensor.numel() else b""


def fingerprint(value, path="") -> dict[str, object]:
    """Flatten anything nested into path -> (type, bits or repr); an oracle of its own."""
    if isinstance(value, torch.Tensor):
        if value.layout is not torch.strided:
            value = value.coalesce().to_dense()
        return {path: (str(value.dtype), tuple(value.shape), bits(value))}
    if isinstance(value, dict):
        out = {path: type(value).__name__}
        for key, item in value.items():
            out |= fingerprint(item, f"{path}/{key!r}")
        return out
    if isinstance(value, (list, tuple)):
        out = {path: type(value).__name__}
        for index, item in enumerate(value):
            out |= fingerprint(item, f"{path}/{index}")
        return out
    return {path: (type(value).__name__, repr(value))}
