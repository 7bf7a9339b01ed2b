"""Digests of live tensors are those of their bytes in row-major order."""

from __future__ import annotations

import torch

from outlast.checkpoint.manifest import CHUNK_BYTES, digest
from outlast.snapshot.digests import chunk_digests
from staging import bits


def test_digests_are_those_of_the_bytes_by_chunk():
    """Of any strides, also where there is one element only; none for an empty tensor."""
    large = torch.arange(CHUNK_BYTES // 8 + 3)
    turned = torch.randn(300, 500).t()
    one = torch.randn(2, dtype=torch.float64)[::2]
    found = chunk_digests([large, turned, one, large[:0]])
    assert found == [
        (digest(bits(large[: CHUNK_BYTES // 8])), digest(bits(large[-3:]))),
        (digest(bits(turned)),),
        (digest(bits(one[0].clone())),),
        (),
    ]
