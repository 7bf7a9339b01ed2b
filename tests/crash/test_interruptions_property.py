"""However a run is interrupted, its surviving history is the undisturbed one: no sample repeated, none skipped.

Every attempt is a real process with a real agent, and every interruption a real signal. What was trained is what the
script wrote after each optimizer step, with a counter that lives in the model.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from launch import Lab, eventually, history

SCRIPT = Path(__file__).with_name("interrupted.py")
EXAMPLES = int(os.environ.get("OUTLAST_TEST_EXAMPLES", "8"))
"""`make soak` asks for many more."""
ALARM_MS = 400
"""About as long as a small run takes, its start included."""
CODES = {
    "trainer": {-signal.SIGKILL},
    "both": {-signal.SIGKILL},
    "agent": {0},
    "term": {os.EX_TEMPFAIL, 0},  # 0: it came in the last step's tail, and nothing was left to do
    "group": {os.EX_TEMPFAIL, 0},
    "error": {1},
    "alarm": {-signal.SIGALRM, 0},
}

shapes = st.fixed_dictionaries(
    {
        "samples": st.integers(1, 40),
        "batch": st.integers(1, 7),
        "workers": st.sampled_from([0, 2]),
        "accumulate": st.integers(1, 4),
        "epochs": st.integers(1, 3),
        "carry": st.booleans(),
    }
)
interruptions = st.tuples(st.sampled_from(sorted(CODES)), st.floats(0, 1), st.booleans())
"""How; how far into what an undisturbed run does; whether the next start waits until all of this one has ended."""


@pytest.fixture(scope="module")
def undisturbed(zygote, tmp_path_factory):
    """Gives history and end of a run of some shape that nobody disturbs."""

    def run(shape):
        lab = Lab(tmp_path_factory.mktemp("undisturbed"), zygote)
        assert lab.script(path=SCRIPT, T_SHAPE=json.dumps(shape)).wait() == 0, lab.said()
        (end,) = lab.of("end")
        return history(lab.records), end

    return run


@given(shape=shapes, every=st.integers(1, 12), schedule=st.lists(interruptions, min_size=1, max_size=4))
@example(
    shape={"samples": 23, "batch": 4, "workers": 2, "accumulate": 4, "epochs": 2, "carry": True},
    every=1,
    schedule=[("group", 0.2, False), ("both", 0.3, False), ("trainer", 0.45, True), ("agent", 0.1, True)],
)
@example(
    shape={"samples": 12, "batch": 3, "workers": 0, "accumulate": 3, "epochs": 3, "carry": True},
    every=2,
    schedule=[("term", 0.28, True), ("error", 0.3, True), ("alarm", 0.5, False), ("both", 0.2, False)],
)
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    phases=[
        Phase.explicit,
        Phase.reuse,
        Phase.generate,
    ],  # a schedule is short as it is, and each try takes seconds
    suppress_health_check=[HealthCheck.too_slow],
)
def test_no_sample_is_repeated_or_skipped(zygote, tmp_path_factory, undisturbed, shape, every, schedule):
    """Whatever interrupts it, wherever: the steps that survive are those of the undisturbed run, to the last bit."""
    wanted, expected_end = undisturbed(shape)
    lab = Lab(tmp_path_factory.mktemp("disturbed"), zygote)
    lab.env |= {"OUTLAST_SAVE_EVERY": f"{every} steps", "T_SHAPE": json.dumps(shape)}
    try:
        survive(lab, schedule, expected_end["moments"])
        assert history(lab.records) == wanted
        end = lab.of("end")[-1]
        assert {n: end[n] for n in ("digest", "rand", "lr", "left")} == {
            n: expected_end[n] for n in ("digest", "rand", "lr", "left")
        }
        if not shape["carry"]:
            for epoch in range(shape["epochs"]):
                taken = [s for at, _, samples, _ in history(lab.records) if at == epoch for s in samples]
                assert sorted(taken) == list(range(shape["samples"]))
        lab.nothing_left()
    finally:
        lab.close()


def survive(lab, schedule, moments):
    """Interrupt it as planned, then let it end; after a SIGTERM nothing may be lost."""
    for kind, share, waits in schedule:
        after = round(share * (ALARM_MS if kind == "alarm" else 0.6 * moments)) + 1
        script = lab.script(path=SCRIPT, T_PLAN=json.dumps({"kind": kind, "after": after}))
        code = script.wait()
        ended = lab.of("end", script.pid)
        assert code in CODES[kind] or (code == 0 and ended), (
            f"{kind} after {after}: exit {code}\n{lab.said()}"
        )
        if ended:
            return
        if waits:
            lab.nothing_left()
        if code == os.EX_TEMPFAIL:
            (begun,) = lab.of("run", script.pid)
            taken = max([r["count"] for r in lab.of("step", script.pid)], default=begun["step"])
            saved = [c["step"] for c in lab.commits()][-1]
            assert saved == taken, f"a step that was taken before a SIGTERM is lost\n{lab.said()}"
    script = lab.script(path=SCRIPT)
    assert script.wait() == 0, lab.said()


def test_killed_at_any_instruction_under_outlast_run(lab, undisturbed):
    """SIGKILLs from outside, at no chosen moment: `outlast run` starts it again, and its history is the undisturbed one."""
    shape = {"samples": 2000, "batch": 2, "workers": 2, "accumulate": 2, "epochs": 1, "carry": False}
    wanted, _ = undisturbed(shape)
    command = [sys.executable, str(SCRIPT)]
    supervised = lab.supervised(command=command, T_SHAPE=json.dumps(shape), OUTLAST_SAVE_EVERY="7 steps")
    for number in range(3):
        (started,) = eventually("it runs", lambda n=number: lab.of("run")[n : n + 1], lab.said)
        enough = random.Random(number).randrange(5, 60)
        trainer = started["pid"]
        eventually("it trains", lambda t=trainer, n=enough: len(lab.of("step", t)) >= n, lab.said)
        os.kill(trainer, signal.SIGKILL)
    assert supervised.wait() == 0, lab.said()
    assert len(lab.of("run")) == 4
    assert history(lab.records) == wanted
