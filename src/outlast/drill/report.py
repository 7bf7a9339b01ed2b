"""What a drill found: the records behind `--json`, and the table."""

from __future__ import annotations

import msgspec
from rich.console import Console
from rich.table import Table


class Notice(msgspec.Struct, frozen=True, kw_only=True):
    """How an interruption was announced, and what became of the seconds."""

    source: str
    moment: str
    fault: str | None
    warning_s: float
    """From the announcement to the end of the machine."""
    to_safe_point_s: float | None
    """From the announcement to the next safe point; None: none was reached."""
    save_s: float | None
    """What the whole state takes at the drill's throttle; None without one."""
    fits: bool | None
    """Whether a save from that safe point on fits, by the drill's own reckoning; None where nothing new was there to be saved."""
    commit_reason: str | None
    """Of the last checkpoint that became durable before the end; None: none did."""
    saved_bytes: int
    """Of the segments of all of them."""
    sent_bytes: int | None
    """What went to the store from the announcement on, garbage and requests included; None where nothing counts."""
    durable_bound_s: float | None
    """What `notice_to_durable_s` may be: to the safe point that was saved + 1.15 x its bytes / throttle + 1 s."""
    exit_code: int | None
    """None: it still ran as the machine went off."""


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
    notice: Notice | None = None
    """Of an announced one: see `Notice`."""


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
    table.add_column("interruption", no_wrap=all(item.notice is None for item in report.interruptions))
    for head in ("step", "lost", "allowed", "durable", "back"):
        table.add_column(head, justify="right", no_wrap=True)
    table.add_column("resumed", no_wrap=True)
    for item in report.interruptions:
        table.add_row(
            item.kind if item.notice is None else _announced(item.notice),
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


def _announced(notice: Notice) -> str:
    """`aws 30.0 s, in training, fits: emergency`."""
    fits = {True: "fits", False: "does not fit", None: "nothing new"}[notice.fits]
    fault = f" ({notice.fault})" if notice.fault else ""
    return f"{notice.source}{fault} {notice.warning_s:.1f} s, {notice.moment}, {fits}: {notice.commit_reason or 'no save'}"


def _text(value: object) -> str:
    return "-" if value is None else str(value)


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} s"
