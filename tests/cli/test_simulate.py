"""`outlast simulate`: what it prints, and what it refuses."""

from __future__ import annotations

import importlib.util
import json

import numpy as np
import pytest

from outlast._errors import ConfigError
from outlast.cli.simulate import simulate
from outlast.policy.capacity import Job
from outlast.sim.compare import POLICIES, Setup, compare
from outlast.sim.generate import KINDS, generate, write
from outlast.sim.traces import read_traces

ASKED = {"work": "6h", "deadline": "9h", "overhead": "3m"}


@pytest.fixture(scope="module")
def traces(tmp_path_factory):
    """Two zones of one region and one of another, for four days."""
    path = tmp_path_factory.mktemp("traces") / "made.csv.gz"
    kinds = {"us-east-1a": "flaky", "us-east-1b": "steady", "us-west-2b": "scarce"}
    write(path, generate(kinds, days=4, nodes=2, seed=7))
    return path


def found(capsys, **options):
    simulate(**(ASKED | options), json=True)
    return json.loads(capsys.readouterr().out)


def test_json_has_every_policy_with_its_numbers(traces, capsys):
    """16 windows per zone; the optimum is never undercut, and nothing misses."""
    got = found(capsys, traces=[traces])
    assert set(got) == {"windows", "policies"} and got["windows"] == 48
    assert [row["name"] for row in got["policies"]] == list(POLICIES)
    for row in got["policies"]:
        assert list(row) == [
            "name",
            "mean_cost_usd",
            "over_optimum",
            "savings",
            "savings_p5",
            "savings_p95",
            "deadline_misses",
            "restarts",
            "lost_work_h",
        ]
        assert row["over_optimum"] >= 0 and row["deadline_misses"] == 0
        assert row["savings_p5"] <= row["savings"] <= row["savings_p95"]
    by_name = {row["name"]: row for row in got["policies"]}
    assert by_name["on-demand"]["mean_cost_usd"] == pytest.approx(6.05)
    assert by_name["outlast"]["mean_cost_usd"] < min(
        by_name[n]["mean_cost_usd"] for n in ("greedy", "uniform-progress")
    )


def test_people_get_a_table(traces, capsys):
    """At 80 columns."""
    simulate(traces=[traces], **ASKED)
    lines = capsys.readouterr().out.splitlines()
    assert "48 jobs" in lines[0]
    for name in POLICIES:
        assert any(line.startswith(name + " ") for line in lines)
    assert max(map(len, lines)) <= 80


def test_policies_can_be_chosen(traces, capsys):
    """In the order asked for, each measured against the same optimum."""
    got = found(capsys, traces=[traces], policy="greedy,outlast")
    assert [row["name"] for row in got["policies"]] == ["greedy", "outlast"]


def test_jobs_that_may_go_from_zone_to_zone_pay_less(traces, capsys):
    """16 windows of all zones together."""
    alone, together = found(capsys, traces=[traces]), found(capsys, traces=[traces], multi_zone=True)
    assert together["windows"] == 16
    for name in ("optimum", "outlast"):
        costs = [
            next(row for row in got["policies"] if row["name"] == name)["mean_cost_usd"]
            for got in (together, alone)
        ]
        assert costs[0] < costs[1]


def test_several_nodes_are_had_together_or_not_at_all(traces, capsys):
    """Two nodes cost twice as much; no zone has three, two zones of one region have."""
    one, two = (found(capsys, traces=[traces], nodes=n, policy="on-demand")["policies"][0] for n in (1, 2))
    assert two["mean_cost_usd"] == pytest.approx(2 * one["mean_cost_usd"])
    row = found(capsys, traces=[traces], nodes=3, policy="optimum")["policies"][0]
    assert row["savings"] == pytest.approx(0, abs=1e-9)
    assert (
        found(capsys, traces=[traces], nodes=3, policy="optimum", spread="region")["policies"][0]["savings"]
        > 0.1
    )


def test_prices_are_those_of_the_file(traces, tmp_path, capsys):
    """By region; on-demand 4 USD."""
    prices = tmp_path / "prices.csv"
    prices.write_text("location,spot_usd_per_hour,on_demand_usd_per_hour\nus-east-1,1,4\nus-west-2,1,4\n")
    row = found(capsys, traces=[traces], prices=prices, policy="on-demand")["policies"][0]
    assert row["mean_cost_usd"] == pytest.approx(4 * 6.05)
    prices.write_text("location,spot_usd_per_hour,on_demand_usd_per_hour\nus-east-1,1,4\n")
    with pytest.raises(ConfigError, match="no row whose location is us-west-2b or us-west-2"):
        found(capsys, traces=[traces], prices=prices)


@pytest.fixture(scope="module")
def two_types(tmp_path_factory):
    """Two machine types of one zone, both there for two days."""
    path = tmp_path_factory.mktemp("traces") / "types.csv"
    ticks = [
        f"2026-11-{1 + tick // 144:02}T{tick % 144 // 6:02}:{tick % 6}0:00Z,us-east-1a:{machine},1"
        for machine in ("slow", "fast")
        for tick in range(288)
    ]
    path.write_text("\n".join(["time_utc,zone,nodes_available", *ticks]))
    return path


@pytest.mark.parametrize(
    ("fast", "spot_usd", "own_usd"),
    [
        ("2.0,6.0,2.5", 2.0 * (6 / 2.5 + 0.05), 6.0 * (6 / 2.5 + 0.05)),
        ("2.6,6.0,2.5", 0.9 * 6.05, 6.0 * (6 / 2.5 + 0.05)),
        ("2.0,8.0,2.5", 2.0 * (6 / 2.5 + 0.05), 3.0 * 6.05),
        ("2.6,8.0,2.5", 0.9 * 6.05, 3.0 * 6.05),
    ],
)
def test_of_two_machine_types_the_one_that_does_the_work_for_less_is_taken(
    two_types, tmp_path, capsys, fast, spot_usd, own_usd
):
    """The slow one costs 0.9 and 3 USD per hour and unit of work; the fast one, 2.5 times as fast, less or more than that by the hour's price."""
    prices = tmp_path / "prices.csv"
    prices.write_text(
        "location,spot_usd_per_hour,on_demand_usd_per_hour,speed\n"
        f"us-east-1a:slow,0.9,3.0,\nus-east-1a:fast,{fast}\n"
    )
    got = found(capsys, traces=[two_types], prices=prices, multi_zone=True)
    paid = {row["name"]: row["mean_cost_usd"] for row in got["policies"]}
    assert paid["optimum"] == pytest.approx(spot_usd, rel=0.01)
    assert paid["outlast"] == pytest.approx(spot_usd, rel=0.01)
    assert paid["on-demand"] == pytest.approx(own_usd)
    assert [row["deadline_misses"] for row in got["policies"]] == [0] * len(POLICIES)


def test_a_fast_machine_keeps_a_deadline_that_a_slow_one_cannot(two_types, tmp_path, capsys):
    """Six hours of work in four: on the fast one, whatever it costs."""
    prices = tmp_path / "prices.csv"
    rows = "us-east-1:slow,0.1,0.2,1\nus-east-1:fast,2.0,8.0,2.5\n"
    prices.write_text(f"location,spot_usd_per_hour,on_demand_usd_per_hour,speed\n{rows}")
    options = {"traces": [two_types], "prices": prices, "deadline": "4h"}
    got = found(capsys, **options, multi_zone=True)
    assert all(row["deadline_misses"] == 0 for row in got["policies"])
    with pytest.raises(ConfigError, match=r"deadline of 4\.00 h leaves no room"):
        found(capsys, **options)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("a,-1,4", "line 2: spot_usd_per_hour is '-1'"),
        ("a,nan,4", "line 2: spot_usd_per_hour is 'nan'"),
        ("a,1,", "line 2: on_demand_usd_per_hour is ''"),
        ("a,1,4\na,1,4", "line 3: location a is there twice"),
        ("a,1,4\n a ,1,4", "line 3: location a is there twice"),
        ("a,1,4,0", "line 2: speed is '0'; expected a speed above 0"),
    ],
)
def test_a_price_that_is_none_is_named(traces, tmp_path, row, said):
    """By file, line and column."""
    prices = tmp_path / "prices.csv"
    prices.write_text(f"location,spot_usd_per_hour,on_demand_usd_per_hour,speed\n{row}\n")
    with pytest.raises(ConfigError, match=said):
        simulate(traces=[traces], **ASKED, prices=prices)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"work": "0h"}, "--work is '0h'"),
        ({"work": "-3h"}, "--work is '-3h'"),
        ({"work": "nan"}, "--work is 'nan'"),
        ({"work": "3 weeks"}, "--work is '3 weeks'"),
        ({"deadline": "0"}, "--deadline is '0'"),
        ({"deadline": "6h"}, "deadline of 6.00 h leaves no room"),
        ({"deadline": "200h"}, "no window of 200.0 h fits"),
        ({"overhead": "-1m"}, "--overhead is '-1m'"),
        ({"policy": "best"}, "--policy names 'best'"),
        ({"nodes": 0}, "--nodes is 0"),
        ({"checkpoint": "50GB"}, "--checkpoint and --egress belong together"),
    ],
)
def test_what_cannot_be_is_named(traces, options, said):
    """What was found, and what was expected."""
    with pytest.raises(ConfigError, match=said):
        simulate(**({"traces": [traces]} | ASKED | options))


def test_moving_between_regions_costs_what_the_list_says(traces, tmp_path, capsys):
    """A checkpoint so dear to move that it stays: more is paid; a pair that is not listed is named."""
    egress = tmp_path / "egress.csv"
    costs = []
    for usd in (0, 50):
        egress.write_text(
            f"from_region,to_region,price_usd_per_gb\nus-east-1,us-west-2,{usd}\nus-west-2,us-east-1,{usd}\n"
        )
        got = found(
            capsys,
            traces=[traces],
            multi_zone=True,
            checkpoint="50GB",
            egress=egress,
            policy="optimum,outlast",
        )
        costs.append([row["mean_cost_usd"] for row in got["policies"]])
    assert costs[1][0] >= costs[0][0] and costs[1][1] >= costs[0][1]
    egress.write_text("from_region,to_region,price_usd_per_gb\nus-east-1,us-west-2,0.02\n")
    with pytest.raises(ConfigError, match="no egress price from us-west-2 to us-east-1"):
        found(capsys, traces=[traces], multi_zone=True, checkpoint="50GB", egress=egress)


def test_probing_is_paid_for(traces):
    """A minute in every tick and pool that is not held: the cost of that, and nothing else, comes on top of on-demand."""
    pieces = read_traces([traces])
    job = Job(6 * 3600.0, 9 * 3600.0, 180.0)
    dear = compare(pieces, Setup(job, probe_s=60.0), ["on-demand"]).outcomes["on-demand"].cost_usd
    free = compare(pieces, Setup(job), ["on-demand"]).outcomes["on-demand"].cost_usd
    ticks = np.ceil((6 * 3600 + 180) / 600)
    assert dear - free == pytest.approx(np.full(48, ticks * 60 / 3600 * 0.3))


def test_made_traces_are_the_same_for_a_seed_and_differ_by_kind():
    """Steady zones are there most of the time, scarce ones seldom."""
    made = generate(dict.fromkeys(("a",), "steady") | {"b": "scarce"}, days=30, nodes=1, seed=1)
    again = generate(dict.fromkeys(("a",), "steady") | {"b": "scarce"}, days=30, nodes=1, seed=1)
    share = {piece.zone: (piece.nodes > 0).mean() for piece in made}
    assert all((x.nodes == y.nodes).all() for x, y in zip(made, again, strict=True))
    assert share["a"] > 0.8 > 0.4 > share["b"]
    assert set(KINDS) == {"steady", "flaky", "scarce"}


def test_a_picture_is_drawn_or_what_is_missing_is_named(traces, tmp_path):
    """Matplotlib is an extra: without it the error says what to install, and nothing else depends on it."""
    path = tmp_path / "picture.svg"
    if importlib.util.find_spec("matplotlib") is None:
        with pytest.raises(ConfigError, match=r"pip install 'outlast\[plot\]'"):
            simulate(traces=[traces], **ASKED, plot=path)
    else:
        simulate(traces=[traces], **ASKED, plot=path)
        assert path.read_text().startswith("<?xml")
