"""`outlast logs`: what a run's script has printed, from what its store holds; its machine may be gone."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import groupby
from typing import TypeAlias

from cyclopts import App

from outlast._errors import ConfigError
from outlast.checkpoint import catalog
from outlast.checkpoint.events import Part, list_parts, read_each
from outlast.checkpoint.output import Key, Output, fold, list_output, read_output
from outlast.cli._place import open_run
from outlast.cli._recent import ENDING_PARTS
from outlast.cli._show import clock, size
from outlast.cli._whole import MaybeWhole
from outlast.store.base import Store

_SEQUENCE = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b\n]*(?:\x07|\x1b\\)?")
"""What sets colours, moves the cursor or names the window."""

Source: TypeAlias = tuple[int, int, Callable[[], str]]
"""An attempt, a rank, and what reads its text."""

app = App(name="logs")


@app.default
def logs(run: str, /, *, attempt: MaybeWhole = None, tail: MaybeWhole = None) -> None:
    """Show what the script of a run has printed, attempt by attempt, also where its machine is gone.

    `outlast run` keeps it, unless OUTLAST_LOGS is 0: of each attempt the first 256 KiB and the last MiB, and of a machine
    that dies what was printed more than 5 seconds before. Of a script that was started without it, the exception that ended it.

    Example: outlast logs gpt-small --tail 100

    Args:
        run: URL, path, or name under $OUTLAST_STORE.
        attempt: Only this attempt's.
        tail: Only so many of the last lines.
    """
    if tail is not None and tail < 1:
        msg = f"--tail is {tail}; expected 1 or more lines"
        raise ConfigError(msg)
    store, _ = open_run(run)
    numbers = catalog.attempts(store)
    if attempt is not None and attempt not in numbers:
        there = f"it has {numbers[0]} to {numbers[-1]}" if numbers else "it has none"
        msg = f"{store.url} holds no attempt {attempt}; {there}"
        raise ConfigError(msg)
    wanted = frozenset(numbers if attempt is None else [attempt])
    texts = _texts(store, wanted, tail)
    if not texts:
        _say(f"{store.url} holds nothing that was printed: `outlast run` keeps it, unless OUTLAST_LOGS is 0")
    try:
        for text in texts:
            sys.stdout.buffer.write((_harmless(text) if sys.stdout.isatty() else text).encode())
        sys.stdout.flush()
    except BrokenPipeError:
        sys.stderr.close()  # whoever read it has seen enough; Python would say that it cannot flush
        sys.exit(0)


def _texts(store: Store, wanted: frozenset[int], tail: int | None) -> list[str]:
    """The text of each rank in each attempt, oldest first; with `tail`, only what the last lines are among."""
    keys = [key for key in list_output(store) if key.attempt in wanted]
    ranks = [list(group) for _, group in groupby(keys, lambda key: (key.attempt, key.nonce, key.rank))]
    sources: list[Source] = [(its[0].attempt, its[0].rank, partial(_printed, store, its)) for its in ranks]
    sources += _endings(store, wanted - {key.attempt for key in keys})
    texts: list[str] = []
    for attempt, rank, read in sorted(sources, key=lambda source: source[:2], reverse=True):
        lines = read().splitlines(keepends=True)
        if tail is not None:
            lines = lines[-tail:]
            tail -= len(lines)
        if lines:
            texts.insert(0, _header(store, attempt, rank) + "".join(lines))
        if tail == 0:
            break
    return texts


def _printed(store: Store, keys: Sequence[Key]) -> str:
    return _text(read_output(store, keys, _say))


def _endings(store: Store, attempts: frozenset[int]) -> list[Source]:
    """The tracebacks of attempts of which nothing is kept that they printed: the script's own agent knows no more."""
    if not attempts:
        return []
    parts = [part for part in list_parts(store) if part.attempt in attempts]
    ranks = groupby(parts, lambda part: (part.attempt, part.nonce, part.rank))
    lasts = [list(group)[-ENDING_PARTS:] for _, group in ranks]
    return [(last[0].attempt, last[0].rank, partial(_exceptions, store, last)) for last in lasts]


def _exceptions(store: Store, parts: Sequence[Part]) -> str:
    records = [
        record for _, found in read_each(store, [part.key for part in parts], _say) for record in found
    ]
    return "".join(str(record.get("trace", "")) for record in records if record.get("kind") == "exception")


def _header(store: Store, attempt: int, rank: int) -> str:
    record = catalog.read_attempt(store, attempt)
    where = f" on {record.trainer.host}, since {clock(record.claimed_utc)} UTC" if record is not None else ""
    return f"--- attempt {attempt}, rank {rank}{where} ---\n"


def _text(outputs: Iterable[Output]) -> str:
    """What was printed, and a line for each stretch that is not kept. A line stands where it was ended, whatever came between."""
    texts: list[str] = []
    begun: dict[str, str] = {}
    end = 0
    for output in outputs:
        if output.at > end:
            texts += [_ended(line) for line in begun.values()]
            texts.append(f"[{size(output.at - end)} of output not kept]\n")
            begun.clear()
        whole, newline, rest = (begun.get(output.stream, "") + output.text).rpartition("\n")
        texts.append(fold(whole + newline).lstrip("\r"))
        begun[output.stream] = rest
        end = output.at + output.nbytes
    return "".join([*texts, *(_ended(line) for line in begun.values())])


def _ended(line: str) -> str:
    return fold(line).strip("\r") + "\n" if line else ""


def _say(line: str) -> None:
    print(f"outlast: {line}", file=sys.stderr)


def _harmless(text: str) -> str:
    """The text without what steers a terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else "?" for c in _SEQUENCE.sub("", text))
