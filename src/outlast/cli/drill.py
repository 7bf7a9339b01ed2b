"""`outlast drill`: interrupt a training again and again, and prove that it came through."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from outlast._errors import ConfigError

if TYPE_CHECKING:
    from outlast.drill.bundled import Show

app = App(name="drill")


@app.default
def drill(
    *command: Annotated[str, Parameter(show=False)],
    steps: int | None = None,
    interruptions: int | None = None,
    save_every: int | None = None,
    grace: float = 20.0,
    stall: float = 120.0,
    seed: int = 0,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Interrupt a training again and again, and prove that nothing was lost, repeated or changed.

    Without a command the bundled example is drilled: a small character GPT. With one, your own script: its runs
    live in a temporary store, its trackers are offline, and it is run undisturbed twice first. Ends with 1 when
    any claim fails; the table, or --json, says which and why.

    Examples: outlast drill --seed 7
              outlast drill --steps 200 -- python train.py --lr 3e-4

    Args:
        command: The script's command line, after --.
        steps: End your script after this many optimizer steps.
        interruptions: How many interruptions; all nine kinds if not given.
        save_every: Optimizer steps between two saves (10; for your script a twentieth of its steps, at least 2).
        grace: Seconds between SIGTERM and the end of the machine.
        stall: Seconds without progress after which the drill gives a run up.
        seed: Draws the order and the moments of the interruptions; the same seed repeats a drill.
        json: Print the report as JSON on standard output.
    """
    for name, value in (("--steps", steps), ("--interruptions", interruptions), ("--save-every", save_every)):
        if value is not None and value < 1:
            msg = f"{name} is {value}; expected 1 or more"
            raise ConfigError(msg)
    if steps is not None and not command:
        msg = "--steps is for your own script; give its command after --, or leave --steps out"
        raise ConfigError(msg)
    from rich.console import Console

    from outlast.drill.report import show, to_json

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
                ),
                tell,
            )
    if json:
        print(to_json(report))
    else:
        show(report, Console())
    sys.exit(0 if report.passed else 1)


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
