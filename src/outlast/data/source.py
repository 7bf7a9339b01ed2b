"""What a training loop gets its batches from, whatever the user's loader is.

`take_over` chooses: Outlast's own order where the loader's order is one that Outlast can give by position; the user's
sampler, created anew each epoch; a loader's own state; a sequence's index; or, for anything else, replay.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, TypeGuard

from torch.utils.data import DataLoader as TorchLoader
from torch.utils.data import IterableDataset

from outlast._errors import ConfigError, DataChanged
from outlast._types import Guarantee, Json

ACCEPT_CHANGE = "OUTLAST_ACCEPT_DATA_CHANGE"
"""Environment variable: set to 1, an epoch goes on although its data are not those of the save."""


class Source(Protocol):
    """Batches by epoch, from any position on.

    Attributes:
        notes: lines for the user's log: what was taken over, kept or replayed, and what that costs.
        guarantee: the best that this source can promise at a resume, with the reason.
        batches_done: number of the next batch in its epoch.
        samples_done: samples of the epoch handed out so far, on all ranks together; where a source cannot count
            samples, its batches.
    """

    notes: list[str]
    guarantee: tuple[Guarantee, str]
    batches_done: int
    samples_done: int

    def describe(self) -> dict[str, Json]:
        """Return what is recorded with a checkpoint and compared at the resume."""
        ...

    def __len__(self) -> int:
        """Return the batches of a whole epoch. Raises TypeError where that is not known."""
        ...

    def begin(self, epoch: int, position: Json | None) -> Iterator[Any]:
        """Start an epoch at a position of `position()`, or at its start; skipping is done when this returns.

        A position of another epoch is where that one was left: the epoch starts at its start, and a loader with a state of
        its own (which may count epochs) goes on from there. Where another loader left it, or one of other data, it says
        nothing about this one, and is not looked at.

        Raises:
            DataChanged: the position is one of other data.
        """
        ...

    def position(self) -> Json:
        """Return how to go on after the batch that was handed out last. Call it before the next is asked for."""
        ...


def take_over(loader: object, *, seed: int, rank: int = 0, world_size: int = 1) -> Source:
    """Choose how to iterate a loader such that it can be resumed.

    Args:
        loader: an `outlast.DataLoader`, a torch `DataLoader`, or anything that can be iterated.
        seed: the run's seed; an `outlast.DataLoader` may have one of its own.
        rank: this trainer's rank.
        world_size: ranks among which an epoch is divided.

    Raises:
        ConfigError: the object cannot be iterated.
    """
    from outlast.data.loader import DataLoader
    from outlast.data.replay import ReplaySource, SequenceSource
    from outlast.data.stateful import StatefulSource

    if isinstance(loader, DataLoader):
        return loader.source(seed=seed, rank=rank, world_size=world_size)
    if has_state(loader):
        return StatefulSource(loader, seed=seed, rank=rank)
    if _is_plain_map_loader(loader):
        from outlast.data.takeover import of_torch_loader

        return of_torch_loader(loader, seed=seed, rank=rank, world_size=world_size)
    if isinstance(loader, Sequence) and not isinstance(loader, (str, bytes)):
        return SequenceSource(loader)
    if not hasattr(loader, "__iter__"):
        msg = (
            f"{kind_of(loader)} cannot be iterated: expected a DataLoader, an outlast.DataLoader or another iterable of "
            "batches. Wrap a map-style data set: outlast.DataLoader(dataset, batch_size=...)"
        )
        raise ConfigError(msg)
    return ReplaySource(loader, seed=seed, rank=rank)


def check_position(position: Json, now: dict[str, Json]) -> bool:
    """Compare the data of a saved position with those of now; return whether they are the same.

    Args:
        position: of `Source.position`; its `data` says what it belongs to.
        now: the same entries, of the source that shall go on.

    Raises:
        DataChanged: they differ, and OUTLAST_ACCEPT_DATA_CHANGE=1 is not set.
    """
    saved = position["data"]
    differing = [name for name in now if saved.get(name) != now[name]]
    if not differing:
        return True
    if os.environ.get(ACCEPT_CHANGE) == "1":
        return False
    changes = ", ".join(f"{name} was {saved.get(name)!r} and is {now[name]!r}" for name in differing)
    msg = (
        f"the data changed in the middle of an epoch: {changes}. To go on at batch {position['batches']} would repeat "
        "samples or skip some. Bring the data back as they were, or accept that for the rest of this epoch: set "
        f"{ACCEPT_CHANGE}=1. Nothing that is saved was changed"
    )
    raise DataChanged(msg)


def is_own(position: Json, now: dict[str, Json]) -> bool:
    """Tell whether a position was left by a source of the same kind, loader and length: its state is good for no other.

    Arguments as in `check_position`. Another seed is no other loader.
    """
    saved = position.get("data") or {}
    return all(saved.get(name) == value for name, value in now.items() if name != "seed")


def has_state(thing: Any) -> bool:
    """Tell whether an object has a `state_dict` and a `load_state_dict`."""
    return callable(getattr(thing, "state_dict", None)) and callable(getattr(thing, "load_state_dict", None))


def forgotten_guarantee(thing: object) -> tuple[Guarantee, str]:
    """Return what an epoch can promise whose order may hang on earlier ones that are not known."""
    reason = (
        f"the order of {kind_of(thing)} may depend on earlier epochs, and what it did in them is not known here: the last one "
        "was read from another loader, or from other data"
    )
    return Guarantee.NO_REPEAT_NO_SKIP, reason


def kind_of(thing: object) -> str:
    """Name an object's class, e.g. `torch.utils.data.dataset.TensorDataset`."""
    return f"{type(thing).__module__}.{type(thing).__qualname__}"


def changed_guarantee() -> tuple[Guarantee, str]:
    """Return what an epoch can promise that goes on with other data."""
    return (
        Guarantee.APPROXIMATE,
        f"the data changed in the middle of an epoch, and {ACCEPT_CHANGE}=1 accepts that",
    )


def _is_plain_map_loader(loader: object) -> TypeGuard[TorchLoader[Any]]:
    if not isinstance(loader, TorchLoader):
        return False
    kind = type(loader)
    return (
        not isinstance(loader.dataset, IterableDataset)
        and kind.__iter__ is TorchLoader.__iter__
        and kind._get_iterator is TorchLoader._get_iterator  # noqa: SLF001  # a subclass that overrides it makes other batches
    )
