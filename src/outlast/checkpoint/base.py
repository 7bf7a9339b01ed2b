"""What is durable already: chunks that a save refers to instead of writing them again (DESIGN.md rule 6)."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from outlast.checkpoint.manifest import CheckpointId, Chunk, Manifest

Content: TypeAlias = tuple[str, int]
"""What a chunk holds: its digest and its size in bytes. Equal contents are equal bytes."""


@dataclass(frozen=True)
class Base:
    """A durable checkpoint, by what its chunks hold.

    Attributes:
        name: the checkpoint's.
        saves_since_full: see `Manifest`.
        full_utc: see `Manifest`.
        chunks: where each content lies.
    """

    name: str
    saves_since_full: int
    full_utc: str
    chunks: Mapping[Content, Chunk]


def base_of(
    id: CheckpointId,  # noqa: A002 - the field's name
    manifests: Sequence[Manifest],
    without: Collection[Chunk] = (),
) -> Base:
    """Return a committed checkpoint as a base.

    Args:
        id: the checkpoint's.
        manifests: at least one of its manifests; only what they name can be referred to.
        without: chunks that were found damaged: what they held is written anew.
    """
    chunks = {
        (chunk.digest, chunk.nbytes): chunk
        for manifest in manifests
        for tensor in manifest.tensors
        for held in tensor.slices
        for chunk in held.chunks
        if chunk not in without
    }
    return Base(
        id.name,
        max(manifest.saves_since_full for manifest in manifests),
        min(manifest.full_utc for manifest in manifests),
        chunks,
    )


def find(bases: Iterable[Base], content: Content) -> Chunk | None:
    """Return the first base's chunk that holds this; None if none does."""
    return next((chunk for base in bases if (chunk := base.chunks.get(content))), None)
