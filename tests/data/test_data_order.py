"""The order of an epoch is a good shuffle that any position can be asked of."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outlast.data.order import Order
from outlast.data.seeds import derive, mix, mix_array, triples


@given(
    st.one_of(
        st.integers(0, 300),
        st.integers(65_500, 65_600),
        st.sampled_from([131_071, 131_072, 131_073, 200_003]),
    ),
    st.integers(-(2**70), 2**70),
    st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None)
def test_every_index_comes_once(length, seed, epoch):
    """An epoch is an exact permutation, for every length, seed and epoch."""
    indices = Order(seed, epoch, length).indices(0, length)
    assert indices.dtype == np.int64
    assert np.array_equal(np.sort(indices), np.arange(length))


@given(st.sampled_from([1000, 100_003]), st.data())
@settings(max_examples=60, deadline=None)
def test_a_part_is_a_part_of_the_whole(length, data):
    """Positions asked for by themselves hold what they hold in the whole epoch."""
    start = data.draw(st.integers(0, length))
    stop = data.draw(st.integers(start, min(length, start + 500)))
    assert np.array_equal(
        Order(7, 3, length).indices(start, stop), Order(7, 3, length).indices(0, length)[start:stop]
    )


def test_sequential_is_sequential():
    """Without a shuffle, position p holds index p."""
    assert Order(1, 2, 50, shuffle=False).indices(10, 20).tolist() == list(range(10, 20))


def test_positions_outside_are_refused():
    """A position outside the epoch is an error, not another sample."""
    with pytest.raises(IndexError, match="within an epoch of 10"):
        Order(0, 0, 10).indices(5, 11)


@pytest.mark.parametrize("length", [40_000, 100_000, 1 << 17])
def test_the_shuffle_looks_random(length):
    """Where an index goes, how far neighbours are apart, and two epochs' agreement are as in a random permutation."""
    first, second = (Order(11, epoch, length).indices(0, length) for epoch in (0, 1))
    buckets = 40
    table = np.histogram2d(np.arange(length), first, bins=buckets)[0]
    expected = length / buckets**2
    chi_square = float(((table - expected) ** 2 / expected).sum())
    degrees = (buckets - 1) ** 2
    assert abs(chi_square - degrees) < 5 * (2 * degrees) ** 0.5
    for other in (np.roll(first, 1), np.roll(first, 2), np.roll(first, 64), second, np.arange(length)):
        assert abs(np.corrcoef(first, other)[0, 1]) < 5 / length**0.5
    # Fixed points and common places are Poisson with mean 1.
    assert (first == np.arange(length)).sum() < 10
    assert (first == second).sum() < 10
    # Differences of neighbours: no value stands out (their most frequent one would, in a weak network).
    assert np.bincount(np.diff(first) + length).max() < 15
    low_bits = np.bincount((first[:-1] & 7) * 8 + (first[1:] & 7), minlength=64)
    assert ((low_bits - length / 64) ** 2 / (length / 64)).sum() < 64 + 5 * 128**0.5


def test_small_permutations_are_all_as_likely():
    """All 24 orders of four samples come about equally often over seeds."""
    counts: dict[tuple[int, ...], int] = {}
    for seed in range(4800):
        order = tuple(Order(seed, 0, 4).indices(0, 4).tolist())
        counts[order] = counts.get(order, 0) + 1
    assert len(counts) == 24
    assert sum((count - 200) ** 2 / 200 for count in counts.values()) < 23 + 5 * 46**0.5


def test_a_position_in_ten_million_is_found_at_once():
    """Finding position 1,000,000 of 10,000,000 takes no walk through those before."""
    started = time.perf_counter()
    Order(0, 0, 10_000_000).indices(1_000_000, 1_000_512)
    assert time.perf_counter() - started < 0.5


@given(st.lists(st.integers(0, 2**63 - 1), max_size=40), st.integers(0, 2**64 - 1))
@settings(deadline=None)
def test_seeds_do_not_depend_on_how_many_are_asked_for(keys, base):
    """A sample's seeds are the same from a batch of one and from a batch of many, which are computed differently."""
    assert triples(base, keys) == [triples(base, [key])[0] for key in keys]
    assert mix_array(np.array(keys, dtype=np.uint64)).tolist() == [mix(key) for key in keys]


def test_seeds_differ():
    """Close parts, their order and their number all lead to other seeds."""
    parts = [
        (0,),
        (1,),
        (-1,),
        (0, 0),
        (0, 1),
        (1, 0),
        (2**64,),
        (2**64 + 1,),
        (-(2**64),),
        (5, 2**70),
        (5, 2**71),
    ]
    assert len({derive(*each) for each in parts}) == len(parts)
    seeds = np.array(triples(derive(3), range(100_000)))
    assert len(np.unique(seeds[:, 0])) > 99_990
    for bit in range(32):
        assert abs((seeds >> bit & 1).mean() - 0.5) < 0.01
    assert np.abs(np.corrcoef(seeds.T) - np.eye(3)).max() < 0.02
