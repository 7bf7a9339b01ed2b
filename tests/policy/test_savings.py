"""What a run has cost: sums that were done by hand, and what is not known stays unknown."""

from __future__ import annotations

import dataclasses

import pytest

from outlast.policy.savings import Bill, least_s, savings

FIVE = [
    Bill("aws-1a", 3600.0, 3.06, 10.20, lost_s=300.0, saving_s=12.0, start_s=None, pause_s=1.0),
    Bill("aws-1a", 7200.0, 3.06, 10.20, saving_s=24.0, is_restart=True, start_s=60.0, pause_s=1.0),
    Bill("aws-1b", 1800.0, 3.60, 10.20, 600.0, saving_s=6.0, is_restart=True, start_s=120.0, pause_s=1.0),
    Bill("gcp-b", 5400.0, 2.80, 9.00, 60.0, saving_s=18.0, is_restart=True, start_s=120.0, pause_s=1.5),
    Bill("gcp-b", 9000.0, 2.80, 9.00, saving_s=30.0, is_restart=True, start_s=300.0, pause_s=1.5),
]
"""5 attempts in 3 pools, 7.5 h."""


def test_five_attempts_in_three_pools_are_what_they_are_by_hand() -> None:
    """Exact to the cent; each line says the sum."""
    total = savings(FIVE)
    cents = {name: round(value, 2) for name, value in dataclasses.asdict(total).items()}
    assert cents == {
        "seconds": 27_000.0,
        "priced_s": 27_000.0,
        "paid_usd": 22.18,  # 3.06 + 6.12 + 1.80 + 4.20 + 7.00
        "compared_s": 27_000.0,
        "on_demand_usd": 67.44,  # 55 min 9.35 + 119 min 20.23 + 18 min 3.06 + 87 min 13.05 + 145 min 21.75
        "saved_usd": 45.26,
        "saved_share": 0.67,
        "lost_s": 960.0,
        "lost_usd": 0.90,  # 0.255 + 0.60 + 0.046667 = 0.901667
        "saving_s": 90.0,
        "saving_usd": 0.07,  # 36 s of 3.06 = 0.0306, 6 s of 3.60 = 0.006, 48 s of 2.80 = 0.037333
        "hindsight_s": 27_000.0,
        # 3289 s and 7177 s of 3.06 = 2.795650 + 6.100450, 1195 s of 3.60 = 1.195, 5323.5 s and 8971.5 s of 2.80 = 4.140500 + 6.977833
        "optimum_usd": 21.21,
        "over_optimum": 0.05,
    }


def test_hindsight_keeps_the_start_and_one_save_of_an_attempt_that_lost_all() -> None:
    """Not more than it cost, and nothing is said of it where its start is not known."""
    vain = Bill("a", 600.0, 3.60, lost_s=600.0, is_restart=True, start_s=60.0, pause_s=2.0)
    assert least_s(vain) == 62.0
    assert savings([vain]).optimum_usd == pytest.approx(0.062)
    assert savings([vain]).over_optimum == pytest.approx(600 / 62 - 1)
    assert least_s(dataclasses.replace(vain, start_s=599.0)) == 600.0
    assert savings([dataclasses.replace(vain, start_s=None)]).optimum_usd is None


@pytest.mark.parametrize("name", ["usd_per_hour", "lost_s", "saving_s", "pause_s"])
def test_the_optimum_is_of_the_attempts_of_which_all_is_known(name: str) -> None:
    """What was paid for these is what is compared with it."""
    unknown = dataclasses.replace(FIVE[1], **{name: None})
    total = savings([FIVE[0], unknown])
    alone = savings([FIVE[0]])
    assert (total.hindsight_s, total.optimum_usd) == (3600.0, alone.optimum_usd)
    assert total.over_optimum == alone.over_optimum
    assert savings([unknown]).optimum_usd is savings([unknown]).over_optimum is None


@pytest.mark.parametrize("name", ["lost_s", "start_s"])
def test_what_is_not_known_is_not_compared_with_on_demand(name: str) -> None:
    """A loss that nobody knows is not none: on demand the work would else seem to cost more than it does."""
    total = savings([FIVE[0], dataclasses.replace(FIVE[1], **{name: None})])
    assert total.paid_usd == pytest.approx(3.06 + 6.12)
    assert (total.compared_s, total.on_demand_usd) == (3600.0, pytest.approx(9.35))
    assert total.saved_usd == pytest.approx(9.35 - 3.06)


def test_every_machine_of_an_attempt_is_paid_for() -> None:
    """Four of them cost four times as much, lose and save as long as one."""
    one, four = savings(FIVE[:1]), savings([dataclasses.replace(FIVE[0], machines=4)])
    for name in ("seconds", "priced_s", "paid_usd", "on_demand_usd", "lost_usd", "saving_usd", "optimum_usd"):
        assert getattr(four, name) == pytest.approx(4 * getattr(one, name))
    assert (four.lost_s, four.saving_s, four.over_optimum) == (300.0, 12.0, one.over_optimum)


def test_a_price_that_nobody_knows_is_not_taken_as_free() -> None:
    """The attempt counts in seconds, in no sum of money, and in no comparison."""
    unpriced = dataclasses.replace(FIVE[1], usd_per_hour=None)
    total = savings([FIVE[0], unpriced])
    assert total.seconds == 10_800.0
    assert total.priced_s == 3600.0
    assert total.paid_usd == pytest.approx(3.06)
    assert total.on_demand_usd == pytest.approx(9.35)


def test_where_no_price_is_known_no_amount_is() -> None:
    """Nor is there one where nothing was run."""
    for bills in ([], [Bill("a", 60.0)], [Bill("a", 60.0, None, 3.0)]):
        total = savings(bills)
        assert (
            total.paid_usd
            is total.on_demand_usd
            is total.saved_usd
            is total.lost_usd
            is total.saved_share
            is total.optimum_usd
            is None
        )


def test_without_a_price_on_demand_there_is_what_was_paid_and_no_saving() -> None:
    total = savings([Bill("a", 3600.0, 2.0)])
    assert (total.paid_usd, total.on_demand_usd, total.saved_usd) == (2.0, None, None)


def test_spot_that_loses_too_much_costs_more_than_on_demand() -> None:
    """All but 10 minutes of two hours were done again."""
    total = savings([Bill("a", 7200.0, 1.0, 3.0, lost_s=6600.0)])
    assert total.saved_usd == pytest.approx(0.5 - 2.0)
