"""`outlast plan`: what it prints, what it refuses, what it takes from a run, and the page that shows it."""

from __future__ import annotations

import json
import re
import shlex
from functools import partial
from pathlib import Path

import pytest

from field.torchless import Trainer, events
from outlast._errors import ConfigError
from outlast._types import Capacity
from outlast.agent.protocol import Hello
from outlast.cli.plan import app
from outlast.sim.generate import generate, write

PAGE = (Path(__file__).parents[2] / "docs" / "when-not-to-use-spot.md").read_text()
SHOWN = re.findall(r"^```bash\noutlast plan (.*?)\n```\n\n```\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
FLAGS = {
    "--work": "6h",
    "--deadline": "10h",
    "--spot": "0.92usd",
    "--on-demand": "3.06usd",
    "--state": "14GB",
    "--rate": "0.9GB/s",
    "--pause": "0.5s",
}


def planned(capsys, *more, **changed):
    """What is printed for the small job, some flags changed or, with None, left out."""
    flags = {**FLAGS, **{f"--{name.replace('_', '-')}": value for name, value in changed.items()}}
    arguments = [f"{name}={value}" for name, value in flags.items() if value is not None]
    app([*arguments, *more], exit_on_error=False, print_error=False, result_action="return_value")
    return capsys.readouterr().out


@pytest.mark.parametrize(("flags", "shown"), SHOWN, ids=[flags for flags, _ in SHOWN])
def test_the_page_shows_what_its_commands_print(flags, shown, capsys):
    """All of it, to the last digit: what is drawn is drawn from a seed."""
    app(shlex.split(flags), result_action="return_value")
    printed = "\n".join(line.rstrip() for line in capsys.readouterr().out.splitlines())
    assert printed == shown.rstrip("\n")


def test_the_page_has_an_example_of_every_verdict_and_reason():
    """In the words of the guide."""
    text = "".join(shown for _, shown in SHOWN)
    for words in (
        "\nnot worth it: ",
        "too close to call: ",
        "job too short",
        "deadline leaves no room",
        "tightly synchronised multi-node without elasticity",
        "save does not fit and hazard is high",
        "saving smaller than the effort",
    ):
        assert words in f"\n{text}"
    assert SHOWN[0][1].startswith("worth it: ")


def test_where_each_price_comes_from_is_said(capsys):
    """Given by a flag, or counted as nothing since nobody gave it."""
    out = planned(capsys, egress="0.02usd")
    assert "spot, per machine and hour: 0.92 USD (given)" in out
    assert "egress, per GB: 0.02 USD (given)" in out
    assert "storage, per GB and month: not given: counted as 0" in out


def test_json_and_explain_hold_the_same_terms(capsys):
    """Every one, with its formula."""
    found = json.loads(planned(capsys, "--json"))
    out = planned(capsys, "--explain")
    assert {
        "machines",
        "egress",
        "storage",
        "requests",
        "engineering",
        "lost work",
        "save overhead",
        "restarts",
    } <= {term["name"] for term in found["terms"]}
    for term in found["terms"]:
        assert f"{term['name']}: {term['value']:.2f}" in out
        assert term["formula"] in out
        assert term["numbers"] in out
    assert found["net_saving_usd"]["p5"] <= found["net_saving_usd"]["mean"] <= found["net_saving_usd"]["p95"]
    assert found["cost_usd"]["mean"] == pytest.approx(
        found["on_demand_usd"] - found["net_saving_usd"]["mean"]
    )
    assert found["cost_usd"]["p95"] == pytest.approx(found["on_demand_usd"] - found["net_saving_usd"]["p5"])


def test_work_counted_in_steps_is_the_same_work(capsys):
    """21,600 steps of a second are six hours."""
    assert planned(capsys, "--step", "1s", work="21600 steps") == planned(capsys)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"work": "0h"}, "--work is '0h'"),
        ({"work": "-1h"}, "--work is '-1h'"),
        ({"work": "nan"}, "--work is 'nan'"),
        ({"work": "6parsecs"}, "--work is '6parsecs'"),
        ({"work": "100 steps"}, "--step as well"),
        ({"deadline": "5h"}, "--deadline is '5h', sooner than --work"),
        ({"deadline": "2020-01-01T00:00"}, "--deadline is '2020-01-01T00:00', which is over"),
        ({"spot": None}, "--spot is not given"),
        ({"on_demand": None}, "--on-demand is not given"),
        ({"spot": "0usd"}, "--spot is '0'"),
        ({"spot": "nan"}, "--spot is 'nan'"),
        ({"on_demand": "-3usd"}, "--on-demand is '-3usd'"),
        ({"spot": "0.92eur"}, "--spot is '0.92eur'"),
        ({"state": None}, "--state is not given"),
        ({"state": "14 bananas"}, "--state is '14 bananas'"),
        ({"rate": "1GB"}, "--rate is '1GB'"),
        ({"pause": "-1s"}, "--pause is '-1s'"),
        ({"notice": "soon"}, "--notice is 'soon'"),
        ({"hazard": "0/h"}, "--hazard is '0/h'"),
        ({"hazard": "0.1"}, "--hazard is '0.1'"),
        ({"recall": "120%"}, "--recall is '120%'"),
        ({"nodes": "0"}, "--nodes is 0"),
        ({"runs": "0"}, "--runs is 0"),
        ({"engineering": "-5usd"}, "--engineering is '-5usd'"),
        ({"egress": "free"}, "--egress is 'free'"),
        ({"max_lost_work": "0s"}, "--max-lost-work is '0s'"),
    ],
)
def test_bad_input_is_refused_and_its_flag_named(changed, says, capsys):
    """With what was found; before anything is replayed."""
    with pytest.raises(ConfigError, match=re.escape(says)):
        planned(capsys, **changed)


def test_traces_are_replayed_as_they_are_and_say_the_hazard(tmp_path, capsys):
    """A zone where spot is scarce saves less than one where it is steady."""
    saved = {}
    for kind in ("steady", "scarce"):
        path = tmp_path / f"{kind}.csv.gz"
        write(path, generate({"zone-1": kind}, days=20, nodes=1, seed=2))
        found = json.loads(planned(capsys, "--json", "--traces", str(path)))
        assert found["hazard"]["source"] == f"measured: {kind}.csv.gz"
        assert "of the traces" in found["replayed"]
        saved[kind] = found["net_saving_usd"]["mean"] / found["on_demand_usd"]
    assert saved["steady"] > 0.5
    assert saved["scarce"] < 0.4
    with pytest.raises(ConfigError, match="--hazard and --traces"):
        planned(capsys, "--traces", str(path), hazard="0.1/h")


def test_a_run_says_what_its_saves_wrote_and_how_fast(tmp_path, capsys, monkeypatch):
    """From its ledger, where no flag says it; the pause of a run that measured none has to be given."""
    for name in ("OUTLAST_AGENT", "OUTLAST_LAUNCH_ID", "OUTLAST_NOTICE_FILE", "OUTLAST_GRACE_S"):
        monkeypatch.delenv(name, raising=False)
    told = Capacity(pool="here", usd_per_hour=1.25, usd_from="a price list", on_demand_usd_per_hour=4.5)
    monkeypatch.setattr("field.torchless.Hello", partial(Hello, capacity=told))
    trainer = Trainer(f"file://{tmp_path}/run")
    trainer.join()
    for step in (1, 2):
        trainer.save_and_wait(step, bytes([step]) * 200_000)
    trainer.close("finished")
    saves = [record for record in events(tmp_path / "run") if record["kind"] == "save" and record["seconds"]]
    slowest = max(saves, key=lambda save: save["seconds"])
    url = f"file://{tmp_path}/run"
    out = planned(capsys, "--json", "--run", url, state=None, rate=None, spot=None, on_demand=None)
    found = json.loads(out)
    assert found["emergency_save"]["needs_s"] == pytest.approx(slowest["seconds"])
    assert found["prices"]["spot"]["usd"] == 1.25
    assert found["prices"]["on_demand"]["usd"] == 4.5
    assert found["prices"]["spot"]["source"] == "the run's ledger, from a price list"
    assert 0 <= found["prices"]["spot"]["age_s"] < 600
    given = json.loads(planned(capsys, "--json", "--run", url))
    assert given["prices"]["spot"] == {"usd": 0.92, "source": "given", "age_s": None}
