"""Tensors are staged bit for bit."""

from __future__ import annotations

import random

import pytest
import torch
from torch import nn

from outlast._errors import UnsupportedValue
from outlast.snapshot import stager
from outlast.snapshot.arena import PAGE_BYTES, Arena
from outlast.state.bits import DTYPES
from staging import bits


def staged(entries):
    """Stage, and look at what is there."""
    placed = stager.layout(entries)
    arena = Arena.create(placed.size_bytes)
    stager.stage(entries, placed, arena)
    return placed, arena, {box.name: looked(box, arena) for box in placed.placed}


def looked(box, arena):
    """The bytes of a box, as what it says it holds."""
    data = torch.tensor(list(arena.view[box.at : box.at + box.nbytes]), dtype=torch.uint8)
    return data.view(DTYPES[box.dtype]).view(box.shape)


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.filterwarnings("ignore:ComplexHalf")
def test_every_dtype_and_bit_pattern_is_staged_exactly(name):
    """Random bits, so also nan payloads and signalling nans, in every layout."""
    dtype = DTYPES[name]
    raw = torch.randint(0, 2 if dtype is torch.bool else 256, (6 * 10 * dtype.itemsize,), dtype=torch.uint8)
    base = raw.view(dtype).view(6, 10)
    entries = {
        "plain": base,
        "transposed": base.t(),
        "strided": base[::2, 1::3],
        "expanded": base[0].expand(4, 10),
        "scalar": base[2, 3],
        "empty": base[:0],
    }
    placed, _, views = staged(entries)
    for key, tensor in entries.items():
        assert views[key].dtype is dtype and views[key].shape == tensor.shape
        rows = [element for row in tensor.reshape(-1, 1) for element in row]
        assert bits(views[key]) == b"".join(bits(element) for element in rows), key
    assert {box.dtype for box in placed.placed} == {name}


def test_lazy_conjugates_and_negatives_are_resolved():
    """The bytes are what the tensor says, not what its memory held."""
    z = torch.randn(5, dtype=torch.complex64)
    _, _, views = staged({"conj": z.conj(), "neg": z.conj().imag})
    assert bits(views["conj"]) == bits(z.conj().resolve_conj())
    assert bits(views["neg"]) == bits(-z.imag)


def test_boxes_do_not_overlap_and_large_ones_start_at_pages():
    """Direct I/O needs pages; small tensors share them."""
    placed, arena, _ = staged(
        {f"t{n}": torch.zeros(n, dtype=torch.uint8) for n in (1, 63, 65, 5000, 3, 4096)}
    )
    end = 0
    for box in placed.placed:
        assert box.at >= end and box.at % (PAGE_BYTES if box.nbytes >= PAGE_BYTES else 64) == 0
        end = box.at + box.nbytes
    assert placed.size_bytes == end <= arena.size_bytes


def test_staging_leaves_autograd_and_generators_alone():
    """A graph through the parameters still goes backward afterwards, and no random number is drawn."""
    model = nn.Linear(3, 2)
    loss = (model(torch.ones(1, 3)) ** 2).sum()
    before = random.getstate(), torch.get_rng_state()
    versions = [p._version for p in model.parameters()]
    staged(dict(model.named_parameters()))
    assert random.getstate() == before[0] and torch.equal(torch.get_rng_state(), before[1])
    assert [p._version for p in model.parameters()] == versions
    loss.backward()
    assert model.weight.grad is not None


def test_a_look_outlives_the_arena():
    """Its memory goes with the last one that looks at it: no crash."""
    placed, arena, _ = staged({"x": torch.arange(10)})
    (look,) = stager.looks(placed, arena)
    arena.close()
    assert look.tolist() == list(range(10))


# torch says it once in a process: whether here depends on the tests before.
@pytest.mark.filterwarnings("ignore:Sparse CSC tensor support is in beta state")
def test_what_has_no_bytes_of_its_own_is_refused_by_name():
    """Quantized, sub-byte, meta, sparse."""
    for tensor in (
        torch.empty(2, device="meta"),
        torch.eye(2).to_sparse_csc(),
        torch.empty(2, dtype=torch.uint4),
    ):
        with pytest.raises(UnsupportedValue, match="the/name"):
            stager.layout({"the/name": tensor})


@pytest.mark.gpu
def test_cuda_tensors_are_staged_exactly():
    """Also those whose values are still being computed when staging begins."""
    x = torch.randn(2048, 2048, device="cuda")
    for _ in range(50):
        x = x @ x / 45
    _, _, views = staged({"x": x.t()})
    assert bits(views["x"]) == bits(x.t().cpu())
