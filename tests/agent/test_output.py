"""What a script prints is in `outlast logs`, whoever was killed; and it passes the agent unchanged, at once and whatever happens."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from launch import Lab, agent_of, alive, children, eventually

PRINTING = str(Path(__file__).with_name("printing.py"))
MIB = 1 << 20


def printing(lab: Lab, code: str) -> list[str]:
    """The command line of a script that joins its run and does this."""
    return [sys.executable, PRINTING, (lab.folder / "store" / "run").as_uri(), code]


def below_a_launcher(command: list[str]) -> list[str]:
    """The command as a launcher starts it, which hands down no descriptor but the outputs."""
    return [sys.executable, "-c", f"import subprocess, sys; sys.exit(subprocess.call({command!r}))"]


def output_folder(lab: Lab) -> Path:
    """Where the one attempt's output lies."""
    (folder,) = (lab.folder / "store" / "run" / "output").iterdir()
    return folder


def on_store(lab: Lab) -> str:
    """All text in the newest versions of the blocks: read as JSON lines, by nothing of Outlast's."""
    blocks: dict[str, Path] = {}
    for path in sorted((lab.folder / "store" / "run").glob("output/*/*.jsonl")):
        blocks[f"{path.parent.name}/{path.name.partition('-')[0]}"] = path
    text = ""
    for path in blocks.values():
        try:
            lines = path.read_text().splitlines()
        except FileNotFoundError:
            continue  # its next version has just come
        text += "".join(json.loads(line).get("text", "") for line in lines)
    return text


def stored(lab: Lab, text: str) -> None:
    """Wait until this is on the store."""
    eventually(f"{text!r} is on the store", lambda: text in on_store(lab), lab.said)


def logs(lab: Lab, *options: str) -> list[str]:
    """The lines of `outlast logs`."""
    done = lab.outlast("logs", "run", *options)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    ("ending", "last"),
    [
        ("trainer.close('finished'); print('later')", "later"),
        ("raise ValueError('planned')", "ValueError: planned"),
        ("os._exit(3)", "the last line"),
        ("os.write(2, b'no end of line'); os.kill(os.getpid(), 9)", "no end of line"),
    ],
)
def test_the_last_line_is_in_the_logs_however_the_script_ends(lab: Lab, ending: str, last: str) -> None:
    """Printed right before the end, and flushed by nobody."""
    code = f"print('the first line'); print('the last line'); {ending}"
    lab.supervised("--max-restarts", "0", command=printing(lab, code), PYTHONUNBUFFERED="").wait()
    lines = logs(lab)
    assert lines[0].startswith("--- attempt 1, rank 0 on ")
    assert "the first line" in lines
    assert last in lines, lines
    assert [line for line in lines if "outlast:" not in line][-1] == last
    assert logs(lab, "--tail", "1")[1:] == lines[-1:]


def test_what_was_printed_is_on_the_store_before_everything_is_killed(lab: Lab) -> None:
    """Nobody flushes, nothing ends: line by line it comes there while the script runs."""
    code = "print('one'); wait_for('go'); print('two'); wait_for('never')"
    started = lab.supervised(command=printing(lab, code))
    stored(lab, "one\n")
    (lab.folder / "go").touch()
    stored(lab, "two\n")
    started.kill(signal.SIGSTOP)  # so that it sees nobody go
    for pid in [*children(started.pid), started.pid]:
        os.kill(pid, signal.SIGKILL)
    lab.nothing_left()
    assert [line for line in logs(lab) if line in ("one", "two")] == ["one", "two"]


@pytest.mark.parametrize("launched", [False, True])
def test_a_script_prints_on_when_its_agent_is_killed(lab: Lab, launched: bool) -> None:
    """More than any pipe holds: a new agent reads it, passes it on where it can, and puts it; after that one it goes its old way."""
    code = (
        "print('before'); wait_for('go'); print('x' * 99 + '\\n' * 1, end=''); "
        "[print('y' * 99) for _ in range(20000)]; print('after'); wait_for('end'); trainer.close('finished'); print('late')"
    )
    command = printing(lab, code)
    started = lab.supervised(command=below_a_launcher(command) if launched else command)
    stored(lab, "before\n")
    script = children(started.pid)[0]
    script = children(script)[0] if launched else script
    started.kill()
    (lab.folder / "go").touch()
    assert agent_of(script)
    stored(lab, "after\n")
    (lab.folder / "end").touch()
    eventually("the script ends", lambda: not alive(script), lab.said)
    lab.nothing_left()
    assert [line for line in logs(lab) if line in ("before", "after")] == ["before", "after"]
    if not launched:
        # What Outlast says meanwhile may stand in the middle of a line: both streams of this script are one.
        own = re.sub(r"outlast: [^\n]*\n", "", started.text)
        assert own.count("y" * 99 + "\n") == 20000
        assert started.text.endswith("late\n")


def test_an_agent_that_takes_over_and_is_killed_as_well_is_followed_by_another(lab: Lab) -> None:
    """Each reads on where the one before it was."""
    code = (
        "print('one'); wait_for('2'); print('two'); wait_for('3'); print('three'); trainer.close('finished')"
    )
    started = lab.supervised(command=printing(lab, code))
    stored(lab, "one\n")
    script = children(started.pid)[0]
    started.kill()
    first = agent_of(script)
    (lab.folder / "2").touch()
    stored(lab, "two\n")
    os.kill(first, signal.SIGKILL)
    eventually("a new agent is there", lambda: [c for c in children(script) if c != first and alive(c)])
    (lab.folder / "3").touch()
    eventually("the script ends", lambda: not alive(script), lab.said)
    lab.nothing_left()
    assert [line for line in logs(lab) if line in ("one", "two", "three")] == ["one", "two", "three"]
    assert [line for line in started.text.splitlines() if line in ("one", "two", "three")] == [
        "one",
        "two",
        "three",
    ]


def test_a_script_that_prints_50_mb_leaves_little_on_the_store_and_its_last_lines(lab: Lab) -> None:
    """Whoever reads its output gets every byte."""
    code = "[print(f'{n:099d}') for n in range(500_000)]; print('the end'); trainer.close('finished')"
    started = lab.supervised(command=printing(lab, code))
    assert started.wait() == 0
    kept = [line for line in started.text.splitlines() if "outlast:" not in line]
    assert kept == [*(f"{n:099d}" for n in range(500_000)), "the end"]
    sizes = [path.stat().st_size for path in output_folder(lab).iterdir()]
    assert sum(sizes) < 3 * MIB
    assert len(sizes) < 30
    lines = logs(lab)
    assert lines[-2:] == [f"{499_999:099d}", "the end"]
    assert any(line.endswith(" of output not kept]") for line in lines)


def test_every_byte_passes_unchanged_and_in_order(lab: Lab) -> None:
    """Progress bars, halves of lines and what is no text, on each stream by itself."""
    out = b"".join(b"\r%d%%" % n + bytes(range(256)) for n in range(500)) + b"no end of line"
    err = bytes(reversed(out))
    code = (
        "out = b''.join(b'\\r%d%%' % n + bytes(range(256)) for n in range(500)) + b'no end of line'\n"
        "for at in range(0, len(out), 777):\n"
        "    os.write(1, out[at:at + 777])\n"
        "    os.write(2, bytes(reversed(out))[at:at + 777])\n"
        "trainer.close('finished')"
    )
    outlast = str(Path(sys.executable).with_name("outlast"))
    done = subprocess.run(
        [outlast, "run", "--", *printing(lab, code)], capture_output=True, cwd=lab.folder, env=lab.env, check=True
    )  # fmt: skip
    assert done.stdout == out
    assert done.stderr.endswith(err) or err in done.stderr
    assert "no end of line" in "\n".join(logs(lab))


def test_lines_of_both_streams_keep_their_order_where_they_go_to_one_place(lab: Lab) -> None:
    """As on a terminal: a traceback does not stand before the lines that led to it."""
    code = "[print(n, file=[sys.stdout, sys.stderr][n % 2]) for n in range(2000)]; trainer.close('finished')"
    started = lab.supervised(command=printing(lab, code))
    assert started.wait() == 0
    numbers = [str(n) for n in range(2000)]
    assert [line for line in started.text.splitlines() if line.isdigit()] == numbers
    assert [line for line in logs(lab) if line.isdigit()] == numbers


def test_output_that_nobody_reads_any_more_does_not_end_the_script(lab: Lab) -> None:
    """`outlast run ... | head`, or a terminal that was closed: the run goes on and its lines are kept."""
    code = "[print('z' * 99) for _ in range(20000)]; print('the end'); trainer.close('finished')"
    outlast = str(Path(sys.executable).with_name("outlast"))
    process = subprocess.Popen(
        [outlast, "run", "--", *printing(lab, code)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=lab.folder, env=lab.env
    )  # fmt: skip
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait() == 0
    assert logs(lab)[-1] == "the end"


def test_each_attempt_has_its_own_lines(lab: Lab) -> None:
    """What a relaunched script prints before its run is open belongs to that attempt; `--attempt` shows one."""
    (lab.folder / "train.py").write_text(
        "import os, sys\n"
        "print('before the run', os.path.exists('again'), flush=True)\n"
        f"sys.argv[0] = {PRINTING!r}\n"
        f"exec(compile(open({PRINTING!r}).read().replace('__file__', repr({PRINTING!r})), 'printing', 'exec'))\n"
    )
    code = "print('after'); again = os.path.exists('again'); open('again', 'w'); again or os.abort(); trainer.close('finished')"
    command = [sys.executable, str(lab.folder / "train.py"), *printing(lab, code)[2:]]
    assert lab.supervised(command=command).wait() == 0, lab.said()
    told = [line for line in logs(lab) if line.startswith(("---", "before", "after"))]
    assert [line.split(" on ")[0] for line in told] == [
        "--- attempt 1, rank 0", "before the run False", "after",
        "--- attempt 2, rank 0", "before the run True", "after",
    ]  # fmt: skip
    assert [line for line in logs(lab, "--attempt", "1") if line.startswith("before")] == [
        "before the run False"
    ]
    assert "before the run False" not in logs(lab, "--tail", "2")
    unknown = lab.outlast("logs", "run", "--attempt", "7")
    assert unknown.returncode == 78
    assert "holds no attempt 7; it has 1 to 2" in unknown.stderr


def test_outlast_logs_0_keeps_nothing_and_leaves_the_output_alone(lab: Lab) -> None:
    """The script has the very outputs that the command was given."""
    code = "print(os.fstat(1).st_ino); trainer.close('finished')"
    started = lab.supervised(command=printing(lab, code), OUTLAST_LOGS="0")
    assert started.wait() == 0
    assert str(started.log.stat().st_ino) in started.text.splitlines()
    assert not (lab.folder / "store" / "run" / "output").exists()
    done = lab.outlast("logs", "run")
    assert (done.returncode, done.stdout) == (0, "")
    assert "holds nothing that was printed" in done.stderr


FAILING = """
import torch, outlast
def fails():
    raise ValueError("planned")
run = outlast.Run("run", model=torch.nn.Linear(2, 2))
print("printed")
fails()
"""


def test_of_a_plain_script_the_traceback_is_kept(lab: Lab) -> None:
    """Nothing stands between it and its terminal, so what it prints is not."""
    assert lab.source(FAILING).wait() == 1
    header, *lines = logs(lab)
    assert header.startswith("--- attempt 1, rank 0 on ")
    assert (lines[0], lines[-1]) == ("Traceback (most recent call last):", "ValueError: planned")
    assert '    raise ValueError("planned")' in lines
    assert "printed" not in lines


def test_logs_of_a_run_that_is_not_there_is_an_error(lab: Lab) -> None:
    """With where it was looked for."""
    done = lab.outlast("logs", "nowhere")
    assert done.returncode == 78
    assert "holds no run" in done.stderr
