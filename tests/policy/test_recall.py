"""What became of each notice, told from the ledger alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outlast.policy.recall import heard, recall

AT = 100
"""The step at which every notice here is heard."""

SAVES = {
    "emergency": ("save", {"reason": "emergency", "step": AT}),
    "flushed": ("save", {"reason": "emergency", "step": AT - 9}),
    "final": ("save", {"reason": "final", "step": AT}),
    "later": ("save", {"reason": "interval", "step": AT + 1}),
    "durable already": ("notice-outcome", {"durable": True}),
}
"""Records by which a notice has led to a durable save."""

NOISE = [
    ("save", {"reason": "interval", "step": AT}),
    ("save", {"reason": "user", "step": AT - 5}),
    ("notice-outcome", {"durable": False}),
    ("decision", {"what": "snapshot"}),
    ("notice-cancelled", {"source": "somebody else"}),
    ("alive", {}),
]
"""Records by which it has not."""

KINDS = ("signal", "warning", "machine", "hint")


@st.composite
def ledgers(draw):
    """Records of a run, and what became of each notice, known since the records were made for it.

    A save serves every notice that stands, so one begins once the one before is served or taken back; what is lost, or open,
    comes last in its attempt.
    """
    records, expected = [], []
    attempts = draw(st.integers(1, 4))

    def put(attempt, source, kind, **fields):
        records.append(
            {"attempt": attempt, "kind": kind, "source": source, "utc": "now", "step": AT, **fields}
        )

    for attempt in range(1, attempts + 1):
        has_end = draw(st.booleans())
        fates = draw(st.lists(st.sampled_from(["saved", "cancelled", "saved and cancelled"]), max_size=3))
        fates += draw(st.sampled_from([[], ["last"]]))
        for number, fate in enumerate(fates):
            source, announces = (
                draw(st.sampled_from(["SIGTERM", "aws", "file"])),
                draw(st.sampled_from(KINDS)),
            )
            for _ in range(draw(st.integers(1, 3))):  # its deadline moves
                put(
                    attempt,
                    source,
                    "notice",
                    id=f"{attempt}-{number}",
                    announces=announces,
                    deadline_utc="then",
                )
                for kind, fields in draw(st.lists(st.sampled_from(NOISE), max_size=3)):
                    put(attempt, **{"source": source, "kind": kind, **fields})
            if "saved" in fate:
                kind, fields = SAVES[draw(st.sampled_from(sorted(SAVES)))]
                put(attempt, source, kind, **fields)
            if "cancelled" in fate:
                put(attempt, source, "notice-cancelled")
            is_over = has_end or attempt < attempts
            outcome = {"last": "lost" if is_over else "open", "saved": "saved"}.get(fate, "cancelled")
            expected.append((attempt, source, announces, outcome))
        put(attempt, None, "end" if has_end or attempt < attempts and draw(st.booleans()) else "alive")
    return records, expected


@given(ledgers())
def test_each_notice_is_told_once_with_what_became_of_it(ledger):
    """Whatever was written between, and however often its deadline moved."""
    records, expected = ledger
    assert [(n.attempt, n.source, n.announces, n.outcome) for n in heard(records)] == expected


@given(ledgers())
def test_the_share_is_of_those_that_ended_and_were_no_hints(ledger):
    """Cancelled ones say nothing, open ones nothing yet."""
    records, expected = ledger
    counted = [
        outcome
        for _, _, announces, outcome in expected
        if announces != "hint" and outcome in ("saved", "lost")
    ]
    found = recall(heard(records))
    assert (found.saved, found.counted) == (counted.count("saved"), len(counted))
    assert found.share == (counted.count("saved") / len(counted) if counted else None)


@given(ledgers(), st.data())
def test_what_another_attempt_saved_serves_no_notice(ledger, data):
    """A save of a later attempt is of what it trained itself."""
    records, expected = ledger
    at = data.draw(st.integers(0, len(records)))
    last = records[-1]["attempt"]
    other = {"attempt": last + 1, "kind": "save", "reason": "emergency", "step": AT + 50}
    outcomes = [n.outcome for n in heard([*records[:at], other, *records[at:]])]
    assert outcomes == ["lost" if outcome == "open" else outcome for *_, outcome in expected]


@pytest.mark.parametrize("attempt", [None, "1"])
def test_a_record_of_no_attempt_is_passed_over(attempt):
    """What stands on the store may be anything that is JSON."""
    assert heard([{"attempt": attempt, "kind": "notice"}, {}]) == []


def test_the_deadline_is_the_last_that_was_told():
    """A notice that comes nearer is the same notice."""
    notice = {"attempt": 1, "kind": "notice", "source": "file", "id": "file-1", "step": 5, "utc": "first"}
    (found,) = heard([{**notice, "deadline_utc": "b"}, {**notice, "utc": "second", "deadline_utc": "a"}])
    assert (found.utc, found.deadline_utc) == ("first", "a")


def test_a_hint_that_becomes_an_end_counts_as_the_end_that_it_is():
    """What was saved while it was a hint is not what the end led to."""
    notice = {"attempt": 1, "kind": "notice", "source": "aws", "id": "aws-1", "step": 5}
    found = heard(
        [
            {**notice, "announces": "hint"},
            {"attempt": 1, "kind": "save", "reason": "emergency", "step": 6},
            {**notice, "announces": "machine", "step": 500},
            {"attempt": 1, "kind": "end"},
        ]
    )
    assert [(n.announces, n.outcome) for n in found] == [("hint", "saved"), ("machine", "lost")]


def test_one_save_serves_every_notice_that_stands():
    """A signal that follows a cloud's notice of the same end."""
    both = [
        {"attempt": 1, "kind": "notice", "source": s, "id": s, "step": 5, "announces": "machine"}
        for s in ("aws", "SIGTERM")
    ]
    found = heard([*both, {"attempt": 1, "kind": "save", "reason": "emergency", "step": 6}])
    assert [n.outcome for n in found] == ["saved", "saved"]
