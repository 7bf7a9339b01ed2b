"""A sample's random numbers follow from (seed, epoch, index), and the trainer's generators never notice."""

from __future__ import annotations

import random
import threading

import numpy as np
import pytest
import torch
from data_sets import LOADERS, Drawing, Plain, equal, states
from torch.utils.data import DataLoader, TensorDataset, default_collate

import outlast
from outlast import Guarantee
from outlast.data import generators
from outlast.data.generators import Generators, NumpyInPlace, NumpySlowly, PythonInPlace, PythonSlowly, Stream
from outlast.data.source import take_over

pytestmark = [
    # torchdata 0.11 calls a function that torch 2.13 deprecates.
    pytest.mark.filterwarnings("ignore:'set_vital' is deprecated"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker processes"),
]


class Mixing:
    """A collate_fn that draws, as mixup does."""

    def __call__(self, samples):
        batch = default_collate(samples)
        return torch.cat([batch, torch.full((len(samples), 1), np.random.rand() + random.random())], dim=1)


class Whole(Drawing):
    """A data set that fetches a batch in one call, and counts the calls of either kind."""

    def __init__(self, length=150, draws=True):
        super().__init__(length)
        self.draws, self.whole, self.single = draws, 0, 0

    def __getitem__(self, index):
        self.single += 1
        return super().__getitem__(index) if self.draws else torch.tensor(index)

    def __getitems__(self, indices):
        self.whole += 1
        return [
            super(Whole, self).__getitem__(index) if self.draws else torch.tensor(index) for index in indices
        ]


def batches(dataset, batch_size, workers=0, epoch=1, seed=3, **more):
    loader = DataLoader(dataset, batch_size, shuffle=True, num_workers=workers, **more)
    return list(take_over(loader, seed=seed).begin(epoch, None))


@pytest.mark.parametrize("collate", [None, Mixing()], ids=["plain", "mixing"])
def test_the_same_for_any_number_of_workers(collate):
    """With 0, 2 and 4 workers, batches are the same bit for bit."""
    alone = batches(Drawing(60), 5, collate_fn=collate)
    for workers in (2, 4):
        assert equal(batches(Drawing(60), 5, workers, collate_fn=collate), alone)


def test_the_same_for_any_batch_size_and_any_start():
    """A sample is the same in a batch of 1, 7 or 30, in the first batch or after a resume, whatever the trainer drew."""
    by_index = {}
    for batch_size in (1, 7, 30):
        torch.manual_seed(batch_size), np.random.seed(batch_size), random.seed(batch_size)
        for batch in batches(Drawing(60), batch_size):
            for row in batch.tolist():
                assert by_index.setdefault(row[0], row) == row
    assert len(by_index) == 60


def test_the_same_when_a_worker_starts_in_the_middle():
    """Workers started at a resume give the samples that the first ones would have given."""
    whole = batches(Drawing(60), 4)
    source = take_over(DataLoader(Drawing(60), 4, shuffle=True, num_workers=2), seed=3)
    part = source.begin(1, None)
    next(part), next(part)
    position = source.position()
    del part
    assert equal(
        list(take_over(DataLoader(Drawing(60), 4, shuffle=True), seed=3).begin(1, position)), whole[2:]
    )


def test_numbers_are_random():
    """Over samples, epochs and seeds the numbers are uniform or normal, and no two samples share any."""
    rows = torch.cat([each for epoch in (0, 1) for each in batches(Drawing(1500), 50, epoch=epoch)])
    rows = torch.cat([rows, torch.cat(batches(Drawing(1500), 50, seed=4))]).numpy()
    for column in range(1, 4):
        assert len(np.unique(rows[:, column])) >= len(rows) - 2  # torch.rand has 24 bits
        counts = np.histogram(rows[:, column], bins=20, range=(0, 1))[0]
        assert ((counts - 225) ** 2 / 225).sum() < 19 + 5 * 38**0.5
    for column in range(4, 7):
        assert abs(rows[:, column].mean()) < 0.1
        assert abs(rows[:, column].std() - 1) < 0.1
    correlated = np.abs(np.corrcoef(rows[:, 1:].T) - np.eye(6))
    assert correlated.max() < 0.08
    in_order = rows[np.argsort(rows[:1500, 0])]
    assert np.abs([np.corrcoef(in_order[:-1, c], in_order[1:, c])[0, 1] for c in range(1, 7)]).max() < 0.12


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("name", LOADERS)
def test_the_trainers_generators_stay_as_they_are(name, workers):
    """Beginning, fetching, taking positions and resuming move no generator, halves of normal pairs included."""
    source = take_over(LOADERS[name](workers, 4), seed=3)
    resumed = take_over(LOADERS[name](workers, 4), seed=3)
    for leave_half in (False, True):
        torch.manual_seed(5), np.random.seed(5), random.seed(5)
        if leave_half:
            torch.randn(1), np.random.randn(), random.gauss(0, 1)
        before = states()
        assert (before[1][3], before[2][2] is not None) == (int(leave_half), leave_half)
        running = source.begin(0, None)
        for _ in range(5):
            next(running)
            assert states() == before
        position = source.position()
        assert states() == before
        del running
        next(resumed.begin(0, position))
        assert states() == before
        assert torch.initial_seed() == 5


def test_draws_that_only_use_up_a_half_pair_are_seen():
    """A data set that takes the trainer's second normal number, and so moves no state word, is noticed and seeded."""

    class Takes(Plain):
        def __getitem__(self, index):
            return torch.tensor([np.random.randn(), random.gauss(0, 1)])

    np.random.seed(1), random.seed(1)
    np.random.randn(), random.gauss(0, 1)
    before = states()
    with_half = batches(Takes(8), 1)
    assert states() == before
    np.random.seed(2), random.seed(2)
    assert equal(batches(Takes(8), 1), with_half)


def test_a_sample_that_fails_leaves_the_generators():
    """An exception out of the data set reaches the loop, and the generators are the trainer's again."""

    class Fails(Drawing):
        def __getitem__(self, index):
            sample = super().__getitem__(index)
            if self.length == 9:
                raise KeyError(index)
            return sample

    before = states()
    with pytest.raises(KeyError):
        batches(Fails(9), 3)
    assert states() == before


def test_data_that_draw_nothing_pay_for_no_seeding():
    """A data set that draws nothing is fetched once a batch, by its own __getitems__, and no generator is seeded."""
    data = Whole(60, draws=False)
    assert len(batches(data, 6)) == 10
    assert (data.whole, data.single) == (10, 0)


def test_data_that_draw_are_fetched_again_once():
    """The first batch that draws is fetched anew, sample by sample; later ones are fetched once."""
    data = Whole(60)
    batches(data, 6)
    assert data.whole <= 2
    assert data.single == 60

    class Late(Drawing):
        fetched = 0

        def __getitem__(self, index):
            Late.fetched += 1
            return super().__getitem__(index) if index % 10 == 9 else torch.zeros(7, dtype=torch.float64)

    late = torch.cat([each[each[:, 0] > 0] for each in batches(Late(60), 6)])
    assert 60 < Late.fetched <= 60 + 3 * 6
    full = torch.cat(batches(Drawing(60), 6))
    assert torch.equal(late, full[full[:, 0] % 10 == 9])


def test_each_generator_alone():
    """Data that draw from one generator give the same numbers as where all are drawn from."""

    class One(Drawing):
        def __getitem__(self, index):
            draw = (lambda: torch.rand(1).item(), np.random.rand, random.random)[self.which]
            return torch.tensor([index, draw()], dtype=torch.float64)

    everything = torch.cat(batches(Drawing(20), 4))
    for which in range(3):
        one = One(20)
        one.which = which
        assert torch.equal(torch.cat(batches(one, 4)), everything[:, [0, which + 1]])


def test_one_index_twice_in_an_epoch_draws_twice():
    """Drawing with replacement, a sample that comes again is augmented otherwise."""
    loader = DataLoader(
        Drawing(3), 1, sampler=torch.utils.data.RandomSampler(Drawing(3), replacement=True, num_samples=50)
    )
    rows = torch.cat(list(take_over(loader, seed=1).begin(0, None)))
    assert len(rows[:, 2].unique()) == 50


def test_a_generator_of_its_own_is_said():
    """A data set with a generator of its own is promised no more than its order, and the generator is named."""
    data = Drawing()
    data.noise = np.random.default_rng()
    promised, reason = take_over(outlast.DataLoader(data, 4), seed=0).guarantee
    assert promised == Guarantee.SAME_ORDER
    assert "noise" in reason
    assert (
        take_over(outlast.DataLoader(TensorDataset(torch.arange(3)), 4), seed=0).guarantee[0]
        == Guarantee.BIT_EXACT
    )


def test_memory_is_read_in_place_here():
    """On the interpreters and numpys that we test, the quick way to the states works (else this machine is slow)."""
    assert [type(each) for each in Generators().all[1:]] == [NumpyInPlace, PythonInPlace]


def test_both_ways_to_a_generator_agree(monkeypatch):
    """The public interface gives the same streams as memory read in place, saves, notices and restores as it does."""
    quick = Generators()
    monkeypatch.setattr(generators, "_numpy", NumpySlowly)
    monkeypatch.setattr(generators, "_python", PythonSlowly)
    slow = Generators()
    before, drawn = quick.save(), []
    for each in (quick, slow):
        saved = each.save()
        assert each.moved(saved) == 0
        each.seed([11, 12, 13])
        drawn.append([[torch.randn(1).item(), np.random.randn(), random.gauss(0, 1)] for _ in range(3)])
        assert each.moved(saved) == generators.TORCH | generators.NUMPY | generators.PYTHON
        each.restore(saved)
        assert each.moved(saved) == 0
    assert drawn[0] == drawn[1]
    assert quick.moved(before) == 0


def test_another_bit_generator_than_numpys_default():
    """After np.random.set_bit_generator, numpy's states are still saved, noticed and restored."""
    three = Generators()
    before = np.random.get_bit_generator()
    np.random.set_bit_generator(np.random.PCG64(1))
    try:
        saved = three.save()
        first = np.random.rand()
        assert three.moved(saved) == generators.NUMPY
        three.restore(saved)
        assert np.random.rand() == first
        assert equal(batches(Drawing(8), 2), batches(Drawing(8), 2))
    finally:
        np.random.set_bit_generator(before)


def test_a_stream_goes_on_where_its_state_was_taken():
    """A stream's numbers are its own, and its state brings them back, halves of normal pairs included."""

    def some(stream):
        with stream:
            return [torch.randn(1).item(), np.random.randn(), random.gauss(0, 1)]

    three = Generators()
    stream, other = Stream(three, [1, 2, 3]), Stream(three, [1, 2, 3])
    before = states()
    first = some(stream)
    assert first == some(other)
    state = stream.state()
    rest = [some(stream) for _ in range(2)]
    again = Stream(three, [7, 8, 9])
    again.load(state)
    assert [some(again) for _ in range(2)] == rest
    assert states() == before


def test_reading_from_a_thread():
    """A loop in another thread than the main one gets the same batches."""
    got = []
    thread = threading.Thread(target=lambda: got.extend(batches(Drawing(40), 5, 2)))
    thread.start()
    thread.join()
    assert equal(got, batches(Drawing(40), 5))
