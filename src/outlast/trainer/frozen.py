"""Which tensors need not be copied: frozen parameters whose every byte the last checkpoint holds.

Nobody promises that a frozen parameter stays as it is (a LoRA merge writes into it, and so may anything through
`.data`), so each is digested whole at each safe point, and left where it is only if all digests are the stored ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace

import msgspec
import torch

from outlast._types import Json
from outlast.agent.protocol import UNCOPIED
from outlast.checkpoint.manifest import TensorRecord
from outlast.snapshot.digests import chunk_digests
from outlast.snapshot.fingerprint import fingerprints
from outlast.snapshot.prints import Print
from outlast.snapshot.stager import Layout

Digests = Mapping[str, tuple[str, ...]]
"""Of the chunks of each tensor, by its name."""
Prints = Mapping[str, Print]
"""Fingerprints of tensors on a GPU, by name: what a digest is on the CPU."""


@dataclass(frozen=True)
class Stored:
    """What a checkpoint is known to hold."""

    checkpoint: str
    digests: Digests
    prints: Prints = field(default_factory=dict)


def stored(checkpoint: str | None, records: Sequence[TensorRecord]) -> Stored | None:
    """What a checkpoint holds, by its records; a tensor that lies there in several boxes is left out."""
    if checkpoint is None:
        return None
    return Stored(
        checkpoint,
        {
            record.name: tuple(chunk.digest for chunk in record.slices[0].chunks)
            for record in records
            if len(record.slices) == 1 and record.slices[0].shape == record.shape
        },
    )


def frozen_names(states: Json, entries: Mapping[str, torch.Tensor]) -> set[str]:
    """Names of the tensors that are frozen parameters of modules, and can be looked at where they lie.

    Args:
        states: what `capture_states` returned.
        entries: the tensors that it refers to. One that does not lie in row-major order would have to be copied to be
            digested, so it may as well be copied into the arena.
    """
    frozen: set[str] = set()
    changing: set[str] = set()
    for state in states.values():
        if state["kind"] != "module" or not state["frozen"]:
            continue
        names = set(state["frozen"])
        for key, value in state["entries"]:
            if type(value) is dict and "tensor" in value:
                (frozen if key in names else changing).add(value["tensor"][0])
    # Of a memory that two parameters share, one may be trained.
    return {name for name in frozen - changing if entries[name].is_contiguous()}


def frozen_digests(
    entries: Mapping[str, torch.Tensor], names: AbstractSet[str]
) -> dict[str, tuple[str, ...]]:
    """Digest those of the named tensors that lie on the CPU."""
    here = [name for name in entries if name in names and entries[name].device.type == "cpu"]
    return dict(zip(here, chunk_digests([entries[name] for name in here]), strict=True))


def frozen_prints(entries: Mapping[str, torch.Tensor], names: AbstractSet[str]) -> dict[str, Print]:
    """Fingerprint those of the named tensors that lie on a GPU, where they are."""
    there = [name for name in entries if name in names and entries[name].device.type == "cuda"]
    return dict(zip(there, fingerprints([entries[name] for name in there]), strict=True))


def digest_copies(layout: Layout, targets: Sequence[torch.Tensor], prints: Prints) -> Layout:
    """Note the digests of what was copied from a GPU, which cannot take them: they are read off the copies."""
    copied = [
        index
        for index, box in enumerate(layout.placed)
        if box.name in prints and box.at != UNCOPIED and box.digests is None
    ]
    boxes = list(layout.placed)
    for index, own in zip(copied, chunk_digests([targets[index] for index in copied]), strict=True):
        boxes[index] = msgspec.structs.replace(boxes[index], digests=own)
    return replace(layout, placed=tuple(boxes))


def mark(
    layout: Layout, digests: Digests, prints: Prints, lasting: AbstractSet[str], base: Stored | None
) -> Layout:
    """Note each box's digests, and leave uncopied what `base` holds to the bit.

    Args:
        layout: of this snapshot.
        digests: of live tensors, taken at this safe point.
        prints: of live tensors whose digests cannot be taken; one that is what it was when `base` was copied stands for
            the digests of that copy.
        lasting: names of those that may be left uncopied.
        base: what the checkpoint holds that the snapshot will name; None: copy everything.
    """
    known: Digests = base.digests if base is not None else {}
    boxes = list(layout.placed)
    for index, box in enumerate(boxes):
        own = digests.get(box.name)
        if own is None and base is not None and prints.get(box.name, ()) == base.prints.get(box.name):
            own = known.get(box.name)
        if own is None:
            continue
        same = bool(own) and box.name in lasting and known.get(box.name) == own
        boxes[index] = msgspec.structs.replace(box, at=UNCOPIED if same else box.at, digests=own)
    return replace(layout, placed=tuple(boxes))
