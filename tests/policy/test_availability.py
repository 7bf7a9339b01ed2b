"""What is learnt of a zone: from its age, and from zones that are known."""

from __future__ import annotations

import numpy as np
import pytest

from outlast.policy.availability import (
    AGE_EDGES,
    DOWN,
    RANGES,
    UP,
    age_range,
    candidates,
    chain,
    count_stays,
    hazards,
    watch,
    weights,
)
from outlast.policy.capacity import Job, Market, Pool
from outlast.policy.expected_cost import plan
from outlast.policy.prior import known_zones, region_of
from outlast.policy.spot_value import IDLE, prices, solve
from outlast.sim.replay import replay


def test_ends_and_ticks_are_counted_by_the_age_of_the_state():
    """Up for 3, down for 1, up for 2: two ends of up... at ages 3; one of down at age 1."""
    stays = count_stays([np.array([1, 1, 1, 0, 1, 1], dtype=bool)])
    assert stays.ticks[UP, : RANGES - 6].tolist() == [2, 1, 1]
    assert stays.ends[UP, : RANGES - 6].tolist() == [0, 0, 1]
    assert stays.ticks[DOWN, 0] == stays.ends[DOWN, 0] == 1
    assert stays.ticks.sum() == 5


def test_a_piece_after_a_gap_begins_anew():
    """Nothing is counted across it."""
    piece = np.array([1, 1], dtype=bool)
    assert count_stays([piece, ~piece]).ends.sum() == 0


def test_every_age_has_its_range():
    """The last tick of a range is in it, the next one is not."""
    ages = np.array([1, 2, 3, 4, 5, AGE_EDGES[-1], AGE_EDGES[-1] + 1, 10_000])
    assert age_range(ages).tolist() == [0, 1, 2, 2, 3, RANGES - 2, RANGES - 1, RANGES - 1]


def test_chains_lose_no_probability():
    """Rows add up to 1; an end leads to the youngest of the other state."""
    for model in hazards([known.stays for known in known_zones(["zone-of-nobody"])]):
        moves = chain(model)
        assert moves.sum(axis=1) == pytest.approx(np.ones(2 * RANGES))
        assert moves[:RANGES, RANGES] == pytest.approx(model[UP])


def test_the_zone_that_is_watched_is_recognised():
    """After a few days of a zone drawn from one model, it is the one that is believed."""
    models = hazards([known.stays for known in known_zones(["zone-of-nobody"])])[:5]
    rng = np.random.default_rng(1)
    believed = []
    for true in range(5):
        seen = None
        for here in drawn(models[true], 40, 600, rng).T:
            seen = watch(seen, here[:, None], models)
        believed.append(weights(seen)[:, 0].mean(axis=0)[true])
    assert min(believed) > 0.5, believed


@pytest.mark.parametrize(("up", "down"), [(2.0, 2.0), (0.5, 0.5), (2.0, 0.5)])
def test_a_zone_unlike_all_that_were_measured_is_recognised(up, down):
    """One whose machines go, or come back, twice or half as often as those of all zones together: its likes are believed most."""
    stays = [known.stays for known in known_zones(["zone-of-nobody"])]
    models = candidates(stays)
    assert len(models) == len(stays) + 9
    pooled = sum(s.ends for s in stays) / sum(s.ticks for s in stays)
    odds = pooled / (1 - pooled) * np.array([[up], [down]])
    model = odds / (1 + odds)
    nearest = int(np.abs(models - model).sum(axis=(1, 2)).argmin())
    seen = None
    for here in drawn(model, 40, 600, np.random.default_rng(1)).T:
        seen = watch(seen, here[:, None], models)
    assert nearest >= len(stays)
    assert weights(seen)[:, 0].mean(axis=0).argmax() == nearest


def test_a_zones_own_row_is_never_what_it_is_planned_with():
    """And zones of the same provider stand in; all of them where the name tells none."""
    assert "us-east-1a" not in [known.zone for known in known_zones(["us-east-1a"])]
    assert {known.provider for known in known_zones(["us-east-1a"])} == {"aws"}
    assert {known.provider for known in known_zones(["us-east4-a"])} == {"gcp"}
    assert {known.provider for known in known_zones(["here"])} == {"aws", "gcp"}
    every_aws = [known.zone for known in known_zones(["us-north-9z"])]
    assert {known.provider for known in known_zones(every_aws)} == {"gcp"}


def test_regions_are_told_from_the_names_of_zones():
    """As AWS and Google Cloud name them."""
    assert region_of("us-east-1a") == "us-east-1"
    assert region_of("asia-southeast1-c") == "asia-southeast1"
    assert region_of("basement") == "basement"
    assert region_of("us-east-1a:p3.2xlarge") == "us-east-1"


@pytest.mark.parametrize("overhead_s", [180.0, 720.0])
def test_the_value_of_a_job_is_what_jobs_then_cost(overhead_s):
    """3,000 jobs on traces drawn from one model, planned with that model: their mean cost is the table's, within 2 %."""
    model = hazards([known.stays for known in known_zones(["zone-of-nobody"])])[1]
    job = Job(4 * 3600.0, 6 * 3600.0, overhead_s)
    market = Market((Pool("spot", "spot", 0.3), Pool("own", "on-demand", 1.0)))
    values = solve(model[None], job, prices(*market.pools), 1.0, np.zeros(1))
    here = drawn(model, 3000, 36, np.random.default_rng(0))
    shown = np.stack([here, np.ones_like(here)], axis=2)
    outcome = replay(plan(job, market, model[None]), job, market, shown)
    point = np.searchsorted(values.slack_s, 2 * 3600.0)
    slack = values.slack_s[point - 1 : point + 1]
    share = (2 * 3600.0 - slack[0]) / (slack[1] - slack[0])
    start = [RANGES if not up else 0 for up in here[:, 0]]
    expected = (
        values.usd[36, IDLE, 0, start, point - 1] * (1 - share)
        + values.usd[36, IDLE, 0, start, point] * share
    )
    assert outcome.cost_usd.mean() == pytest.approx(expected.mean(), rel=0.02)


def drawn(model, n, ticks, rng):
    """Traces of a zone that behaves as its model says; each begins young, half of them up."""
    up, age = rng.random(n) < 0.5, np.ones(n, dtype=int)
    found = np.empty((n, ticks), dtype=bool)
    for tick in range(ticks):
        found[:, tick] = up
        ends = rng.random(n) < model[np.where(up, UP, DOWN), age_range(age)]
        up, age = up ^ ends, np.where(ends, 1, age + 1)
    return found
