"""A fingerprint is the same wherever it is taken, and a change of any word changes it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from outlast.snapshot import prints
from outlast.snapshot.fingerprint import fingerprints, launch
from outlast.snapshot.prints import BLOCK_WORDS, CHUNK_BYTES, WORD_BYTES, fingerprint
from outlast.state.bits import DTYPES
from staging import bits

MASK = (1 << 64) - 1


def of_bytes(data: bytes):
    """The fingerprint of what lies in an arena."""
    return fingerprint(np.frombuffer(data, np.uint8))


def splitmix64(index: int) -> int:
    """In plain numbers; https://prng.di.unimi.it/splitmix64.c."""
    z = (index + 1) * 0x9E3779B97F4A7C15 & MASK
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & MASK
    z = (z ^ z >> 27) * 0x94D049BB133111EB & MASK
    return z ^ z >> 31


def by_definition(data: bytes) -> tuple[int, ...]:
    """The sum of word times odd number, in plain numbers."""
    found = []
    for start in range(0, len(data), CHUNK_BYTES):
        chunk = data[start : start + CHUNK_BYTES]
        total = 0
        for at in range(0, len(chunk), WORD_BYTES):
            word = int.from_bytes(chunk[at : at + WORD_BYTES].ljust(WORD_BYTES, b"\0"), "little", signed=True)
            index = at // WORD_BYTES
            odd = splitmix64(index % BLOCK_WORDS) | 1
            total += word * odd * (splitmix64(BLOCK_WORDS + index // BLOCK_WORDS) | 1)
        found.append(total & MASK)
    return tuple(found)


def unsigned(found):
    return tuple(value & MASK for value in found)


def random_bytes(size: int, seed: int = 0) -> bytes:
    return np.random.default_rng(seed).bytes(size)


@pytest.mark.parametrize("size", [0, 1, 4, 7, 4096, 4 * BLOCK_WORDS, 4 * BLOCK_WORDS + 9])
def test_it_is_what_it_is_said_to_be(size):
    """Held against the formula in plain numbers, for both halves."""
    data = random_bytes(size)
    tensor = (
        torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)
    )
    assert unsigned(of_bytes(data)) == by_definition(data)
    assert fingerprints([tensor]) == [of_bytes(data)]


@given(
    name=st.sampled_from(sorted(DTYPES)),
    shape=st.lists(st.integers(0, 37), max_size=3),
    order=st.permutations([0, 1, 2]),
    steps=st.lists(st.integers(1, 3), min_size=3, max_size=3),
    offset=st.integers(0, 5),
)
@pytest.mark.filterwarnings("ignore:ComplexHalf")
def test_both_halves_agree_on_every_dtype_shape_and_stride(name, shape, order, steps, offset):
    """Also where a tensor begins in the middle of a word of its memory: its bits in row-major order count."""
    dtype = DTYPES[name]
    count = int(np.prod(shape)) + offset
    raw = np.random.default_rng(count).integers(0, 2 if dtype is torch.bool else 256, count * dtype.itemsize)
    base = torch.from_numpy(raw.astype(np.uint8))
    base = base.view(dtype) if count else torch.empty(0, dtype=dtype)
    tensor = base[offset:].view(shape)
    tensor = tensor.permute([d for d in order if d < len(shape)])
    tensor = tensor[tuple(slice(None, None, step) for step in steps[: len(shape)])]
    assert fingerprints([tensor]) == [of_bytes(bits(tensor))]


def test_lazy_conjugates_and_negatives_are_resolved():
    """As staging resolves them."""
    z = torch.randn(50, dtype=torch.complex64)
    for tensor in (z.conj(), z.conj().imag):
        assert fingerprints([tensor]) == [of_bytes(bits(tensor))]


def test_chunks_are_told_apart():
    """One fingerprint for each 16 MiB, and one for what is left; many tensors in one launch keep their order."""
    data = random_bytes(2 * CHUNK_BYTES + 6)
    large = torch.frombuffer(bytearray(data), dtype=torch.int16)
    small = torch.arange(10)
    found = fingerprints([small, large, small[:0]])
    assert [len(one) for one in found] == [1, 3, 0]
    assert found == [of_bytes(bits(small)), of_bytes(data), ()]
    large[CHUNK_BYTES // 2 + 5] += 1
    changed = fingerprints([large])[0]
    assert [one == other for one, other in zip(changed, found[1], strict=True)] == [True, False, True]


@given(size=st.integers(1, 3000), bit=st.integers(0), seed=st.integers(0, 9))
@settings(deadline=None)
def test_a_change_of_any_word_is_seen(size, bit, seed):
    """One bit, at random; odd factors make this certain, not only likely."""
    data = bytearray(random_bytes(size, seed))
    before = of_bytes(data)
    bit %= size * 8
    data[bit // 8] ^= 1 << bit % 8
    assert of_bytes(data) != before


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.neg_(),
        lambda x: x[::2].neg_(),
        lambda x: x.mul_(-1).add_(0),
        lambda x: x.copy_(x.flip(0)),
        lambda x: x[:2].copy_(x[:2].flip(0).clone()),
        lambda x: x.copy_(x.roll(1)),
        lambda x: x.mul_(2),
        lambda x: x[2 * BLOCK_WORDS :].copy_(x[: x.numel() - 2 * BLOCK_WORDS].clone()),
    ],
    ids=["signs", "half the signs", "negated", "flipped", "swapped", "rolled", "doubled", "a block moved"],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.complex64])
def test_changes_that_cancel_out_in_a_plain_sum_are_seen(change, dtype):
    """Signs of an even number of values, swaps and moves: what scripts do to weights."""
    torch.manual_seed(0)
    x = torch.randn(4 * BLOCK_WORDS).to(dtype)
    before = fingerprints([x])
    change(x)
    assert fingerprints([x]) != before


def test_conjugating_in_place_is_seen():
    """Only sign bits at the top of each 64 bits change, an even number of them."""
    z = torch.randn(4096, dtype=torch.complex64)
    before = fingerprints([z])
    z.copy_(z.conj().resolve_conj())
    assert fingerprints([z]) != before


def test_the_factors_are_odd_and_all_different():
    """A factor that stands twice would leave a swap unseen."""
    words, blocks = prints.factors()
    assert (words % 2 != 0).all() and (blocks % 2 != 0).all()
    assert len(np.unique(words)) == BLOCK_WORDS and len(np.unique(blocks)) == prints.CHUNK_BLOCKS


def test_it_draws_no_random_numbers_and_leaves_autograd_alone():
    """It is taken in the middle of training."""
    weight = torch.nn.Parameter(torch.randn(100, 100))
    loss = (weight @ weight).sum()
    before = torch.get_rng_state(), weight._version
    launch([weight.detach()])
    assert torch.equal(torch.get_rng_state(), before[0]) and weight._version == before[1]
    loss.backward()


def test_a_default_device_of_the_script_makes_no_difference():
    """It is where the script's new tensors go, not ours."""
    x = torch.arange(100, dtype=torch.bfloat16)[1:]
    expected = fingerprints([x])
    with torch.device("meta"):
        assert fingerprints([x]) == expected
