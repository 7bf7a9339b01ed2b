"""`outlast plan`: what it prints, what it refuses, what it takes from a run, and the page that shows it."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import time
from functools import partial
from pathlib import Path

import pytest

from field.torchless import Trainer, events
from outlast._errors import ConfigError
from outlast._types import Capacity
from outlast.agent.protocol import Hello
from outlast.cli._plan_given import Flags, given
from outlast.cli._plan_run import measured
from outlast.cli.plan import app
from outlast.sim.generate import generate, write

PAGE = (Path(__file__).parents[2] / "docs" / "when-not-to-use-spot.md").read_text()
SHOWN = re.findall(r"^```bash\noutlast plan (.*?)\n```\n\n```\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
(FILE,) = re.findall(r"^```toml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
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
def test_the_page_shows_what_its_commands_print(flags, shown, capsys, tmp_path, monkeypatch):
    """All of it, to the last digit: what is drawn is drawn from a seed. The file is three days old there."""
    job_file(tmp_path, FILE)
    monkeypatch.chdir(tmp_path)
    app(shlex.split(flags), result_action="return_value")
    printed = "\n".join(line.rstrip() for line in capsys.readouterr().out.splitlines())
    assert printed == shown.rstrip("\n")


def test_the_page_has_an_example_of_every_verdict_and_reason():
    """In the words of the guide."""
    text = "".join(shown for _, shown in SHOWN)
    for words in (
        "\nnot worth it:",
        "too close to call:",
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
        ({"deadline": "5h"}, "--deadline is '5h', which leaves 5.00 h; --work and one start take 6.00 h"),
        ({"deadline": "6h"}, "--deadline is '6h', which leaves 6.00 h"),
        (
            {"deadline": "2026-13-45"},
            "--deadline is '2026-13-45'; expected a time after the beginning such as 70h, or",
        ),
        ({"deadline": "nan"}, "--deadline is 'nan'"),
        ({"deadline": "2020-01-01T00:00"}, "--deadline is '2020-01-01T00:00', which is over"),
        ({"spot": None}, "--spot is not given"),
        ({"on_demand": None}, "--on-demand is not given"),
        ({"spot": "0usd"}, "--spot is '0usd'"),
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
        ({"nodes": "0"}, "--nodes is '0'"),
        ({"nodes": "2.5"}, "--nodes is '2.5'; expected a whole number"),
        ({"nodes": "-4"}, "--nodes is '-4'"),
        ({"runs": "0"}, "--runs is '0'"),
        ({"engineering": "-5usd"}, "--engineering is '-5usd'"),
        ({"egress": "free"}, "--egress is 'free'"),
        ({"max_lost_work": "0s"}, "--max-lost-work is '0s'"),
    ],
)
def test_bad_input_is_refused_and_its_flag_named(changed, says, capsys):
    """With what was found; before anything is replayed."""
    with pytest.raises(ConfigError, match=re.escape(says)):
        planned(capsys, **changed)


def job_file(folder, text, days=3):
    """A job file that was written so many days ago."""
    path = folder / "job.toml"
    path.write_text(text)
    then = time.time() - days * 86_400
    os.utime(path, (then, then))
    return path


def test_a_job_file_says_what_flags_say(tmp_path, capsys):
    """All of it, required flags too; the plan is the same, and each price says which file it is from and how old that is."""
    table = "".join(f"{name[2:]} = {json.dumps(value)}\n" for name, value in FLAGS.items())
    path = job_file(tmp_path, f"[plan]\n{table}egress = 0.02\n[launch]\nother = 'commands'\n")
    out = planned(capsys, "--job", str(path), **dict.fromkeys(name[2:].replace("-", "_") for name in FLAGS))
    assert "spot, per machine and hour: 0.92 USD (job.toml, written 3 days ago)\n" in out
    assert "egress, per GB: 0.02 USD (job.toml, written 3 days ago)\n" in out
    assert out.replace("job.toml, written 3 days ago", "given") == planned(capsys, egress="0.02usd")


def test_a_flag_goes_before_the_file(tmp_path):
    """For itself, and for what makes sense only beside what it replaces: a time per step, a rate beside traces."""
    path = job_file(
        tmp_path,
        "[plan]\nwork = '20000steps'\nstep = '1s'\nhazard = '0.1/h'\nelastic = true\nnodes = 4\non-demand = 3\n",
    )
    found = given(Flags(on_demand="4usd", elastic=False), path)
    assert found.flags == Flags(
        work="20000steps", step="1s", hazard="0.1/h", elastic=False, nodes="4", on_demand="4usd"
    )
    assert found.name("on_demand") == "--on-demand"
    assert found.name("hazard") == f"{path}: [plan] hazard"
    assert given(Flags(work="48h"), path).flags.step is None
    assert given(Flags(work="30000steps"), path).flags.step == "1s"
    assert given(Flags(traces=[Path("a.csv")]), path).flags.hazard is None


def test_paths_in_a_file_start_where_it_is_and_times_are_toml(tmp_path):
    """Wherever the command runs; a name or a URL of a run stays what it is."""
    path = job_file(
        tmp_path, "[plan]\ntraces = ['a.csv', '/b.csv']\nrun = './runs/a'\ndeadline = 2026-12-01T12:00:00Z\n"
    )
    flags = given(Flags(), path).flags
    assert flags.traces == [tmp_path / "a.csv", Path("/b.csv")]
    assert flags.run == f"{tmp_path}/runs/a"
    assert flags.deadline == "2026-12-01T12:00:00+00:00"
    assert given(Flags(), job_file(tmp_path, "[plan]\nrun = 'gpt-small'\n")).flags.run == "gpt-small"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("work = '6h'", 'has no table [plan]; expected one with lines such as work = "48h"'),
        ("plan = 3", "has no table [plan]"),
        ("[plan\nwork", "is no TOML: "),
        ("[plan]\nwork = 6h", "at line 2"),
        ("[plan]\nwork = " + "[" * 9_999, "is no TOML: "),
        ("[plan]\nspot = '\udcff'", "is no TOML: "),
        (
            "[plan]\non_demand = 3.06",
            "[plan] holds 'on_demand', which it does not know; expected keys of work, ",
        ),
        ("[plan]\nexplain = true", "[plan] holds 'explain', which"),
        ("[plan]\nwork = 48", '[plan] work is 48; expected a value such as work = "48h"'),
        ("[plan]\nnodes = '4'", "[plan] nodes is '4'; expected a value such as nodes = 4"),
        ("[plan]\nnodes = true", "[plan] nodes is True; expected a value such as nodes = 4"),
        ("[plan]\nnodes = 2.5", "[plan] nodes is 2.5; expected"),
        ("[plan]\nelastic = 'yes'", "[plan] elastic is 'yes'; expected a value such as elastic = true"),
        (
            "[plan]\ntraces = 'a.csv'",
            "[plan] traces is 'a.csv'; expected a value such as traces = [\"zones.csv.gz\"]",
        ),
        ("[plan]\ntraces = []", "[plan] traces is []; expected"),
        ("[plan]\nspot = [1]", "[plan] spot is [1]; expected a value such as spot = 0.92"),
        ("[plan]\nspot = nan", "job.toml: [plan] spot is 'nan'; expected USD of at least 0"),
        ("[plan]\nspot = -1", "job.toml: [plan] spot is '-1'; expected USD of at least 0"),
        ("[plan]\nspot = 0.0", "job.toml: [plan] spot is '0.0'; expected more than 0"),
        ("[plan]\nnodes = 0", "job.toml: [plan] nodes is '0'; expected a whole number"),
        ("[plan]\nhazard = 'often'", "job.toml: [plan] hazard is 'often'; expected"),
        ("[plan]\nrecall = 90.0", "job.toml: [plan] recall is '90.0'; expected a share"),
        ("[plan]\ndeadline = 2020-01-01", "job.toml: [plan] deadline is '2020-01-01', which is over"),
    ],
)
def test_a_bad_job_file_is_refused_and_its_key_named(text, says, tmp_path, capsys):
    """With the file, what was found, and what is expected there."""
    path = job_file(tmp_path, "")
    path.write_bytes(text.encode(errors="surrogateescape"))
    key = re.search(r"^(spot|deadline) =", text, re.MULTILINE)
    with pytest.raises(ConfigError, match=re.escape(says)) as raised:
        planned(capsys, "--job", str(path), **({key.group(1): None} if key else {}))
    assert str(path) in str(raised.value)


def test_a_job_file_that_is_not_there_or_says_too_little_is_refused(tmp_path, capsys):
    """By its name."""
    with pytest.raises(ConfigError, match=r"no\.toml cannot be read: No such file"):
        planned(capsys, "--job", str(tmp_path / "no.toml"))
    path = job_file(tmp_path, "[plan]\n")
    with pytest.raises(ConfigError, match=rf"--work is not given, nor does {path} say it; expected .* 48h"):
        planned(capsys, "--job", str(path), work=None)
    with pytest.raises(ConfigError, match=r"--pause is not given, nor does .* or a run \(--run\) say it"):
        planned(capsys, pause=None)


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


def test_machines_that_are_lost_all_the_time_have_a_plan_too(capsys):
    """Its work is hardly ever done, and no number of many digits says by how much."""
    out = planned(capsys, hazard="1000/h")
    assert "over 1000%" in out
    assert not re.search(r"\d{5}%|inf|nan", out)


def test_more_room_than_helps_changes_nothing(capsys):
    """A job of six hours costs the same with a deadline of a month and of a century."""
    month, century = (json.loads(planned(capsys, "--json", deadline=far)) for far in ("720h", "876000h"))
    assert month["net_saving_usd"] == century["net_saving_usd"]
    assert month["verdict"] == "worth it"


def test_a_picture_of_the_plan_is_drawn_or_what_is_missing_is_named(tmp_path, capsys):
    """Of a plan whose lines leave the picture too; matplotlib is an extra."""
    path = tmp_path / "plan.svg"
    if importlib.util.find_spec("matplotlib") is None:
        with pytest.raises(ConfigError, match=r"pip install 'outlast\[plot\]'"):
            planned(capsys, f"--plot={path}")
        return
    for changed in ({}, {"hazard": "1000/h"}, {"deadline": "6.2h"}, {"pause": "0s", "recall": "100%"}):
        planned(capsys, f"--plot={path}", **changed)
        assert path.read_text().startswith("<?xml")
        path.unlink()
    with pytest.raises(ConfigError, match=r"plan\.txt cannot be written: .* \.png"):
        planned(capsys, f"--plot={tmp_path}/plan.txt")


def test_a_run_says_what_its_saves_wrote_and_how_fast(tmp_path, capsys, monkeypatch):
    """From its ledger, where no flag says it; the pause of a run that measured none has to be given."""
    for name in ("OUTLAST_AGENT", "OUTLAST_LAUNCH_ID", "OUTLAST_NOTICE_FILE", "OUTLAST_GRACE_S"):
        monkeypatch.delenv(name, raising=False)
    told = Capacity(pool="here", usd_per_hour=1.25, usd_from="a price list", on_demand_usd_per_hour=4.5)
    monkeypatch.setattr("field.torchless.Hello", partial(Hello, capacity=told))
    trainer = Trainer(f"file://{tmp_path}/run")
    trainer.join()
    for step in (1, 2):
        trainer.save_and_wait(step, bytes(39_999_999) + bytes([step]))
    trainer.close("finished")
    saves = [record for record in events(tmp_path / "run") if record["kind"] == "save" and record["seconds"]]
    slowest = max(saves, key=lambda save: save["seconds"])
    url = f"file://{tmp_path}/run"
    out = planned(capsys, "--json", "--run", url, state=None, rate=None, spot=None, on_demand=None)
    found = json.loads(out)
    assert found["emergency_save"]["needs_s"] == pytest.approx(slowest["seconds"])
    assert measured(url).whole_bytes == 40_000_000
    assert saves[-1]["bytes_written"] < 30_000_000
    assert found["prices"]["spot"]["usd"] == 1.25
    assert found["prices"]["on_demand"]["usd"] == 4.5
    assert found["prices"]["spot"]["source"] == "the run's ledger, from a price list"
    assert 0 <= found["prices"]["spot"]["age_s"] < 600
    given = json.loads(planned(capsys, "--json", "--run", url))
    assert given["prices"]["spot"] == {"usd": 0.92, "source": "given", "age_s": None}
