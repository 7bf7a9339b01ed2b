"""Drills whose interruptions are announced: the end comes when it was told, and the drill reckons by itself what fits."""

import json
import socket
import sys
import threading
import time
from pathlib import Path

import pytest

from outlast.drill import fitting
from outlast.drill.bucket import bucket
from outlast.drill.bundled import Options, drill_bundled, train_undisturbed
from outlast.drill.director import Happened
from outlast.drill.machine import Machine
from outlast.drill.noticed import Announced
from outlast.drill.on_store import Saved, Written
from outlast.drill.place import Conditions
from outlast.drill.records import Line
from outlast.drill.schedule import Kind, Planned
from outlast.drill.throttle import throttled
from outlast.drill.warned import Moment, Notices, Warned, schedule_notices

INSIDE = Path(__file__).parent / "inside"
TINY = (
    *("--epochs", "6", "--samples", "160", "--batch-size", "8", "--context", "64"),
    *("--width", "32", "--layers", "1", "--validation", "10", "--workers", "1"),
)


def options(notices, *, undisturbed, bytes_per_s=None, env=None):
    return Options(
        seed=3,
        interval_steps=4,
        arguments=TINY,
        env=env or {},
        stall_s=120.0,
        undisturbed=undisturbed,
        conditions=Conditions(notices=notices, lose_disk=True, throttle_bytes_per_s=bytes_per_s),
    )


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drill") / "undisturbed"
    course, final = train_undisturbed(folder, options(None, undisturbed=None))
    assert not course.failures and course.exit_code == 0 and final
    return folder


def test_whoever_tells_and_whenever_what_fits_is_saved_and_resumed_exactly(undisturbed):
    """Four sources and as many moments, faults of the services among them, a new disk each time."""
    sources = ("aws", "gcp", "azure", "alibaba", "tencent", "slurm", "sigterm")
    report = drill_bundled(
        options(
            Notices(sources=sources, warnings_s=(4.0, 8.0), count=4),
            undisturbed=undisturbed,
            bytes_per_s=2_000_000,
        )
    )
    assert report.passed, report.failures
    assert report.bit_identical
    assert len(report.interruptions) >= 3, report.notes
    fit = [item for item in report.interruptions if item.notice.fits]
    assert any(item.notice.commit_reason == "emergency" for item in fit)
    assert all(item.steps_lost <= 1 for item in fit)


def test_an_outlast_that_hears_no_notice_does_not_pass(undisturbed, monkeypatch):
    """With its handlers sabotaged nothing is saved in time, and the drill says that it would have fit."""
    notices = Notices(sources=("sigterm",), warnings_s=(6.0, 6.0), count=1, moments=(Moment.TRAINING,))
    env = {"PYTHONPATH": str(INSIDE), "SABOTAGE": "notices ignored"}
    report = drill_bundled(options(notices, undisturbed=undisturbed, env=env))
    assert not report.passed
    assert any("no emergency checkpoint became durable" in text for text in report.failures), report.failures


def test_one_seed_gives_one_schedule_within_what_was_asked_for():
    lines = [Line(pid=1, time=0.0, step=step, samples=()) for step in range(1, 101)]
    notices = Notices(sources=("aws", "sigterm"), warnings_s=(2.0, 30.0), count=40)
    first, again, other = (schedule_notices(seed, notices, lines) for seed in (1, 1, 2))
    assert first == again != other
    assert {item.kind for item in first} == {Kind.NOTICE}
    assert all(2.0 <= item.warned.warning_s <= 30.0 and 1 <= item.at_step <= 100 for item in first)
    assert {item.warned.moment for item in first} == set(Moment)
    assert all(item.warned.fault is None for item in first if item.warned.source == "sigterm")
    assert {item.warned.fault for item in first if item.warned.source == "aws"} > {None}


def test_what_is_announced_with_no_time_at_all_comes_at_once():
    lines = [Line(pid=1, time=0.0, step=step, samples=()) for step in range(1, 11)]
    plan = schedule_notices(1, Notices(sources=("aws",), warnings_s=(0.0, 0.0), count=3), lines)
    assert [item.warned.warning_s for item in plan] == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("warning_s", "next_step_s", "fits"),
    [
        (10.0, 1.0, True),  # 1 s to the safe point + 1.15 x 5 s + 1 s
        (7.74, 1.0, False),
        (7.76, 1.0, True),
        (10.0, 5.0, False),
        (10.0, None, None),  # no step and no tail ended: nothing new was there
    ],
)
def test_what_fits_is_reckoned_from_the_drills_throttle_and_the_scripts_lines(warning_s, next_step_s, fits):
    notice = reckoned("aws", warning_s, next_step_s)
    assert notice.fits is fits
    assert notice.save_s == 5.0


def test_an_end_that_nobody_announces_fits_nothing():
    assert reckoned("none", 10.0, 1.0).fits is False


def test_one_step_may_be_lost_if_a_save_fits_and_nothing_durable_ever():
    happened = Happened(planned("aws"), 20, 0.0, 0, None, saved=[Saved(1, 14, 0, "abcd", 0.0)])
    assert fitting.lost_bound(reckoned("aws", 10.0, 1.0), happened) == 1
    assert fitting.lost_bound(reckoned("aws", 5.0, 1.0), happened) == 6


def test_a_save_that_fits_and_is_no_emergency_checkpoint_is_told_with_its_figures():
    said = fitting.unused(reckoned("aws", 10.0, 1.0))
    assert said is not None and "fits into its 10.0 s" in said and "safe point after 1.0 s" in said
    assert fitting.unused(reckoned("aws", 10.0, 1.0, reason="emergency")) is None
    assert fitting.unused(reckoned("aws", 5.0, 1.0)) is None


def planned(source):
    return Planned(Kind.NOTICE, 1, 0.0, Warned(source, 10.0, Moment.TRAINING))


def reckoned(source, warning_s, next_step_s, reason=None):
    at = 1000.0
    lines = [Line(pid=1, time=at - 1, step=20)]
    if next_step_s is not None:
        lines.append(Line(pid=1, time=at + next_step_s, step=21))
    saves = () if reason is None else (Written(Saved(1, 21, 0, "abcd", at + 7), reason, 50_000_000),)
    announced = Announced(planned(source).warned, at, at + warning_s, at + warning_s, None, None, saves)
    happened = Happened(planned(source), 20, at, len(lines), None)
    return fitting.reckon(happened, announced, lines, state_bytes=50_000_000, bytes_per_s=10_000_000)


def test_each_start_finds_a_machine_whose_disk_is_new(tmp_path):
    """What one start leaves in its home, temporary and working directory, the next one does not see."""
    script = (
        "import json, os, sys, pathlib, tempfile\n"
        "places = [pathlib.Path.home(), pathlib.Path(tempfile.gettempdir()), pathlib.Path.cwd()]\n"
        "found = [sorted(os.listdir(place)) for place in places]\n"
        "[(place / 'left').write_text('x') for place in places]\n"
        "print(json.dumps([found, len(set(places))]))\n"
    )
    machine = Machine(
        [sys.executable, "-S", "-c", script],
        env={},
        token="disks",
        log=tmp_path / "log",
        disk=tmp_path / "disk",
    )
    for _ in range(2):
        machine.start()
        assert machine.wait_gone(machine.supervisor or 0, 30)
    said = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert said == [[[[], [], []], 3]] * 2


def test_what_passes_a_throttle_takes_its_time_and_arrives_whole():
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        throttled(server.getsockname(), 1_000_000) as throttle,
    ):
        got = bytearray()

        def take():
            connection, _ = server.accept()
            with connection:
                while data := connection.recv(65536):
                    got.extend(data)

        thread = threading.Thread(target=take)
        thread.start()
        sent = bytes(range(256)) * 2000
        began = time.monotonic()
        with socket.create_connection(("127.0.0.1", throttle.port)) as client:
            client.sendall(sent)
            client.shutdown(socket.SHUT_WR)
            assert client.recv(1) == b""
        thread.join()
        assert time.monotonic() - began >= len(sent) / 1_000_000 * 0.9
        assert bytes(got) == sent
        assert throttle.passed_bytes == len(sent)


def test_the_buckets_key_stands_in_no_process_list(tmp_path):
    with bucket(tmp_path, None) as served:
        secret = served.env["AWS_SECRET_ACCESS_KEY"]
        commands = b"".join(path.read_bytes() for path in proc_files("cmdline"))
        assert b"rclone" in commands
        assert secret.encode() not in commands


def proc_files(name):
    for path in Path("/proc").glob(f"[0-9]*/{name}"):
        try:
            path.read_bytes()
        except OSError:
            continue
        yield path
