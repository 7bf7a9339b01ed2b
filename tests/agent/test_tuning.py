"""What the agent tells the trainer of the interval, and what it says of it, as figures change."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from persisting import attempt_record

from outlast._types import Capacity, MaxLost
from outlast.agent.control import ControlPage, Word
from outlast.agent.history import History
from outlast.agent.meter import SAVES_KEPT, Measured
from outlast.agent.tuning import SHORT_RUN_S, Tuning
from outlast.policy.hazard import Spell
from outlast.policy.interval import Costs


class Told:
    """A tuning, what it has said and noted, and how long saves take from now on."""

    def __init__(self, max_lost: MaxLost | None) -> None:
        self.said: list[str] = []
        self.noted: list[dict[str, Any]] = []
        self.saves_s: list[float] = []
        self.page = ControlPage.create()
        record = msgspec.structs.replace(attempt_record(), capacity=Capacity(pool="a"))
        self.tuning = Tuning(
            self.page, self._measured, max_lost, record, say=self.said.append, note=self._note
        )

    def _measured(self) -> Measured:
        if not self.saves_s:
            return Measured(None, 1000, 0.0, None, 0.0)
        last = self.saves_s[-SAVES_KEPT:]
        median_s = statistics.median_low(last) if len(last) > 1 else 0.0
        return Measured(max(last), 1000, 0.0, None, 0.0, last[-1], median_s)

    def _note(self, kind: str, /, **fields: Any) -> None:
        assert kind == "interval"
        self.noted.append(fields)

    def save(self, *, upload_s: float, pause_s: float) -> float:
        """A save has become durable; the interval that the trainer reads then."""
        self.saves_s.append(upload_s)
        self.page[Word.PAUSE_NS] = int(pause_s * 1e9)
        self.tuning.committed()
        return self.interval_s

    @property
    def interval_s(self) -> float:
        return self.page[Word.INTERVAL_NS] / 1e9


@pytest.fixture
def told(request: pytest.FixtureRequest) -> Iterator[Told]:
    made = Told(getattr(request, "param", MaxLost(600.0)))
    yield made
    made.tuning.stop()
    if "over" not in request.node.name:
        made.page.close()


def test_before_a_save_was_measured_nothing_is_decided(told: Told) -> None:
    told.tuning.know(History(), preemptible=True)
    assert (told.interval_s, told.noted, told.tuning.interval_s) == (0.0, [], None)


def test_what_the_trainer_reads_is_what_is_noted(told: Told) -> None:
    assert told.save(upload_s=5.0, pause_s=0.5) == pytest.approx(told.noted[-1]["seconds"], abs=1e-3)
    assert (told.noted[-1]["pause_s"], told.noted[-1]["upload_s"], told.noted[-1]["pool"]) == (0.5, 5.0, "a")


def test_an_interval_that_would_hardly_change_stays_and_one_that_changes_does_not(told: Told) -> None:
    """Each save is noted all the same."""
    first = told.save(upload_s=5.0, pause_s=0.500)
    assert told.save(upload_s=5.0, pause_s=0.505) == first
    for _ in range(5):
        told.save(upload_s=5.0, pause_s=2.0)
    assert told.interval_s > 1.5 * first
    assert len(told.noted) == 7


def test_one_pause_that_was_long_by_chance_changes_little(told: Told) -> None:
    first = told.save(upload_s=5.0, pause_s=0.5)
    for pause_s in (0.5, 30.0, 0.5):
        told.save(upload_s=5.0, pause_s=pause_s)
    assert told.interval_s == first


def test_at_the_start_of_an_attempt_the_one_before_is_reckoned_by(told: Told) -> None:
    """What its pool went through counts as well."""
    hourly = tuple([Spell(3600.0, "lost")] * 10)
    told.tuning.know(History(spells=hourly, costs=Costs(0.5, 5.0, 0.1)), preemptible=None)
    first = told.interval_s
    assert 40 < first < 80
    assert told.noted[-1]["interruptions"] == 10
    assert told.save(upload_s=5.0, pause_s=0.5) == first


def test_a_limit_that_cannot_be_kept_is_told_once_and_again_after_it_was_kept(told: Told) -> None:
    for upload_s in (900.0, 901.0, 5.0, 900.0, 900.0):
        told.save(upload_s=upload_s, pause_s=0.5)
    assert len(told.said) == 2
    assert "durable 900 s after it was taken, which is too long for a max_lost_work of 600 s" in told.said[0]
    assert "can cost up to 1800 s of work" in told.said[0]


@pytest.mark.parametrize("told", [MaxLost(None, 0.01)], indirect=True)
def test_a_share_of_the_run_grows_with_it_and_is_one_of_an_hour_at_first(told: Told) -> None:
    told.save(upload_s=5.0, pause_s=100.0)
    assert told.noted[-1]["max_lost_s"] == pytest.approx(0.01 * SHORT_RUN_S)
    told.tuning.know(History(trained_s=100 * 3600.0), preemptible=None)
    assert told.noted[-1]["max_lost_s"] == pytest.approx(3600.0, rel=0.01)


def test_an_attempt_is_as_old_as_its_trainer_says(told: Told) -> None:
    """An agent that takes over for one that was killed has seen nothing of it."""
    told.page[Word.BEGUN_NS] = time.monotonic_ns() - 3600 * 10**9
    told.save(upload_s=5.0, pause_s=0.5)
    assert told.noted[-1]["seen_s"] == pytest.approx(3600.0, abs=60.0)
    assert told.tuning.stop() == pytest.approx(3600.0, abs=60.0)


@pytest.mark.parametrize("told", [None], indirect=True)
def test_an_interval_that_the_script_gave_is_left_alone(told: Told) -> None:
    told.save(upload_s=5.0, pause_s=0.5)
    assert (told.interval_s, told.noted) == (0.0, [])


def test_once_the_attempt_is_over_the_page_is_not_touched(told: Told) -> None:
    """It is gone by then; what was asked for earlier may come as late as it likes."""
    assert told.tuning.stop() >= 0.0
    told.page.close()
    told.tuning.committed()
    told.tuning.know(History(costs=Costs(0.5, 5.0)), preemptible=None)
    assert told.noted == []


def test_one_upload_that_took_an_hour_keeps_no_save_away_for_longer_than_the_limit(told: Told) -> None:
    """The store was away; once it is back, so is the interval. Where it stays slow, saves follow each other."""
    before = told.save(upload_s=10.0, pause_s=0.5)
    assert told.save(upload_s=3600.0, pause_s=0.5) <= 600.0
    assert told.save(upload_s=10.0, pause_s=0.5) == pytest.approx(before, rel=0.06)
    told.save(upload_s=3600.0, pause_s=0.5)
    assert told.save(upload_s=3600.0, pause_s=0.5) == pytest.approx(3600.0, rel=0.01)


def test_what_uploads_took_on_another_machine_never_keeps_the_first_save_away(told: Told) -> None:
    """Else a run whose machines live shorter than that would never save again, and each attempt would teach it to the next."""
    told.tuning.know(History(costs=Costs(0.5, 7200.0, 0.1)), preemptible=True)
    assert 0 < told.interval_s <= 300.0


def test_the_limit_is_kept_by_an_interval_that_stays_as_well(told: Told) -> None:
    """It does not stay where it would be above the limit; and what is said of the worst is of the interval that is kept."""
    for upload_s in (10.0, 35.0, 20.0):
        seconds = told.save(upload_s=upload_s, pause_s=0.5)
        noted = told.noted[-1]
        if noted["bound"] == "max-lost-work":
            assert noted["worst_s"] <= 600.001
        assert noted["worst_s"] == pytest.approx(
            seconds + noted["upload_s"] + 0.5 + noted["step_s"], abs=0.01
        )
