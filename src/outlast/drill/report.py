"""What a drill found: the records behind `--json`, and the table."""

from __future__ import annotations

import msgspec
from rich.console import Console
from rich.table import Table


class Interruption(msgspec.Struct, frozen=True, kw_only=True):
    """One forced interruption and what it cost."""

    kind: str
    at_step: int
    """The last counter that was recorded before it."""
    steps_lost: int | None
    """Last counter before - first counter after + 1; None if no step followed."""
    steps_lost_bound: int
    notice_to_durable_s: float | None
    """From SIGTERM to the commit of what was saved because of it; None without a notice."""
    relaunch_to_step_s: float | None
    guarantee: str | None
    """What the resume stated; None where nothing was resumed."""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome of a drill. `failures` says every claim that did not hold, in words."""

    passed: bool
    bit_identical: bool | None
    """None: the script is not reproducible by itself, so bits were not judged."""
    first_difference: str | None
    samples_repeated: int
    samples_skipped: int
    steps: int
    interruptions: tuple[Interruption, ...]
    failures: tuple[str, ...]
    notes: tuple[str, ...] = ()


def to_json(report: Report) -> str:
    """Return the report as one JSON object."""
    return msgspec.json.format(msgspec.json.encode(report), indent=2).decode()


def show(report: Report, console: Console) -> None:
    """Print the table of interruptions and the verdict."""
    table = Table(title=f"{len(report.interruptions)} interruptions in {report.steps} optimizer steps")
    table.add_column("interruption", no_wrap=True)
    for head in ("step", "lost", "allowed", "durable", "back"):
        table.add_column(head, justify="right")
    table.add_column("resumed", no_wrap=True)
    for item in report.interruptions:
        table.add_row(
            item.kind,
            str(item.at_step),
            _text(item.steps_lost),
            str(item.steps_lost_bound),
            _seconds(item.notice_to_durable_s),
            _seconds(item.relaunch_to_step_s),
            _text(item.guarantee),
        )
    console.print(table)
    bits = {True: "bit-identical", False: "DIFFERENT", None: "not judged"}[report.bit_identical]
    console.print(f"samples repeated: {report.samples_repeated}, skipped: {report.samples_skipped}")
    console.print(
        f"final state: {bits}" + (f", first at {report.first_difference}" if report.first_difference else "")
    )
    for note in report.notes:
        console.print(f"note: {note}", markup=False)
    for failure in report.failures:
        console.print(f"FAILED: {failure}", markup=False, style="red")
    console.print(
        "passed" if report.passed else "not passed", style="bold green" if report.passed else "bold red"
    )


def _text(value: object) -> str:
    return "-" if value is None else str(value)


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} s"
