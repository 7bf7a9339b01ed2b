"""Whatever the loader, an interrupted epoch goes on where it stopped."""

from __future__ import annotations

import json
import time
from functools import cache

import numpy as np
import pytest
import torch
from data_sets import LOADERS, Backwards, Counting, Plain, Remembering, Streaming, equal, states
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset, DistributedSampler, RandomSampler, SequentialSampler
from torchdata.stateful_dataloader import StatefulDataLoader

import outlast
from outlast import ConfigError, DataChanged, Guarantee
from outlast.data.source import take_over

# torchdata 0.11 calls a function that torch 2.13 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")

EXACT = {name: Guarantee.BIT_EXACT for name in LOADERS} | {
    "sampler with a state": Guarantee.SAME_ORDER,
    "torchdata": Guarantee.SAME_ORDER,
    "iterable": Guarantee.SAME_ORDER,
    "lists of indices": Guarantee.BIT_EXACT,
}


def through(make, cuts, epochs):
    """Batches of some epochs, each cut after so many batches; a new loader and source after each cut."""
    seen, position = [], None
    for epoch in range(epochs):
        for cut in [*cuts, None]:
            source = take_over(make(), seed=3)
            batches = source.begin(epoch, position)
            while cut is None or source.batches_done < cut:
                batch = next(batches, None)
                if batch is None:
                    break
                seen.append(batch)
            position = source.position()
            del batches
        assert list(take_over(make(), seed=3).begin(epoch, position)) == [], "an epoch that ended goes on"
    return seen


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("name", LOADERS)
def test_resumed_twice_in_each_epoch(name, batch):
    """Cut after 3 and again after 30 batches, two epochs give the same batches as undisturbed (KempnerForge 57)."""
    source = take_over(LOADERS[name](0, batch), seed=3)
    whole = [each for epoch in range(2) for each in source.begin(epoch, None)]
    assert len(whole) >= 70
    assert equal(through(lambda: LOADERS[name](0, batch), [3, 30], 2), whole)


@pytest.mark.parametrize("name", LOADERS)
def test_resumed_with_workers(name):
    """With two workers, which prefetch, a cut after 30 of about 40 batches loses and repeats none."""

    def make():
        return LOADERS[name](2, 4)

    source = take_over(make(), seed=3)
    batches = source.begin(1, None)
    first = [next(batches) for _ in range(30)]
    position = source.position()
    rest = list(batches)
    resumed = take_over(make(), seed=3)
    assert equal(list(resumed.begin(1, position)), rest)
    assert len(first + rest) >= 35
    assert resumed.guarantee[0] == EXACT[name], resumed.guarantee
    assert resumed.batches_done == source.batches_done == 30 + len(rest)
    assert resumed.samples_done == source.samples_done
    # and the epoch after it is that of a run which was never cut
    assert equal(list(resumed.begin(2, None)), list(source.begin(2, None)))


@pytest.mark.parametrize("name", LOADERS)
def test_at_the_very_end(name):
    """A position after an epoch's last batch, taken before or after the loop saw the end, resumes to no batch, and then to
    the whole next epoch (torchdata 1437, datasets 7447)."""

    def make():
        return LOADERS[name](0, 4)

    source = take_over(make(), seed=3)
    batches = source.begin(0, None)
    count = len(list(take_over(make(), seed=3).begin(0, None)))
    for _ in range(count):
        next(batches)
    before_end = source.position()
    assert next(batches, None) is None
    after_end = source.position()
    following = list(source.begin(1, None))
    for position in (before_end, after_end):
        resumed = take_over(make(), seed=3)
        assert list(resumed.begin(0, position)) == []
        assert resumed.batches_done == count
        again = resumed.position()
        assert equal(list(resumed.begin(1, None)), following)
        twice = take_over(make(), seed=3)
        assert list(twice.begin(0, again)) == []
        assert equal(list(twice.begin(1, None)), following)


@given(st.integers(0, 60), st.integers(1, 12), st.integers(0, 70), st.integers(1, 12), st.booleans())
@settings(max_examples=80, deadline=None)
def test_any_position_any_batch_size(length, batch, cut, then, drop_last):
    """Going on with another batch size repeats no sample and skips none."""
    source = take_over(outlast.DataLoader(Plain(length), batch, shuffle=True, drop_last=drop_last), seed=1)
    batches = source.begin(0, None)
    seen = [each for _, each in zip(range(cut), batches, strict=False)]
    position = json.loads(json.dumps(source.position()))
    resumed = take_over(outlast.DataLoader(Plain(length), then, shuffle=True), seed=1)
    seen += list(resumed.begin(0, position))
    if drop_last and cut * batch >= length - batch + 1:
        return
    assert sorted(torch.cat(seen).tolist() if seen else []) == list(range(length))
    changed = then != batch
    assert any("batch" in note for note in resumed.notes) or not changed
    assert resumed.guarantee[0] == (Guarantee.SAME_ORDER if changed else Guarantee.BIT_EXACT)


@given(st.integers(1, 90), st.integers(1, 5), st.integers(1, 4), st.booleans())
@settings(max_examples=80, deadline=None)
def test_ranks_share_an_epoch(length, batch, world_size, drop_last):
    """Ranks take as many steps as each other, and together every sample, in the order of a single rank."""

    def make():
        return outlast.DataLoader(Plain(length), batch, shuffle=True, drop_last=drop_last)

    parts = [
        list(take_over(make(), seed=1, rank=r, world_size=world_size).begin(0, None))
        for r in range(world_size)
    ]
    assert len({len(part) for part in parts}) == 1
    assert len(parts[0]) == len(take_over(make(), seed=1, world_size=world_size))
    together = (
        torch.cat([each for step in zip(*parts, strict=True) for each in step])
        if parts[0]
        else torch.empty(0)
    )
    alone = torch.cat(
        list(take_over(outlast.DataLoader(Plain(length), 1, shuffle=True), seed=1).begin(0, None))
    )
    whole = length // (batch * world_size) * batch * world_size if drop_last else length
    assert torch.equal(together[:whole], alone[:whole])
    assert len(together) - whole < world_size


def test_saved_on_two_ranks_resumed_on_three():
    """The position counts the samples of all ranks, so another number of ranks goes on in the same order."""

    def make(batch):
        return outlast.DataLoader(Plain(120), batch, shuffle=True)

    pair = [take_over(make(6), seed=1, rank=rank, world_size=2) for rank in range(2)]
    begun = [source.begin(0, None) for source in pair]
    seen = [next(batches) for _ in range(3) for batches in begun]
    assert pair[0].position() == pair[1].position()
    three = [take_over(make(4), seed=1, rank=rank, world_size=3) for rank in range(3)]
    rest = [list(source.begin(0, pair[0].position())) for source in three]
    seen += [each for step in zip(*rest, strict=True) for each in step]
    assert torch.equal(torch.cat(seen), torch.cat(list(take_over(make(1), seed=1).begin(0, None))))
    assert three[0].guarantee[0] == Guarantee.BIT_EXACT


def test_distributed_sampler_is_replaced():
    """Its ranks' parts are disjoint and whole, and set_epoch is harmless."""
    parts = []
    for rank in range(2):
        sampler = DistributedSampler(Plain(40), num_replicas=2, rank=rank, shuffle=True)
        source = take_over(DataLoader(Plain(40), 4, sampler=sampler), seed=1)
        sampler.set_epoch(7)
        parts.append(torch.cat(list(source.begin(0, None))))
        assert "DistributedSampler" in source.notes[0]
    assert sorted(torch.cat(parts).tolist()) == list(range(40))


def test_epochs_are_shuffled_differently():
    """No epoch repeats another's shuffle, also after a resume (pytorch-lightning 21938)."""
    orders = {
        tuple(torch.cat(list(take_over(LOADERS["shuffled"](0, 4), seed=3).begin(e, None)))[:, 0].tolist())
        for e in range(5)
    }
    assert len(orders) == 5


@pytest.mark.parametrize("workers", [0, 2])
def test_sample_one_million_of_ten(workers):
    """Position 1,000,000 of 10,000,000 is reached in a second, and fetches nothing before it."""

    class Huge(Plain):
        def __getitem__(self, index):
            return super().__getitem__(index)

    position = {
        **take_over(outlast.DataLoader(Plain(10_000_000), 100, shuffle=True), seed=1).position(),
        "batches": 10_000,
        "samples": 1_000_000,
        "step": 100,
    }
    source = take_over(DataLoader(Huge(10_000_000), 100, shuffle=True, num_workers=workers), seed=1)
    started = time.perf_counter()
    batches = source.begin(0, position)
    next(batches)
    assert time.perf_counter() - started <= 1
    assert source.batches_done == 10_001
    assert source.samples_done == 1_000_100


CHANGES = {
    "length": lambda: outlast.DataLoader(Plain(101), 4, shuffle=True),
    "shuffle": lambda: outlast.DataLoader(Plain(100), 4),
    "seed": lambda: outlast.DataLoader(Plain(100), 4, shuffle=True, seed=9),
    "kind": lambda: DataLoader(Plain(100), 4, sampler=Backwards(Plain(100))),
}


@pytest.mark.parametrize("what", CHANGES)
def test_changed_data_are_refused(what, monkeypatch):
    """Data that changed in the middle of an epoch are refused, naming both values and the override, which goes on."""
    source = take_over(outlast.DataLoader(Plain(100), 4, shuffle=True), seed=1)
    next(source.begin(0, None))
    position = source.position()
    with pytest.raises(DataChanged, match=rf"{what} was .* and is .*OUTLAST_ACCEPT_DATA_CHANGE=1"):
        take_over(CHANGES[what](), seed=1).begin(0, position)
    monkeypatch.setenv("OUTLAST_ACCEPT_DATA_CHANGE", "1")
    changed = take_over(CHANGES[what](), seed=1)
    assert len(list(changed.begin(0, position))) == len(changed) - 1
    assert changed.guarantee[0] == Guarantee.APPROXIMATE
    # a new epoch is nobody's middle
    take_over(CHANGES[what](), seed=1).begin(1, None)


@pytest.mark.parametrize("then", LOADERS)
@pytest.mark.parametrize("cut", [1, None])
def test_another_loader_in_another_epoch(then, cut):
    """What any other loader left, in the middle or at the end of the epoch before, starts this one's epoch at its start; in
    the middle of the same epoch it is refused."""

    @cache
    def left_by(name, data):
        source = take_over(data or LOADERS[name](2, 4), seed=3)
        batches = source.begin(4, None)
        for _ in range(cut or 10_000):
            if next(batches, None) is None:
                break
        return source.position()

    expected = list(take_over(LOADERS[then](0, 4), seed=3).begin(5, None))
    others = {
        name: None for name in ("shuffled", "user's sampler", "sampler with a state", "torchdata", "list")
    }
    others |= {"shorter": StatefulDataLoader(Plain(40), 4, shuffle=True)}
    others |= {"shorter sampler": DataLoader(Plain(40), 4, sampler=Remembering(40))}
    for name, data in others.items():
        if name == then:
            continue
        position = left_by(name, data)
        source = take_over(LOADERS[then](0, 4), seed=3)
        assert equal(list(source.begin(5, position)), expected), name
        if position["data"]["kind"] != source.describe()["kind"]:
            with pytest.raises(DataChanged, match="kind was"):
                take_over(LOADERS[then](0, 4), seed=3).begin(4, position)


def test_replay_that_differs_is_said():
    """An iterable that gives other batches the second time resumes, and promises no more than `approximate`."""

    class Moody(Streaming):
        def __iter__(self):
            yield from (torch.tensor(np.random.default_rng().random()) for _ in range(10))

    source = take_over(Moody(), seed=1)
    batches = source.begin(0, None)
    next(batches), next(batches)
    resumed = take_over(Moody(), seed=1)
    assert len(list(resumed.begin(0, source.position()))) == 8
    assert resumed.guarantee[0] == Guarantee.APPROXIMATE
    assert "gave another batch 1 than the first time" in resumed.notes[-1]
    assert "replayed 2 batches" in resumed.notes[-2]


def test_a_stateful_loader_over_a_stateless_iterable_promises_less():
    """torchdata skips wrongly at an epoch's second resume where an iterable data set has no state: `approximate`, said so;
    one with a state keeps `same-order`."""

    class Kept(Streaming):
        def state_dict(self):
            return {}

        def load_state_dict(self, state):
            pass

    promise, reason = take_over(StatefulDataLoader(Streaming(), 4), seed=1).guarantee
    assert promise == Guarantee.APPROXIMATE
    assert "Streaming has no state_dict" in reason
    assert take_over(StatefulDataLoader(Kept(), 4), seed=1).guarantee[0] == Guarantee.SAME_ORDER


def test_a_shorter_replay_is_refused():
    """An iterable that ends before the saved position is an error that names both."""
    source = take_over((torch.tensor(i) for i in range(5)), seed=1)
    list(source.begin(0, None))
    with pytest.raises(DataChanged, match="ended after 3 batches, and the saved position is after 5"):
        take_over((torch.tensor(i) for i in range(3)), seed=1).begin(0, source.position())


def test_an_iterator_lasts_one_epoch():
    """A generator resumes by skipping in a fresh one; a second epoch of it would be empty, and is refused."""

    def make():
        return (torch.rand(2) for _ in range(6))

    source = take_over(make(), seed=1)
    batches = source.begin(0, None)
    head = [next(batches) for _ in range(2)]
    resumed = take_over(make(), seed=1)
    assert equal(list(resumed.begin(0, source.position())), list(batches))
    assert len(head) == 2
    with pytest.raises(ConfigError, match="can be used once"):
        resumed.begin(1, None)


def test_a_sampler_that_draws_otherwise_is_said():
    """A sampler that cannot be created anew resumes, and promises no more than `approximate`."""

    class Moody(Backwards):
        def __iter__(self):
            yield from np.random.default_rng().permutation(len(self.dataset)).tolist()

        def __len__(self):
            return len(self.dataset)

    def make():
        return take_over(DataLoader(Plain(1000), 4, sampler=Moody(Plain(1000))), seed=1)

    source = make()
    batches = source.begin(0, None)
    next(batches), next(batches)
    resumed = make()
    assert len(list(resumed.begin(0, source.position()))) == 248
    assert resumed.guarantee[0] == Guarantee.APPROXIMATE
    assert "drew other indices" in resumed.notes[-1]


@pytest.mark.parametrize("name", ["counting sampler", "shuffling in place"])
@pytest.mark.parametrize("breaks", [None, 20])
def test_a_sampler_that_depends_on_earlier_epochs(name, breaks):
    """It is made to draw the epochs before, also ones that were left early, and then gives the order of an undisturbed run."""

    def make():
        return take_over(LOADERS[name](2, 4), seed=3)

    def epoch_of(source, epoch, position=None):
        batches = source.begin(epoch, position)
        return [batch for _, batch in zip(range(breaks or 10_000), batches, strict=False)]

    undisturbed, position = make(), None
    for epoch in range(5):
        expected, resumed = epoch_of(undisturbed, epoch, position), make()
        assert equal(epoch_of(resumed, epoch, position), expected)
        assert resumed.guarantee[0] == Guarantee.BIT_EXACT
        assert ("those of earlier epochs" in resumed.notes[-1]) == (epoch > 0)
        position = json.loads(json.dumps(undisturbed.position()))
        assert resumed.position() == position
    assert len(position["past"]["spans"]) == 1, "like epochs are kept as one"


def test_a_past_that_cannot_be_drawn_again_promises_less(monkeypatch):
    """Where the past is too long, unknown, of another loader in between, or comes out otherwise, the promise is lower and
    names the sampler; a sampler that is told its epoch, and torch's own, need no past."""

    def make(kind=Counting):
        return take_over(DataLoader(Plain(40), 4, sampler=kind(40)), seed=3)

    def left(kind=Counting, epochs=(0, 1)):
        source = make(kind)
        for epoch in epochs:
            list(source.begin(epoch, None))
        return source.position()

    def promise(position, kind=Counting):
        source = make(kind)
        next(source.begin(2, position))
        return source.guarantee

    class Told(Counting):
        def set_epoch(self, epoch):
            self.epoch = epoch

    class Moody(Counting):
        def __iter__(self):
            return iter(np.random.default_rng().permutation(40).tolist())

    assert promise(left())[0] == Guarantee.BIT_EXACT
    assert promise(left(Told), Told)[0] == Guarantee.BIT_EXACT
    assert left(Told)["past"] is None
    assert promise(left(Moody), Moody)[0] == Guarantee.APPROXIMATE
    gap = promise(left(epochs=(-1, 1)))
    foreign = promise(take_over(LOADERS["list"](0, 4), seed=3).position())
    monkeypatch.setattr("outlast.data.sampled._REPLAYED_DRAWS", 79)
    for lowered, reason in (gap, foreign, promise(left())):
        assert lowered == Guarantee.NO_REPEAT_NO_SKIP
        assert "Counting may depend on earlier epochs" in reason


def test_what_is_no_loader_is_refused():
    """An object that cannot be iterated is an error that says what would do."""
    with pytest.raises(ConfigError, match="cannot be iterated: expected a DataLoader"):
        take_over(17, seed=0)
    with pytest.raises(ConfigError, match="no order to enter"):
        outlast.DataLoader(Streaming(), 4)

    class NoLength(Dataset):
        def __getitem__(self, index):
            return index

    with pytest.raises(ConfigError, match="has no length"):
        outlast.DataLoader(NoLength(), 4)


def test_a_loader_by_itself():
    """Without a run, the n-th iteration is epoch n, and set_epoch chooses."""
    loader = outlast.DataLoader(Plain(20), 4, shuffle=True)
    first, second = list(loader), list(loader)
    assert len(loader) == len(first) == 5
    assert not equal(first, second)
    loader.set_epoch(1)
    assert equal(list(loader), second)
    assert equal(
        list(take_over(outlast.DataLoader(Plain(20), 4, shuffle=True), seed=0).begin(1, None)), second
    )


def test_the_known_samplers_are_known():
    """Full random and sequential samplers are Outlast's order; parts of a data set, or more than it, are not."""

    def kind(loader):
        return take_over(loader, seed=0).describe()["kind"]

    data = Plain(20)
    assert kind(DataLoader(data, 4, sampler=RandomSampler(data))) == "map"
    assert kind(DataLoader(data, 4, sampler=SequentialSampler(data))) == "map"
    assert kind(DataLoader(data, 4, sampler=SequentialSampler(range(10)))) == "sampler"
    assert kind(DataLoader(data, 4, sampler=RandomSampler(range(10)))) == "sampler"
    assert kind(DataLoader(data, 4, sampler=RandomSampler(data, num_samples=10))) == "sampler"


@pytest.mark.parametrize("name", LOADERS)
def test_descriptions_and_positions_are_plain(name):
    """What is recorded of a loader can be written as JSON (torchdata's state holds tensors besides)."""
    source = take_over(LOADERS[name](0, 4), seed=3)
    json.dumps(source.describe())
    next(source.begin(0, None))
    position = source.position()
    if name != "torchdata":
        json.dumps(position)
    states()
    assert position["batches"] == 1
