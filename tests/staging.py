"""Save and restore states by way of everything that a real save goes through, but the store."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import torch

from outlast.checkpoint.manifest import TensorRecord
from outlast.snapshot import stager
from outlast.snapshot.arena import Arena
from outlast.state.capture import capture_states, check_states
from outlast.state.restore import check_fit, restore_states
from outlast.state.rng import capture_rng, restore_rng
from outlast.state.steps import StepWatch
from outlast.state.table import TensorTable
from outlast.state.tree import decode, encode


@dataclass
class Saved:
    """What a manifest says, and looks at the bytes in the arena."""

    tree: dict
    records: list[TensorRecord]
    tensors: dict[str, torch.Tensor]


def through_arena(tree, table) -> Saved:
    """Stage the table's tensors, send the tree through JSON and msgpack, and look at the arena."""
    placed = stager.layout(table.entries)
    arena = Arena.create(placed.size_bytes)
    stager.stage(table.entries, placed, arena)
    records = [TensorRecord(box.name, box.dtype, box.shape, box.device, ()) for box in placed.placed]
    wants, size_bytes = stager.wants(records)
    assert size_bytes == placed.size_bytes
    tree = msgspec.msgpack.decode(msgspec.msgpack.encode(msgspec.json.decode(msgspec.json.encode(tree))))
    return Saved(tree, records, stager.views(arena, records, wants))


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
    notes = restore_states(states, saved.tree["states"], saved.tensors)
    if watch is not None:
        watch.restore(saved.tree["grad"], saved.tensors)
    notes += restore_rng(saved.tree["rng"], saved.tensors)
    for tensor in saved.tensors.values():
        if tensor.numel():
            tensor.view(torch.uint8 if tensor.dim() else tensor.dtype).fill_(77)
    return notes


def round_trip(value):
    """Encode, stage, decode."""
    table = TensorTable()
    tree = encode(value, "value", table)
    saved = through_arena({"value": tree}, table)
    return decode(saved.tree["value"], saved.tensors)


def bits(tensor: torch.Tensor) -> bytes:
    """All that a tensor holds, row by row; an oracle of its own."""
    tensor = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
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
