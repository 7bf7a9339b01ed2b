"""What a run has cost: sums that were done by hand, and what is not known stays unknown."""

from __future__ import annotations

import dataclasses

import pytest

from outlast.policy.savings import Bill, savings

FIVE = [
    Bill("aws-1a", 3600.0, 3.06, 10.20, lost_s=300.0, saving_s=12.0),
    Bill("aws-1a", 7200.0, 3.06, 10.20, lost_s=0.0, saving_s=24.0),
    Bill("aws-1b", 1800.0, 3.60, 10.20, lost_s=600.0, saving_s=6.0),
    Bill("gcp-b", 5400.0, 2.80, 9.00, lost_s=60.0, saving_s=18.0),
    Bill("gcp-b", 9000.0, 2.80, 9.00, lost_s=0.0, saving_s=30.0),
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
        "on_demand_usd": 69.00,  # 55 min 9.35 + 2 h 20.40 + 20 min 3.40 + 89 min 13.35 + 150 min 22.50
        "saved_usd": 46.82,
        "saved_share": 0.68,
        "lost_s": 960.0,
        "lost_usd": 0.90,  # 0.255 + 0.60 + 0.046667 = 0.901667
        "saving_s": 90.0,
        "saving_usd": 0.07,  # 36 s of 3.06 = 0.0306, 6 s of 3.60 = 0.006, 48 s of 2.80 = 0.037333
    }


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
            is None
        )


def test_without_a_price_on_demand_there_is_what_was_paid_and_no_saving() -> None:
    total = savings([Bill("a", 3600.0, 2.0)])
    assert (total.paid_usd, total.on_demand_usd, total.saved_usd) == (2.0, None, None)


def test_spot_that_loses_too_much_costs_more_than_on_demand() -> None:
    """All but 10 minutes of two hours were done again."""
    total = savings([Bill("a", 7200.0, 1.0, 3.0, lost_s=6600.0)])
    assert total.saved_usd == pytest.approx(0.5 - 2.0)
