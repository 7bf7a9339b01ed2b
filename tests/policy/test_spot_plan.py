"""The plan: terms that add up, intervals that agree with a simulation, and reasons that flip with the one input that they name."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from outlast._errors import ConfigError
from outlast.policy.plan import JOINT_SHARE, WITHIN_3_MIN, count, joint, pays_below_usd, rows
from outlast.policy.plan_reasons import reasons
from outlast.policy.plan_records import Forecast, Job, Price, Prices, Question, Risk
from outlast.policy.plan_terms import terms

JOB = Job(
    work_s=48 * 3600.0,
    deadline_s=70 * 3600.0,
    state_bytes=14 * 10**9,
    bytes_per_s=0.9e9,
    pause_s=0.5,
    provisioning_s=180.0,
    restart_s=60.0,
    notice_s=30.0,
)
PRICES = Prices(Price(1.0), Price(3.0))
RISK = Risk(0.2, 0.5, "given")


def steady(question: Question) -> Forecast:
    """A replay that can be reckoned by hand: each interruption costs its overhead, twice that is needed in reserve, else on-demand works."""
    slack_s = question.deadline_s - question.work_s
    lost_s = question.per_hour * question.work_s / 3600 * question.overhead_s
    share = min(1.0, max(0.0, slack_s / (2 * lost_s + 4 * question.overhead_s)))
    work_h = (question.work_s + question.overhead_s) / 3600
    spot_h = share * (work_h + lost_s / 3600)
    own_h = (1 - share) * work_h
    spot_usd, own_usd = question.usd_per_hour
    usd = np.array([spot_h * spot_usd + own_h * own_usd])
    return Forecast(usd, np.ones(1), spot_h, own_h, 1 + spot_h * question.per_hour, work_h, "by hand")


def told(job: Job = JOB, prices: Prices = PRICES, risk: Risk = RISK) -> tuple[str, set[str]]:
    """The verdict, and what its reasons are about."""
    counted = count(job, prices, risk, steady)
    return counted.verdict, {reason.about for reason in reasons(job, prices, risk, counted, steady)}


def test_the_terms_add_up_to_what_is_saved():
    """On-demand less everything that is paid on spot; nothing is counted twice."""
    prices = replace(
        PRICES, egress_per_gb=Price(0.02), storage_per_gb_month=Price(0.023), per_1000_requests=Price(0.005)
    )
    job = replace(JOB, engineering_usd=300.0, runs=10)
    counted = count(job, prices, RISK, steady)
    usd = {term.name: term.value for term in terms(job, prices, RISK, counted) if term.unit == "USD"}
    spent = sum(usd[name] for name in ("machines", "egress", "storage", "requests", "engineering"))
    assert usd["saved"] == pytest.approx(usd["on-demand alone"] - spent)
    assert usd["on-demand alone"] == pytest.approx((48 + 240 / 3600) * 3.0)
    assert usd["engineering"] == pytest.approx(30.0)
    assert usd["egress"] == pytest.approx((counted.forecast.starts - 1) * 14 * 0.02)
    assert usd["storage"] == pytest.approx(4 * 14 * counted.forecast.finish_h / 730 * 0.023)
    saves = 48 * 3600 / counted.interval.seconds
    assert usd["requests"] == pytest.approx(saves * (math.ceil(14e9 / 2**23) + 4) / 1000 * 0.005)


def test_what_a_save_need_not_write_is_moved_and_kept_all_the_same():
    """Frozen parameters are written once: a new machine reads them, the store holds them, the emergency save has less to do."""
    prices = replace(PRICES, egress_per_gb=Price(0.02), storage_per_gb_month=Price(0.023))
    counted = count(replace(JOB, whole_bytes=140 * 10**9), prices, RISK, steady)
    alone = count(JOB, prices, RISK, steady)
    assert counted.egress_usd == pytest.approx(10 * alone.egress_usd)
    assert counted.storage_usd == pytest.approx(10 * alone.storage_usd)
    assert (counted.fit, counted.interval, counted.requests_usd) == (
        alone.fit,
        alone.interval,
        alone.requests_usd,
    )
    job = replace(JOB, whole_bytes=140 * 10**9)
    said = {term.name: term for term in terms(job, prices, RISK, counted)}
    assert said["egress"].value == pytest.approx(counted.egress_usd)
    assert "140 GB" in said["egress"].numbers


def test_break_even_is_the_spot_price_at_which_nothing_is_saved():
    """As long as spot does as much of the work."""
    counted = count(JOB, PRICES, RISK, steady)
    price = pays_below_usd(JOB, counted)
    assert price is not None
    there = count(JOB, replace(PRICES, spot=Price(price)), RISK, steady)
    assert there.net_usd == pytest.approx(0.0, abs=1e-6)


FLIPS = [
    ("effort", replace(JOB, engineering_usd=2000.0), RISK, {"runs": 100}),
    ("effort", replace(JOB, engineering_usd=2000.0), RISK, {"engineering_usd": 20.0}),
    ("work", replace(JOB, work_s=3600.0, engineering_usd=20.0), RISK, {"work_s": JOB.work_s}),
    ("deadline", replace(JOB, deadline_s=48.2 * 3600), RISK, {"deadline_s": 70 * 3600.0}),
    ("elastic", replace(JOB, nodes=64), replace(RISK, per_hour=1.0), {"is_elastic": True}),
    (
        "notice",
        replace(JOB, state_bytes=250 * 10**9),
        replace(RISK, per_hour=8.0, recall=0.95),
        {"notice_s": 600.0},
    ),
    (
        "hazard",
        replace(JOB, state_bytes=250 * 10**9),
        replace(RISK, per_hour=8.0, recall=0.95),
        {"per_hour": 0.2},
    ),
]


@pytest.mark.parametrize(("about", "job", "risk", "change"), FLIPS)
def test_each_reason_goes_with_the_one_input_that_it_names(about, job, risk, change):
    """Spot does not pay, for that reason; with that input changed alone, it does."""
    verdict, why = told(job, risk=risk)
    assert verdict != "worth it"
    assert about in why
    if "per_hour" in change:
        assert told(job, risk=replace(risk, **change))[0] == "worth it"
    else:
        assert told(replace(job, **change), risk=risk)[0] == "worth it"


def test_a_job_that_no_single_change_helps_is_told_the_price_at_which_it_would():
    """And at a price below that one it is worth it."""
    dear = replace(PRICES, spot=Price(2.95))
    counted = count(JOB, dear, RISK, steady)
    assert told(prices=dear) == ("too close to call", {"price"})
    price = pays_below_usd(JOB, counted, 0.05)
    assert price is not None
    assert told(prices=replace(PRICES, spot=Price(price * 0.999)))[0] == "worth it"
    assert told(prices=replace(PRICES, spot=Price(price * 1.001)))[0] == "too close to call"


def test_too_close_to_call_is_said_only_within_5_percent_of_break_even():
    """On both sides; beyond that the sign decides."""
    seen = set()
    for effort in np.linspace(0, 200, 401):
        counted = count(replace(JOB, engineering_usd=float(effort)), PRICES, RISK, steady)
        share = counted.net_usd / counted.on_demand_usd
        assert (counted.verdict == "too close to call") == (abs(share) < 0.05)
        assert (counted.verdict == "worth it") == (share >= 0.05)
        seen.add(counted.verdict)
    assert seen == {"worth it", "not worth it", "too close to call"}


def test_a_deadline_without_time_for_one_interruption_is_on_demand_alone():
    """Nothing is replayed; and a deadline that on-demand cannot keep is refused."""

    def never(question: Question) -> Forecast:
        raise AssertionError(question)

    job = replace(JOB, deadline_s=JOB.work_s + JOB.start_s + 1)
    counted = count(job, PRICES, RISK, never)
    assert counted.forecast.spot_h == 0
    assert counted.interruptions == 0
    with pytest.raises(ConfigError, match="deadline_s"):
        replace(JOB, deadline_s=JOB.work_s)


@pytest.mark.parametrize(
    "name",
    ["work_s", "state_bytes", "bytes_per_s", "runs", "nodes", "pause_s", "notice_s", "engineering_usd"],
)
@pytest.mark.parametrize("value", [-1, math.nan, math.inf])
def test_a_number_that_is_none_is_refused_by_its_name(name, value):
    """Negative, infinite, not a number; and zero where there must be something."""
    with pytest.raises(ConfigError, match=name):
        replace(JOB, **{name: value})


@pytest.mark.parametrize("name", ["work_s", "state_bytes", "bytes_per_s", "runs", "nodes", "max_lost_s"])
def test_nothing_of_what_there_must_be_is_refused_by_its_name(name):
    """A job without work, a store without a rate."""
    with pytest.raises(ConfigError, match=name):
        replace(JOB, **{name: 0})


def test_a_price_or_a_share_that_is_none_is_refused():
    """Each by its name."""
    with pytest.raises(ConfigError, match="price of spot"):
        Prices(Price(0.0), Price(3.0))
    with pytest.raises(ConfigError, match="price of on-demand"):
        Prices(Price(1.0), Price(math.nan))
    with pytest.raises(ConfigError, match="egress_per_gb"):
        replace(PRICES, egress_per_gb=Price(-1.0))
    with pytest.raises(ConfigError, match="recall"):
        Risk(0.1, 1.5, "given")
    with pytest.raises(ConfigError, match="hazard"):
        Risk(-0.1, 0.5, "given")


def test_a_save_that_does_not_fit_makes_every_interruption_cost_work():
    """Whatever share of the notices is heard."""
    counted = count(replace(JOB, notice_s=10.0), PRICES, RISK, steady)
    assert not counted.fit.fits
    assert counted.recall == 0.0
    assert count(JOB, PRICES, RISK, steady).recall == 0.5


def test_one_lost_machine_stops_a_synchronised_job_and_not_an_elastic_one():
    """Machines of one zone and type go together more often than not."""
    alone, four = count(JOB, PRICES, RISK, steady), count(replace(JOB, nodes=4), PRICES, RISK, steady)
    elastic = count(replace(JOB, nodes=4, is_elastic=True), PRICES, RISK, steady)
    assert alone.per_hour == 0.2
    assert four.per_hour == pytest.approx(0.2 * (JOINT_SHARE + 4 * (1 - JOINT_SHARE)))
    assert elastic.per_hour == pytest.approx(0.2 * JOINT_SHARE)
    assert joint(JOB, RISK, alone) is None
    together = joint(replace(JOB, nodes=4), RISK, four)
    assert together is not None
    assert together.all_share == pytest.approx(0.2 * JOINT_SHARE * WITHIN_3_MIN / four.per_hour)
    assert together.all_in_run == pytest.approx(1 - math.exp(-together.all_share * four.interruptions))


@pytest.mark.parametrize("per_hour", [0.1, 1.0])
@pytest.mark.parametrize("upload_s", [16.0, 240.0])
def test_each_row_of_the_interval_table_agrees_with_a_simulation(per_hour, upload_s):
    """Interruptions drawn, work counted: overhead and lost work within 5 %."""
    job = replace(JOB, pause_s=20.0, bytes_per_s=JOB.state_bytes / upload_s, notice_s=0.0, max_lost_s=1800.0)
    counted = count(job, PRICES, replace(RISK, per_hour=per_hour), steady)
    for row in rows(job, counted):
        measured = simulated(row.seconds, job.pause_s, upload_s, per_hour / 3600)
        assert 1 + row.overhead == pytest.approx(1 + measured, rel=0.05), row
        assert row.overhead == pytest.approx(measured, rel=0.05), row
        assert row.at_risk_s == row.seconds + job.pause_s + upload_s


def simulated(interval_s: float, pause_s: float, upload_s: float, per_s: float) -> float:
    """Time beyond the training itself, per second of training, over 60,000 interruptions one after the other."""
    lives = np.random.default_rng(3).exponential(1 / per_s, 60_000)
    period = interval_s + pause_s
    durable = np.floor(np.maximum(lives - upload_s, 0.0) / period)
    return float(lives.sum() / (durable.sum() * interval_s) - 1)
