"""Open a run: ask the agent what is saved, check that it fits, and put it into the live objects."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from outlast._say import say
from outlast._types import Guarantee, Json
from outlast.agent.link import Link
from outlast.agent.protocol import Offer
from outlast.data.source import Source
from outlast.state.homes import Homes, make_homes, references
from outlast.state.module import FLAG
from outlast.state.restore import Differing, check_fit, differing, restore_states
from outlast.state.rng import restore_rng
from outlast.state.settings import differences
from outlast.state.steps import StepWatch
from outlast.state.tree import decode
from outlast.trainer.reading import Reading
from outlast.trainer.vars import Vars, values_of


@dataclass
class Promise:
    """What a resume promises so far: the weakest of its parts, each with its reason."""

    guarantee: Guarantee = Guarantee.BIT_EXACT
    reasons: list[str] = field(default_factory=list)

    def weaken(self, guarantee: Guarantee, reason: str) -> None:
        """Lower the promise to `guarantee`, if it is higher."""
        if guarantee < Guarantee.BIT_EXACT:
            self.reasons.append(reason)
        self.guarantee = min(self.guarantee, guarantee)

    def text(self) -> str:
        """For people: the name, and why."""
        why = (
            "; ".join(self.reasons)
            if self.reasons
            else "all state, the data position and every generator are restored"
        )
        return f"{self.guarantee.label} ({why})"


@dataclass
class Resumed:
    """What came back, beside what now is in the live objects.

    Attributes:
        tensors: those of generators, of plain values and of the data's position; they stay as they were saved.
        grads: those that became gradients.
    """

    checkpoint: str
    step: int
    finished: bool
    position: dict[str, Json]
    settings: dict[str, Json]
    variables: dict[str, object]
    source_position: object
    tree: Json
    tensors: dict[str, torch.Tensor]
    grads: dict[str, torch.Tensor]
    reading: Reading
    promise: Promise
    announced: bool = False

    @property
    def in_epoch(self) -> bool:
        """Whether the save lies within an epoch's batches, or in its tail, so that the epoch's head runs again."""
        return self.position["batches"] is not None or bool(self.position["tail_open"])

    def release(self) -> None:
        """Give the memory back: the loop has begun, nothing is put back any more."""
        self.announced = True
        self.tensors, self.grads = {}, {}


def open_run(
    link: Link, states: Mapping[str, object], watch: StepWatch, settings: dict[str, Json]
) -> tuple[Resumed | None, Offer]:
    """Resume from the newest whole checkpoint that the agent offers, or start afresh.

    Raises:
        StateMismatch: what is saved does not fit; nothing has been changed, neither here nor on the store.
        OutlastError: whatever else the agent refuses with.
    """
    offer = link.offer()
    while True:
        for note in offer.notes:
            say(f"damaged, not used: {note}")
        if offer.checkpoint is None:
            older = Reading(link, "", ()).accept(Homes({}, ()))
            if older is None:
                return None, offer
        else:
            check_fit(
                states, offer.tree["states"], offer.tensors, f"{offer.run_id} ({offer.checkpoint})", offer.url
            )
            reading = Reading(link, offer.checkpoint, offer.tensors)
            homes = make_homes(states, offer.tree, offer.tensors)
            older = reading.accept(homes)
            if older is None:
                return _restore(offer, reading, homes, states, watch=watch, settings=settings), offer
        offer = older


def put_back(
    resumed: Resumed, states: Mapping[str, object], watch: StepWatch, variables: Vars, *, after: str
) -> None:
    """Undo what the script did to restored state before its loop went on: the save holds what came of that already."""
    tree = resumed.tree
    changed = differing(states, tree["states"], resumed.reading.same)
    if changed.lines:
        more = f", and {len(changed.lines) - 1} more entries" if len(changed.lines) > 1 else ""
        say(
            f"{after} changed what was restored; put back as saved: {changed.lines[0].partition(': ')[0]}{more}"
        )
        _restore_again(resumed, {name: states[name] for name in states if name in changed.states}, changed)
    _put_back_grads(resumed, watch)
    values_of(variables).update(decode(tree["vars"], resumed.tensors))


def compare_data(resumed: Resumed, source: Source) -> None:
    """Name what changed about the data since the save, and lower the promise to what their source can keep."""
    was = resumed.settings.get("data") or {}
    now = source.describe() if was else {}
    for difference in differences(was, now):
        what = f"{difference.name} of the data: {difference.old!r} -> {difference.new!r}"
        say(f"changed since the last attempt: {what}")
        resumed.promise.weaken(Guarantee.SAME_ORDER, what)
    resumed.promise.weaken(*source.guarantee)


def _restore(
    offer: Offer,
    reading: Reading,
    homes: Homes,
    states: Mapping[str, object],
    *,
    watch: StepWatch,
    settings: dict[str, Json],
) -> Resumed:
    assert offer.checkpoint is not None
    promise = Promise()
    tree = offer.tree
    kept = _kept(homes, [tree[name] for name in ("rng", "vars", "source", "head")])
    grads = _kept(homes, tree["grads"])
    notes = restore_states(states, tree["states"], homes)
    notes += differing(states, tree["states"], reading.same).lines
    flags = [note.removeprefix(FLAG) for note in notes if note.startswith(FLAG)]
    if flags:
        more = f", and {len(flags) - 1} more flags" if len(flags) > 1 else ""
        say(f"set back as saved: {flags[0]}{more}")
    for note in notes:
        if not note.startswith(FLAG):
            promise.weaken(Guarantee.APPROXIMATE, note)
    watch.restore(tree["grads"], grads)
    saved = {
        name: value for name, value in offer.settings.items() if name != "data"
    }  # compared when it is read
    for difference in differences(saved, settings):
        held = difference.name.partition(".")[0].partition("[")[0] in states
        told = "; the saved state holds, not the script's new value" if held else ""
        say(
            f"changed since the last attempt: {difference.name}: {difference.old!r} -> {difference.new!r}{told}"
        )
        if difference.breaks_bits:
            promise.weaken(
                Guarantee.SAME_ORDER, f"{difference.name} was {difference.old!r}, is {difference.new!r}"
            )
    for note in restore_rng(tree["rng"], kept):
        promise.weaken(Guarantee.SAME_ORDER, note)
    variables = decode(tree["vars"], kept)
    assert isinstance(variables, dict)
    return Resumed(
        checkpoint=offer.checkpoint,
        step=offer.step,
        finished=offer.finished,
        position=offer.position,
        settings=offer.settings,
        variables=variables,
        source_position=decode(tree["source"], kept),
        tree=tree,
        tensors=kept,
        grads=grads,
        reading=reading,
        promise=promise,
    )


def _kept(homes: Homes, trees: Json) -> dict[str, torch.Tensor]:
    """The tensors of some trees, as they were read, whatever becomes of the states."""
    given = homes.give(trees)
    return {
        name: given[name] if name in given else homes.tensors[name].clone() for name, _ in references(trees)
    }


def _restore_again(resumed: Resumed, states: Mapping[str, object], changed: Differing) -> None:
    """Restore some states once more; what still holds its bits is not read again."""
    tree = {"states": {name: resumed.tree["states"][name] for name in states}}
    names = {name: None for name, _ in references(tree)}
    homes = make_homes(
        states,
        tree,
        resumed.reading.records({name: None for name in names if name not in changed.same}),
    )
    resumed.reading.again(homes)
    still = {name: changed.same[name] for name in names if name in changed.same}
    # An optimizer takes its own tensors back; what others hold as well is copied.
    shared = {
        name
        for state, saved in resumed.tree["states"].items()
        if saved["kind"] != "optimizer" or state not in states
        for name, _ in references(saved)
    }
    restore_states(
        states, tree["states"], Homes({**homes.tensors, **still}, homes.live | (still.keys() & shared))
    )


def _put_back_grads(resumed: Resumed, watch: StepWatch) -> None:
    grads = resumed.grads
    same = resumed.reading.same(list(grads.items()))
    changed = {name: None for (name, _), is_same in zip(grads.items(), same, strict=True) if not is_same}
    if changed:
        homes = make_homes(
            {}, {"states": {}, "grads": resumed.tree["grads"]}, resumed.reading.records(changed)
        )
        resumed.reading.again(homes)
        grads |= homes.tensors
    watch.restore(resumed.tree["grads"], grads)
