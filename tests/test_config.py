"""Where a run lives, whether it resumes, how often it saves."""

from __future__ import annotations

import inspect
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outlast import ConfigError
from outlast._config import (
    RESERVED,
    Every,
    capacity,
    parse_duration_s,
    parse_every,
    resolve_place,
    resume_mode,
    save_every,
)
from outlast._types import Capacity, MaxLost

CWD = Path("/home/me/project")
ARGV = ("train.py", "--lr", "3e-4")


def url(name=None, env=None, argv=ARGV):
    return resolve_place(name, env or {}, argv, CWD).url


@pytest.mark.parametrize("place", ["s3://bucket/runs/a", "file:///mnt/runs/a", "s3://bucket/runs/a/"])
def test_a_url_is_the_place(place):
    """Neither root, nor array task, nor anything else changes it."""
    env = {"OUTLAST_STORE": "s3://other", "SLURM_ARRAY_TASK_ID": "4"}
    found = resolve_place(place, env, ARGV, CWD)
    assert (found.url, found.name, found.note) == (place.rstrip("/"), "a", None)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/mnt/runs/a", "file:///mnt/runs/a"),
        ("./runs/a", "file:///home/me/project/runs/a"),
        ("../a", "file:///home/me/a"),
        ("/mnt/my runs/a", "file:///mnt/my%20runs/a"),
    ],
)
def test_a_path_is_a_place(path, expected):
    """What starts like a path is one, seen from the working directory."""
    assert url(path) == expected


def test_a_name_is_a_folder_under_the_root():
    """By default under the working directory, and then it says that the disk does not outlive the machine."""
    place = resolve_place("gpt-small", {}, ARGV, CWD)
    assert place.url == "file:///home/me/project/outlast-runs/gpt-small"
    assert "does not outlive the machine" in place.note
    assert "OUTLAST_STORE" in place.note
    chosen = resolve_place("gpt-small", {"OUTLAST_STORE": "s3://bucket/runs/"}, ARGV, CWD)
    assert (chosen.url, chosen.note) == ("s3://bucket/runs/gpt-small", None)
    assert url("a", {"OUTLAST_STORE": "shared"}) == "file:///home/me/project/shared/a"


@pytest.mark.parametrize(
    "name", ["", "a/b", "..", ".hidden", "-x", "a b", "a\n", "a" * 201, "ä", "a:b", "C:\\x"]
)
def test_a_wrong_name_is_refused(name):
    """A name is one folder, on every store."""
    with pytest.raises(ConfigError, match="no name for a run"):
        url(name)


def test_without_a_name_script_and_arguments_name_the_run():
    """The same command is the same run; another learning rate is another one, and so is `a b` beside `ab`."""
    assert url().startswith("file:///home/me/project/outlast-runs/train-")
    assert len(url().rsplit("-", 1)[1]) == 6
    assert url() == url(argv=("/elsewhere/train.py", "--lr", "3e-4"))
    urls = {
        url(argv=("train.py", *rest))
        for rest in [(), ("--lr", "1"), ("--lr", "2"), ("--lr1",), ("--lr", "1 ")]
    }
    assert len(urls) == 5


def test_the_rank_in_the_arguments_makes_no_other_run():
    """torch.distributed.launch hands every rank another --local-rank."""
    assert url(argv=(*ARGV, "--local-rank=3")) == url(argv=(*ARGV, "--local_rank=0")) == url()


def test_the_environment_names_the_run():
    """$OUTLAST_RUN stands before the script's name, after the script's own choice; it may be a place."""
    assert url(None, {"OUTLAST_RUN": "b"}).endswith("/b")
    assert url("a", {"OUTLAST_RUN": "b"}).endswith("/a")
    assert url(None, {"OUTLAST_RUN": "s3://bucket/x"}) == "s3://bucket/x"


def test_tasks_of_an_array_get_a_place_each():
    """They all have the same arguments; a name that the script gives is left alone."""
    assert url(None, {"SLURM_ARRAY_TASK_ID": "4"}) == url() + "-4"
    assert url(None, {"SLURM_ARRAY_TASK_ID": "4", "OUTLAST_RUN": "b"}).endswith("/b-4")
    assert url("a", {"SLURM_ARRAY_TASK_ID": "4"}).endswith("/a")


@pytest.mark.parametrize("argv", [("",), ("-c",), ("/x/ipykernel_launcher.py", "-f", "kernel-1.json"), ()])
def test_without_a_script_a_name_is_asked_for(argv):
    """A notebook's kernel has another argument each time: no name that a resume could find."""
    with pytest.raises(ConfigError, match="give a name"):
        url(argv=argv)


def test_a_module_is_named_after_its_package():
    """`python -m trainer` runs trainer/__main__.py; odd characters do not get into the name."""
    assert "/trainer-" in url(argv=("/x/trainer/__main__.py",))
    assert "/my-script-" in url(argv=("/x/my script.py",))
    assert "/run-" in url(argv=("/x/äöü.py",))


@given(st.lists(st.text(), min_size=1))
def test_any_command_line_names_a_run_or_asks(argv):
    """Whatever the arguments, the name is valid or the error is ours."""
    try:
        place = resolve_place(None, {}, argv, CWD)
    except ConfigError:
        return
    assert resolve_place(place.name, {}, ARGV, CWD).url == place.url


def test_the_environment_overrides_how_to_start():
    """$OUTLAST_RESUME stands before the script's option; an empty one does not count."""
    assert resume_mode("auto", {}) == "auto"
    assert resume_mode("auto", {"OUTLAST_RESUME": "never"}) == "never"
    assert resume_mode("must", {"OUTLAST_RESUME": ""}) == "must"
    with pytest.raises(ConfigError, match="OUTLAST_RESUME is 'yes'"):
        resume_mode("auto", {"OUTLAST_RESUME": "yes"})
    with pytest.raises(ConfigError, match="resume is True"):
        resume_mode(True, {})


@pytest.mark.parametrize(
    ("value", "every"),
    [
        ("auto", Every(300.0, None, MaxLost(600.0))),
        (45, Every(45.0, None)),
        (0.25, Every(0.25, None)),
        ("45", Every(45.0, None)),
        ("30s", Every(30.0, None)),
        ("1.5 m", Every(90.0, None)),
        ("5 minutes", Every(300.0, None)),
        ("1h", Every(3600.0, None)),
        ("200ms", Every(0.2, None)),
        (timedelta(minutes=2), Every(120.0, None)),
        ("25 steps", Every(None, 25)),
        ("1 step", Every(None, 1)),
    ],
)
def test_how_often_to_save(value, every):
    """Seconds, a timedelta, a text with a unit, or steps."""
    assert parse_every(value) == every


@pytest.mark.parametrize(
    "value",
    [0, -1, "0 steps", "-5m", "often", "", "5 x", float("nan"), float("inf"), True, None, "1.5 steps", [5]],
)
def test_a_wrong_interval_is_refused(value):
    """The message names the option, what it was and what it may be."""
    with pytest.raises(ConfigError, match="save_every is .*; expected seconds above 0"):
        parse_every(value)


def test_the_environment_overrides_how_often_to_save():
    """$OUTLAST_SAVE_EVERY is what a drill uses, and named where it is wrong."""
    assert save_every("auto", {"OUTLAST_SAVE_EVERY": "10 steps"}) == Every(None, 10)
    assert save_every("5m", {}) == Every(300.0, None)
    with pytest.raises(ConfigError, match="OUTLAST_SAVE_EVERY is 'x'"):
        save_every("auto", {"OUTLAST_SAVE_EVERY": "x"})


def test_durations_may_be_zero_and_not_less():
    """`--store-wait 0` is no wait."""
    assert parse_duration_s("0", "x") == 0.0
    assert parse_duration_s("1h", "x") == 3600.0
    with pytest.raises(ConfigError, match="--store-wait is '-1'"):
        parse_duration_s("-1", "--store-wait")


@pytest.mark.parametrize(
    ("value", "limit"),
    [
        (None, MaxLost(600.0)),
        ("5m", MaxLost(300.0)),
        (90, MaxLost(90.0)),
        (timedelta(hours=1), MaxLost(3600.0)),
        ("2%", MaxLost(None, 0.02)),
        ("0.5 %", MaxLost(None, 0.005)),
    ],
)
def test_what_may_be_lost_is_a_duration_or_a_share_of_the_run(value, limit):
    """10 minutes if nothing is said. Until the interval is computed, saves come at least as often."""
    every = save_every("auto", {}, value)
    assert every.max_lost == limit
    assert every.seconds == min(300.0, limit.seconds or 300.0)


@pytest.mark.parametrize(
    "value", [0, -1, "0%", "101%", "-2%", "much", float("nan"), float("inf"), True, "25 steps"]
)
def test_a_wrong_limit_is_refused(value):
    """The message names the option, what it was and what it may be."""
    with pytest.raises(
        ConfigError, match="max_lost_work is .*; expected seconds above 0, .* share of the run"
    ):
        save_every("auto", {}, value)


def test_a_limit_of_an_interval_that_the_script_gives_itself_is_refused():
    """Both cannot be kept; from outside, an interval overrides both, and a limit the script's."""
    with pytest.raises(
        ConfigError, match="save_every is '1h' and max_lost_work is '10m'; expected one of them"
    ):
        save_every("1h", {}, "10m")
    assert save_every("auto", {"OUTLAST_SAVE_EVERY": "10 steps"}, "10m") == Every(None, 10)
    assert save_every("auto", {"OUTLAST_MAX_LOST_WORK": "5m"}, "10m").max_lost == MaxLost(300.0)
    assert save_every("1h", {"OUTLAST_MAX_LOST_WORK": "5m"}) == Every(3600.0, None)
    with pytest.raises(ConfigError, match="OUTLAST_MAX_LOST_WORK is 'x'"):
        save_every("auto", {"OUTLAST_MAX_LOST_WORK": "x"})


def test_a_price_that_nobody_gives_stays_unknown_and_a_wrong_one_is_refused():
    """0 is no price: who does not know it leaves it out."""
    assert capacity({}) == Capacity(pool="unknown")
    env = {
        "OUTLAST_POOL": "aws-1a-p4d",
        "OUTLAST_USD_PER_HOUR": "9.5",
        "OUTLAST_ON_DEMAND_USD_PER_HOUR": "32.77",
    }
    known = Capacity(
        pool="aws-1a-p4d", usd_per_hour=9.5, usd_from="environment", on_demand_usd_per_hour=32.77
    )
    assert capacity(env) == known
    for wrong in ("0", "-1", "nan", "inf", "9,5"):
        with pytest.raises(
            ConfigError, match=f"OUTLAST_USD_PER_HOUR is '{wrong}'; expected USD per hour above 0"
        ):
            capacity({"OUTLAST_USD_PER_HOUR": wrong})
    with pytest.raises(ConfigError, match=r"OUTLAST_POOL is '\.\./x'; expected up to 200 letters"):
        capacity({"OUTLAST_POOL": "../x"})


def test_every_option_of_run_is_reserved():
    """No state can take the name of an option, and every reserved name is one."""
    from outlast.run import Run

    kinds = inspect.Parameter
    options = {
        name
        for name, parameter in inspect.signature(Run).parameters.items()
        if parameter.kind not in {kinds.VAR_KEYWORD, kinds.VAR_POSITIONAL}
    }
    assert options == RESERVED
