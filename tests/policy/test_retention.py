"""Which checkpoints stay: each reason, and that nothing unread ever takes the place of what is known to be good."""

from __future__ import annotations

import dataclasses
import math

from hypothesis import given
from hypothesis import strategies as st

from outlast._types import Best, Keep, Reason
from outlast.policy.retention import Fact, best_of, staying

LOSS = Best("val_loss", "min")
ACCURACY = Best("accuracy", "max")


def fact(step: int, **changes: object) -> Fact:
    """A checkpoint of attempt 1, saved at `step` seconds, with every byte its own."""
    fields: dict[str, object] = {
        "name": f"c{step}",
        "order": (1, step, 0),
        "reason": Reason.INTERVAL,
        "pinned": False,
        "finished": False,
        "known": True,
        "saved_s": float(step),
        "full_s": float(step),
        "best": None,
    }
    return Fact(**(fields | changes))  # type: ignore[arg-type]


def steps(facts: list[Fact], keep: Keep | None = None) -> list[int]:
    stay = staying(facts, keep or Keep())
    return [each.order[1] for each in facts if each.name in stay]


def test_the_newest_stay() -> None:
    """`keep_last` of them; never fewer than two, whatever the order in which they are told."""
    facts = [fact(step) for step in range(10)]
    assert steps(facts) == steps(facts[::-1])[::-1] == [7, 8, 9]
    assert steps(facts, Keep(last=5)) == [5, 6, 7, 8, 9]
    assert steps(facts, Keep(last=1)) == [8, 9]
    assert steps(facts[:2], Keep(last=5)) == [0, 1]
    assert steps([]) == []


def test_a_newer_attempt_is_newer_whatever_its_step() -> None:
    """A run that went back to an older step goes on from there."""
    facts = [fact(step) for step in (10, 20, 30, 40)]
    facts += [fact(step, name=f"b{step}", order=(2, step, 0)) for step in (11, 12, 13)]
    assert steps(facts) == [11, 12, 13]


def test_pins_the_last_emergency_and_the_last_end_stay() -> None:
    """However old they are; an emergency checkpoint only until there is another."""
    facts = [fact(step) for step in range(20)]
    facts[1] = fact(1, reason=Reason.EMERGENCY)
    facts[3] = fact(3, reason=Reason.EMERGENCY)
    facts[5] = fact(5, pinned=True)
    facts[6] = fact(6, finished=True, reason=Reason.FINAL)
    facts[7] = fact(7, reason=Reason.FINAL)
    assert steps(facts) == [3, 5, 6, 17, 18, 19]


def test_the_first_of_each_span_stays() -> None:
    """By steps or by time."""
    facts = [fact(step) for step in range(3, 40, 4)]
    assert steps(facts, Keep(every_steps=10)) == [3, 11, 23, 31, 35, 39]
    assert steps(facts, Keep(every_s=20.0)) == [3, 23, 31, 35, 39]


def test_the_best_stays() -> None:
    """By its metric and mode; of equals the newest; what another metric or NaN says does not count."""
    losses = {2: 0.5, 4: 0.25, 6: 0.25, 8: 0.75}
    facts = [fact(step, best=(LOSS, losses[step]) if step in losses else None) for step in range(20)]
    facts[9] = fact(9, best=(ACCURACY, 0.01))
    facts[10] = fact(10, best=(LOSS, math.nan))
    assert steps(facts, Keep(best=LOSS)) == [6, 17, 18, 19]
    assert steps(facts, Keep(best=ACCURACY)) == [9, 17, 18, 19]
    assert steps(facts) == [17, 18, 19]
    assert best_of(facts, LOSS) == "c6"
    assert best_of(facts, Best("val_loss", "max")) is None


def test_the_one_before_the_last_full_save_stays_until_another() -> None:
    """It holds a second copy of what has not changed since. The full save itself may have gone long ago."""
    facts = [fact(step, full_s=10.0 * (step // 10)) for step in range(5, 30)]
    assert steps([each for each in facts if each.order[1] <= 19]) == [9, 17, 18, 19]
    assert steps([each for each in facts if each.order[1] in (9, 17, 18, 19)]) == [9, 17, 18, 19]
    assert steps([each for each in facts if each.order[1] in (9, 17, 18, 19, 20)]) == [18, 19, 20]
    assert steps(facts) == [19, 27, 28, 29]


def test_what_nobody_has_read_pushes_nothing_out() -> None:
    """Newer ones of unknown state leave every known one where it is."""
    known = [fact(step) for step in (1, 2, 3)]
    unread = [fact(step, known=False) for step in range(10, 30)]
    assert {1, 2, 3} <= set(steps(known + unread))


def test_what_nobody_has_read_goes_once_two_known_ones_are_newer() -> None:
    """After a resume the older ones stay until this attempt has saved; then they go one by one, not all at once."""
    unread = [fact(step, known=False) for step in (1, 2)]
    resumed = fact(3)
    assert steps([*unread, resumed]) == [1, 2, 3]
    assert steps([*unread, resumed, fact(4)]) == [2, 3, 4]
    assert steps([*unread, resumed, fact(4), fact(5)]) == [3, 4, 5]


def test_an_unread_one_that_stays_for_a_reason_does_not_replace_a_known_one() -> None:
    """The best, the last emergency, the first of a span: the best known one stays as well."""
    facts = [fact(step) for step in range(20)]
    facts[4] = fact(4, reason=Reason.EMERGENCY, best=(LOSS, 0.5))
    facts[6] = fact(6, reason=Reason.EMERGENCY, best=(LOSS, 0.1), known=False)
    assert steps(facts, Keep(best=LOSS)) == [4, 6, 17, 18, 19]


facts_lists = st.lists(
    st.builds(
        fact,
        st.integers(0, 60),
        reason=st.sampled_from(Reason),
        pinned=st.booleans(),
        finished=st.booleans(),
        known=st.booleans(),
        full_s=st.floats(0, 60),
        best=st.none() | st.tuples(st.just(LOSS), st.floats(allow_nan=True)),
    ),
    unique_by=lambda each: each.name,
)
keeps = st.builds(
    Keep,
    last=st.integers(1, 5),
    every_s=st.none() | st.floats(1, 30),
    every_steps=st.none(),
    best=st.none() | st.just(LOSS),
)


@given(facts_lists, keeps)
def test_whatever_is_there_the_newest_known_stay(facts: list[Fact], keep: Keep) -> None:
    """And so does what is pinned. Deciding again about what stayed lets nothing more of the known ones go."""
    stay = staying(facts, keep)
    known = sorted((each for each in facts if each.known), key=lambda each: each.order)
    assert {each.name for each in known[-max(2, keep.last) :]} <= stay
    assert {each.name for each in facts if each.pinned} <= stay
    left = [each for each in facts if each.name in stay]
    assert staying(left, keep) == stay


@given(facts_lists, facts_lists, keeps)
def test_unread_ones_never_shorten_the_known_that_stay(
    facts: list[Fact], others: list[Fact], keep: Keep
) -> None:
    """The known ones that stay are the same with any crowd of unread ones around them."""
    known = [dataclasses.replace(each, known=True) for each in facts]
    crowd = [dataclasses.replace(each, known=False, name=f"u{each.name}") for each in others]
    assert staying(known, keep) <= staying(known + crowd, keep)
