"""How `outlast logs` shows what was printed."""

from __future__ import annotations

from outlast.checkpoint.output import Output
from outlast.cli.logs import _harmless, _text
from saving import UTC


def printed(*pieces: tuple[str, str], at: int = 0) -> list[Output]:
    """What (stream, text) leave on the store."""
    outputs = []
    for stream, text in pieces:
        outputs.append(Output(utc=UTC, attempt=1, rank=0, stream=stream, at=at, nbytes=len(text), text=text))
        at += len(text)
    return outputs


def test_what_steers_a_terminal_is_not_shown_on_one() -> None:
    """Colours are left out; anything else is a question mark."""
    assert _harmless("\x1b[31mred\x1b[0m\tand\n\x1b]0;title\x07\x1bc\x08ü\x9b") == "red\tand\n?c?ü?"


def test_a_line_stands_whole_where_it_ended_whatever_the_other_stream_said_meanwhile() -> None:
    """A progress bar that is drawn anew between two lines tears none of them, and only its last state is shown."""
    pieces = [
        ("stderr", "\r1%"),
        ("stdout", "step "),
        ("stderr", "\r2%"),
        ("stdout", "1\nstep 2\n"),
        ("stderr", "\r3%"),
    ]
    assert _text(printed(*pieces)) == "step 1\nstep 2\n3%\n"


def test_what_is_not_kept_is_said_where_it_is_missing() -> None:
    """At the beginning, and between two texts."""
    outputs = [*printed(("stdout", "a\nb"), at=2048), *printed(("stdout", "c\n"), at=5 << 20)]
    assert _text(outputs) == "[2.0 KiB of output not kept]\na\nb\n[5.0 MiB of output not kept]\nc\n"
