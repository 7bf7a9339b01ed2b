"""What `outlast run` does about each end of its script: DESIGN.md's table of exit codes, with real scripts."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

import pytest

from launch import Lab
from servers import unused_endpoint

STORE_AWAY, PREEMPTED, SUPERSEDED, INTERRUPTED = 74, 75, 76, 130

UNREACHABLE = {
    "AWS_ENDPOINT_URL": unused_endpoint(),
    "AWS_ACCESS_KEY_ID": "nobody",
    "AWS_SECRET_ACCESS_KEY": "nothing",
    "OUTLAST_STORE_PATIENCE_S": "0.6",
}


LIGHT = """
import os, sys, time
from pathlib import Path
import torch, outlast
with open("starts", "a") as file:
    file.write("start\\n")
if Path("away").exists():
    os.environ["OUTLAST_STORE"] = "s3://bucket/runs"
run = outlast.Run("run", model=torch.nn.Linear(2, 2))
with open("starts", "a") as file:
    file.write(f"{run.attempt} {run.resumed} {run.step}\\n")
for step in run.steps(100):
    if step == 5:
        exec(sys.argv[1])
"""
"""A script that does at step 5 what its argument says. Without an optimizer it starts in half the time."""

SAVING = (
    LIGHT
    + """\
    if step % 5 == 4:
        run.save()
"""
)
"""The same, with a save after every fifth step."""


CATCHING = (
    LIGHT.partition("for step")[0]
    + """\
try:
    for step in run.steps(10):
        if step == 5:
            os.rename("store/run", "store/away")
except Exception as error:
    print("caught", error, flush=True)
"""
)
"""A script whose store goes away under it, and that goes on whatever happens."""


def light(lab: Lab, at_step_5: str) -> list[str]:
    """Its command line."""
    (lab.folder / "light.py").write_text(LIGHT)
    return [sys.executable, str(lab.folder / "light.py"), at_step_5]


def starts(lab: Lab) -> list[str]:
    """What each of its starts wrote: a line when it began, one when its run was open."""
    return (lab.folder / "starts").read_text().splitlines()


def test_the_same_exception_twice_without_a_new_checkpoint_ends_at_once(lab: Lab) -> None:
    """With the script's code and its exception: a third start would only fail again."""
    started = lab.supervised(command=light(lab, "raise ValueError('planned')"))
    assert started.wait() == 1, lab.said()
    assert starts(lab) == ["start", "1 False 0", "start", "2 False 0"]
    assert "ending with 1: the same exception twice" in started.text
    assert started.text.count("ValueError: planned") == 3, "twice as a traceback, once as the reason"


def test_the_same_exception_after_progress_is_a_restart_each_time(lab: Lab) -> None:
    """A checkpoint between two failures is progress, so only --max-restarts ends that; it is honoured."""
    command = light(lab, "raise ValueError('planned')")
    (lab.folder / "light.py").write_text(SAVING.replace("step == 5", "step == 5 * run.attempt + 1"))
    started = lab.supervised("--max-restarts", "1", command=command)
    assert started.wait() == 1, lab.said()
    assert "after 1 of 1 restarts" in started.text
    assert starts(lab) == ["start", "1 False 0", "start", "2 True 5"]


def test_a_script_that_fails_by_its_exit_code_is_started_again_so_often(lab: Lab) -> None:
    """Codes of its own count as failures; --max-restarts 0 ends with the first."""
    started = lab.supervised("--max-restarts", "0", command=[sys.executable, "-c", "import sys; sys.exit(3)"])
    assert started.wait() == 3
    assert "after 0 of 0 restarts" in started.text


def test_a_store_out_of_reach_is_waited_for_and_then_given_up(lab: Lab) -> None:
    """No attempt has been seen, so there is nothing that could be continued: 74."""
    (lab.folder / "away").touch()
    started = lab.supervised("--store-wait", "0.2s", command=light(lab, ""), **UNREACHABLE)
    assert started.wait() == STORE_AWAY, lab.said()
    assert "starting again: the store is out of reach; giving up in 0 s" in started.text
    assert "ending with 74: the store was out of reach" in started.text
    assert starts(lab) == ["start", "start"]


def test_a_store_that_goes_away_after_an_attempt_ends_with_75(lab: Lab) -> None:
    """The attempt trained and died, and its relaunch finds no store: start the same command again, and it continues."""
    command = light(lab, "Path('away').touch(); os.kill(os.getpid(), 9)")
    started = lab.supervised("--store-wait", "0s", command=command, **UNREACHABLE)
    assert started.wait() == PREEMPTED, lab.said()
    assert "ending with 75: the store was out of reach" in started.text
    assert starts(lab) == ["start", "1 False 0", "start"]


def test_a_folder_that_is_gone_is_not_begun_afresh_by_a_relaunch(lab: Lab) -> None:
    """Unmounted, moved or deleted: this launch knows that there was a checkpoint. 74 until it is back, then 75."""
    away = "list(Path('store/run').rglob('commit.json')) and (os.rename('store/run', 'store/away'), os.kill(os.getpid(), 9))"
    command = light(lab, away)
    (lab.folder / "light.py").write_text(SAVING.replace("step == 5", "step > 5") + "    time.sleep(0.02)\n")
    started = lab.supervised("--store-wait", "0s", command=command)
    assert started.wait() == PREEMPTED, lab.said()
    assert "holds no checkpoint any more, and did while this launch trained" in started.text
    assert starts(lab) == ["start", "1 False 0", "start"]


def test_resume_never_starts_the_next_name_and_its_relaunches_resume_that(lab: Lab) -> None:
    """One launch is one run: run, then run-2 though it was started twice; the first one is not touched."""
    assert lab.script().wait() == 0
    before = {key: data for key, data in lab.bytes_on_store().items() if key.startswith("run/")}
    command = light(lab, "run.resumed or os.kill(os.getpid(), 9)")
    (lab.folder / "light.py").write_text(SAVING)
    started = lab.supervised("--resume", "never", command=command)
    assert started.wait() == 0, lab.said()
    assert starts(lab) == ["start", "1 False 0", "start", "2 True 5"]
    assert {key.split("/")[0] for key in lab.bytes_on_store()} == {"run", "run-2", "_pools"}
    assert {key: data for key, data in lab.bytes_on_store().items() if key.startswith("run/")} == before


def test_a_final_state_that_is_not_durable_is_no_green_end(lab: Lab) -> None:
    """Though the script catches the exception that says so: a scheduler that sees 0 takes it for done."""
    command = light(lab, "")
    (lab.folder / "light.py").write_text(CATCHING)
    started = lab.supervised("--store-wait", "0s", command=command)
    assert started.wait() == PREEMPTED, lab.said()
    assert "caught step 10 was not saved" in started.text


def quick(lab: Lab, what: str) -> list[str]:
    """The command line of a script without torch: see `quick.py`."""
    url = (lab.folder / "store" / "run").as_uri()
    return [sys.executable, str(Path(__file__).with_name("quick.py")), url, what]


def and_then(command: list[str], more: str) -> list[str]:
    """The command as the first of a shell."""
    return ["bash", "-c", f'"$@"; {more}', "bash", *command]


@pytest.mark.parametrize(
    ("told", "code"),
    [("finished", 0), ("preempted", PREEMPTED), ("interrupted", INTERRUPTED), ("superseded", SUPERSEDED)],
)
def test_a_script_that_was_told_to_leave_is_not_done_though_it_says_0(lab: Lab, told: str, code: int) -> None:
    """It swallowed the exception that told it; a scheduler that sees 0 would never start it again."""
    assert lab.supervised(command=quick(lab, told)).wait() == code, lab.said()


def test_sigterm_reaches_a_script_that_has_not_come_to_its_run(lab: Lab) -> None:
    """Sent to the supervisor alone, as `docker stop` does: nobody else would tell the script."""
    started = lab.supervised(
        command=[sys.executable, "-c", "print('on', flush=True); import time; time.sleep(100)"]
    )
    started.says("on")
    started.kill(signal.SIGTERM)
    assert started.wait() == PREEMPTED, lab.said()


def test_sigterm_reaches_a_script_that_is_past_its_loop(lab: Lab) -> None:
    """Nor does that one look whether it shall stop."""
    started = lab.supervised(command=quick(lab, "after"))
    started.says("after")
    started.kill(signal.SIGTERM)
    assert started.wait() == PREEMPTED, lab.said()


def test_ctrl_c_that_only_the_supervisor_got_reaches_the_script(lab: Lab) -> None:
    """Before it has come to its run: `kill -INT` of the supervisor."""
    started = lab.supervised(
        command=[sys.executable, "-c", "print('on', flush=True); import time; time.sleep(100)"]
    )
    started.says("on")
    started.kill(signal.SIGINT)
    assert started.wait() == INTERRUPTED, lab.said()


def test_what_a_command_does_after_its_script_costs_the_supervisor_nothing(lab: Lab) -> None:
    """It waits, and does not look again and again at the process that has ended; SIGTERM then ends the command."""
    started = lab.supervised(command=and_then(quick(lab, "finished"), "echo then; exec sleep 100"))
    started.says("then")
    before = cpu_ticks(started.pid)
    time.sleep(1.0)
    assert cpu_ticks(started.pid) - before < 30, "in one second of waiting, of 100"
    started.kill(signal.SIGTERM)
    assert started.wait() == PREEMPTED, lab.said()


def cpu_ticks(pid: int) -> int:
    """Hundredths of a second that a process has computed."""
    user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return int(user) + int(system)


def test_a_take_over_holds_until_an_attempt_is_claimed(lab: Lab) -> None:
    """The first launch found the store out of reach; the one after it must not be refused for want of the flag."""
    script = 'echo "[$OUTLAST_TAKE_OVER]" >> tries; [ $(wc -l < tries) -gt 1 ] || exit 74'
    assert lab.supervised("--take-over", command=["bash", "-c", script]).wait() == 0, lab.said()
    assert (lab.folder / "tries").read_text().split() == ["[1]", "[1]"]
