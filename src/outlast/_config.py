"""What options, environment and command line say: where a run lives, whether it resumes, how often it saves.

Pure functions: the environment and the command line are arguments. No torch.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Literal, TypeAlias, cast, get_args

from outlast._errors import ConfigError
from outlast._types import Best, Capacity, Keep, MaxLost

ResumeMode: TypeAlias = Literal["auto", "must", "never"]
StoreLoss: TypeAlias = Literal["continue", "pause", "exit"]
SnapshotMode: TypeAlias = Literal["copy", "overlap"]

DEFAULT_ROOT = "outlast-runs"
DEFAULT_INTERVAL_S = 300.0
"""Until the first save of a run has told what the interval is computed from: 5 minutes."""
DEFAULT_MAX_LOST_S = 600.0
UNKNOWN_POOL = "unknown"
"""Of machines of which nobody says where they come from."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_DURATION = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(ms|s|sec|seconds?|m|min|minutes?|h|hours?)?\s*")
_STEPS = re.compile(r"\s*(\d+)\s*steps?\s*")
_SHARE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*%\s*")
_POOL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+=@-]{0,199}")
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*((?:[KMGT]i?)?B?)\s*", re.IGNORECASE)
_UNIT_BYTES = {
    prefix + tail: base**power
    for power, letter in enumerate(("", "K", "M", "G", "T"))
    for prefix, base in ((letter, 1000), (letter and letter + "I", 1024))
    for tail in ("", "B")
}
_UNIT_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}

Duration: TypeAlias = float | timedelta | str


@dataclass(frozen=True)
class Place:
    """Where a run lives.

    Attributes:
        url: the run's place, as `store.open_store` takes it.
        name: the last part, for people.
        root: where the root's other runs are, and what is kept for all of them; None where the place was given as a URL or path.
        note: a line to say once if the store turns out to be a disk of this machine; None where the place was chosen.
    """

    url: str
    name: str
    note: str | None
    root: str | None = None


@dataclass(frozen=True)
class Every:
    """How often to save: every so many seconds, or every so many steps. The other one is None.

    Attributes:
        max_lost: where the interval is computed while training goes on, its limit; the seconds then hold until it is.
    """

    seconds: float | None
    steps: int | None
    max_lost: MaxLost | None = None


@dataclass(frozen=True)
class Saving:
    """How this process saves.

    Attributes:
        every: the interval.
        host_memory_bytes: the most that snapshots may take; None: what is sensible on this machine.
        verify: compare what is written with a digest of the live state.
        mode: when the copy is made.
        on_loss: what a store that fails means for training.
        best: the metric whose best value is saved.
    """

    every: Every
    host_memory_bytes: int | None = None
    verify: bool = False
    mode: SnapshotMode = "copy"
    on_loss: StoreLoss = "continue"
    best: Best | None = None


def resolve_place(name_or_url: str | None, env: Mapping[str, str], argv: Sequence[str], cwd: Path) -> Place:
    """Find the run's place.

    A URL, or a path that shows by its start that it is one (`/`, `./`, `../`, `~/`), is the place. A name is a folder
    under the root `$OUTLAST_STORE` (default `./outlast-runs`). Without either, `$OUTLAST_RUN` is taken as one, else
    the script's name and 6 hex digits of its arguments, so that the members of a sweep get a place each; a task of a
    Slurm array has the arguments of its siblings, so its id is appended.

    Raises:
        ConfigError: the name holds what a name may not, or there is no script to name the run after.
    """
    if name_or_url is None:
        name_or_url = env.get("OUTLAST_RUN") or _script_name(argv)
        task = env.get("SLURM_ARRAY_TASK_ID")
        if task and not _is_place(name_or_url):
            name_or_url = f"{name_or_url}-{task}"
    if _is_place(name_or_url):
        url = _as_url(name_or_url, cwd).rstrip("/")
        return Place(url, url.rsplit("/", 1)[-1], None)
    name = _checked_name(name_or_url)
    root = env.get("OUTLAST_STORE")
    url = f"{_as_url(root or DEFAULT_ROOT, cwd).rstrip('/')}/{name}"
    note = (
        None
        if root
        else f"saving to {cwd / DEFAULT_ROOT / name}: this disk does not outlive the machine. "
        "Set OUTLAST_STORE to a bucket (s3://...) or a shared folder."
    )
    return Place(url, name, note, url.rpartition("/")[0])


def resume_mode(option: str, env: Mapping[str, str]) -> ResumeMode:
    """How to start: `$OUTLAST_RESUME` overrides the script's option.

    Raises:
        ConfigError: it is none of auto, must and never.
    """
    value = env.get("OUTLAST_RESUME") or option
    if value not in get_args(ResumeMode):
        source = "OUTLAST_RESUME" if env.get("OUTLAST_RESUME") else "resume"
        msg = f'{source} is {value!r}; expected "auto", "must" (nothing there is an error) or "never" (a new run)'
        raise ConfigError(msg)
    return cast("ResumeMode", value)


def save_every(option: Duration, env: Mapping[str, str], max_lost_work: Duration | None = None) -> Every:
    """How often to save: `$OUTLAST_SAVE_EVERY` and `$OUTLAST_MAX_LOST_WORK` override the script's options.

    Raises:
        ConfigError: see `parse_every` and `max_lost`; or the script gives both an interval and a limit for one.
    """
    override = env.get("OUTLAST_SAVE_EVERY")
    every = parse_every(option, "save_every")
    if every.max_lost is None and max_lost_work is not None:
        msg = (
            f"save_every is {option!r} and max_lost_work is {max_lost_work!r}; expected one of them: max_lost_work bounds the "
            'interval that save_every="auto" computes'
        )
        raise ConfigError(msg)
    limit = env.get("OUTLAST_MAX_LOST_WORK")
    lost = max_lost(limit, "OUTLAST_MAX_LOST_WORK") if limit else max_lost(max_lost_work, "max_lost_work")
    every = parse_every(override, "OUTLAST_SAVE_EVERY") if override else every
    if every.max_lost is None:
        return every
    return Every(min(DEFAULT_INTERVAL_S, lost.seconds or DEFAULT_INTERVAL_S), None, lost)


def max_lost(value: Duration | None, what: str) -> MaxLost:
    """Read the most work that an interruption may cost: a duration above 0, or a share of the run such as "2%". Default: 10 minutes.

    Raises:
        ConfigError: it is none of those.
    """
    if value is None:
        return MaxLost(DEFAULT_MAX_LOST_S)
    match = _SHARE.fullmatch(value) if isinstance(value, str) else None
    if match is not None and 0 < float(match.group(1)) <= 100:
        return MaxLost(None, float(match.group(1)) / 100)
    seconds = _seconds(value)
    if seconds is None or not 0 < seconds < math.inf:
        msg = f'{what} is {value!r}; expected seconds above 0, a timedelta, a text like "10m", or a share of the run like "2%"'
        raise ConfigError(msg)
    return MaxLost(seconds)


def capacity(env: Mapping[str, str]) -> Capacity:
    """What is said of this machine: `$OUTLAST_POOL`, `$OUTLAST_USD_PER_HOUR`, `$OUTLAST_ON_DEMAND_USD_PER_HOUR`, `$OUTLAST_USD_FROM`.

    Raises:
        ConfigError: a pool's name holds what it may not, or a price is no number above 0.
    """
    pool = env.get("OUTLAST_POOL") or UNKNOWN_POOL
    if not _POOL.fullmatch(pool):
        msg = (
            f"OUTLAST_POOL is {pool!r}; expected up to 200 letters, digits and ._+=@-, starting with a letter or digit, "
            "such as aws-us-east-1a-p4d.24xlarge-spot"
        )
        raise ConfigError(msg)
    paid, on_demand = (_usd(env, f"OUTLAST_{kind}USD_PER_HOUR") for kind in ("", "ON_DEMAND_"))
    known = paid is not None or on_demand is not None
    return Capacity(
        pool=pool,
        usd_per_hour=paid,
        usd_from=(env.get("OUTLAST_USD_FROM") or "environment") if known else None,
        on_demand_usd_per_hour=on_demand,
    )


def parse_every(value: Duration, what: str = "save_every") -> Every:
    """Read "auto", seconds, a `timedelta`, or a string such as "30s", "5m", "1h" or "25 steps".

    Raises:
        ConfigError: it is none of those, or not above zero.
    """
    if value == "auto":
        return Every(DEFAULT_INTERVAL_S, None, MaxLost(DEFAULT_MAX_LOST_S))
    if isinstance(value, str) and (match := _STEPS.fullmatch(value)) and int(match.group(1)) > 0:
        return Every(None, int(match.group(1)))
    seconds = _seconds(value)
    if seconds is None or not 0 < seconds < math.inf:
        msg = f'{what} is {value!r}; expected seconds above 0, a timedelta, "auto", or a text like "5m" or "25 steps"'
        raise ConfigError(msg)
    return Every(seconds, None)


def parse_duration_s(value: Duration, what: str) -> float:
    """Read a duration in seconds: a number, a `timedelta`, or a string such as "90", "30s", "5m" or "1h".

    Raises:
        ConfigError: it is none of those, or negative.
    """
    seconds = _seconds(value)
    if seconds is None or not 0 <= seconds < math.inf:
        msg = f'{what} is {value!r}; expected seconds, or a text like "30s", "5m" or "1h"'
        raise ConfigError(msg)
    return seconds


def keep(last: object, every: Duration | None, best: object) -> Keep:
    """Read `keep_last`, `keep_every` (a duration, or "1000 steps") and `keep_best` (("val_loss", "min")).

    Raises:
        ConfigError: one of them is none of that.
    """
    if isinstance(last, bool) or not isinstance(last, int) or last < 1:
        msg = f"keep_last is {last!r}; expected how many of the newest checkpoints to keep, at least 1"
        raise ConfigError(msg)
    span = Every(None, None) if every is None else parse_every(every, "keep_every")
    return Keep(last, span.seconds, span.steps, None if best is None else _best(best))


def host_memory_bytes(value: int | str | None) -> int | None:
    """Read `host_memory`: bytes, or a text like "64GB" or "512 MiB". None where it is not given.

    Raises:
        ConfigError: it is none of those, or not above zero.
    """
    return None if value is None else parse_bytes(value, "host_memory")


def parse_bytes(value: int | str, what: str) -> int:
    """Read a size in bytes: a whole number, or a text like "64GB" or "512 MiB".

    Raises:
        ConfigError: it is none of those, or not above zero; names `what`.
    """
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    match = _SIZE.fullmatch(value) if isinstance(value, str) else None
    size = int(float(match.group(1)) * _UNIT_BYTES[(match.group(2) or "").upper()]) if match else 0
    if size <= 0:
        msg = f'{what} is {value!r}; expected bytes above 0, or a text like "64GB" or "512MiB"'
        raise ConfigError(msg)
    return size


def parse_rate_bytes_per_s(value: str, what: str) -> int:
    """Read a rate in bytes per second: a text like "20MB/s".

    Raises:
        ConfigError: it is none; names `what`.
    """
    amount, slash, per = value.rpartition("/")
    if not slash or per.strip() != "s":
        msg = f'{what} is {value!r}; expected bytes per second, like "20MB/s"'
        raise ConfigError(msg)
    return parse_bytes(amount.strip(), what)


def store_loss(option: str) -> StoreLoss:
    """Read `on_store_loss`.

    Raises:
        ConfigError: it is none of continue, pause and exit.
    """
    if option not in get_args(StoreLoss):
        msg = (
            f'on_store_loss is {option!r}; expected "continue" (training goes on and catches up), "pause" (holds at a '
            'safe point until the store is back) or "exit" (ends with 74)'
        )
        raise ConfigError(msg)
    return cast("StoreLoss", option)


def snapshot_mode(option: str) -> SnapshotMode:
    """Read `snapshot`.

    Raises:
        ConfigError: it is neither copy nor overlap.
    """
    if option not in get_args(SnapshotMode):
        msg = (
            f'snapshot is {option!r}; expected "copy" (at the safe point) or "overlap" (on CUDA, the copy runs under the '
            "next forward and backward)"
        )
        raise ConfigError(msg)
    return cast("SnapshotMode", option)


def verify_snapshots(option: bool, env: Mapping[str, str]) -> bool:
    """Whether each snapshot is checked against the live state; `$OUTLAST_VERIFY_SNAPSHOTS` overrides the script."""
    override = env.get("OUTLAST_VERIFY_SNAPSHOTS")
    return override == "1" if override else option


RESERVED = frozenset(
    {
        "name_or_url",
        "resume",
        "save_every",
        "max_lost_work",
        "keep_last",
        "keep_every",
        "keep_best",
        "host_memory",
        "verify_snapshots",
        "snapshot",
        "on_store_loss",
        "allow_local_store",
        "seed",
    }
)
"""Every option name of `Run`: no state can take one."""


def arguments_digest(argv: Sequence[str]) -> str:
    """6 hex digits that tell a script's arguments from others, without what they say (they may hold a secret)."""
    # torch.distributed.launch hands each rank its own number: no part of what tells runs apart.
    arguments = [a for a in argv[1:] if not a.startswith(("--local-rank=", "--local_rank="))]
    return hashlib.sha256("\0".join(arguments).encode(errors="surrogateescape")).hexdigest()[:6]


def _is_place(text: str) -> bool:
    return "://" in text or text.startswith(("/", "./", "../", "~/"))


def _as_url(text: str, cwd: Path) -> str:
    if "://" in text:
        return text
    return Path(os.path.normpath(cwd / Path(text).expanduser())).as_uri()


def _usd(env: Mapping[str, str], name: str) -> float | None:
    text = env.get(name)
    if not text:
        return None
    try:
        usd = float(text)
    except ValueError:
        usd = math.nan
    if not 0 < usd < math.inf:
        msg = f"{name} is {text!r}; expected USD per hour above 0, such as 1.25; leave it out where the price is not known"
        raise ConfigError(msg)
    return usd


def _best(value: object) -> Best:
    match value:
        case [str(metric), "min" | "max" as mode]:
            return Best(metric, mode)
    msg = f'keep_best is {value!r}; expected a logged metric and which way is better, such as ("val_loss", "min")'
    raise ConfigError(msg)


def _checked_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        msg = (
            f"{name!r} is no name for a run: expected up to 200 letters, digits, '.', '_' and '-', starting with a "
            "letter or digit. A path starts with / or ./, a URL with s3:// or file://"
        )
        raise ConfigError(msg)
    return name


def _script_name(argv: Sequence[str]) -> str:
    script = Path(argv[0]) if argv and argv[0] not in {"", "-c", "-"} else None
    if script is None or script.stem == "ipykernel_launcher":
        msg = "there is no script to name the run after: give a name, outlast.Run('my-run', ...), or set OUTLAST_RUN"
        raise ConfigError(msg)
    stem = script.parent.name if script.stem == "__main__" else script.stem
    digits = arguments_digest(argv)
    clean = re.sub(r"[^A-Za-z0-9._-]+", "-", stem).lstrip("._-")[:150]
    return f"{clean or 'run'}-{digits}"


def _seconds(value: object) -> float | None:
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, str):
        match = _DURATION.fullmatch(value)
        if match is None:
            return None
        unit = match.group(2) or "s"
        return float(match.group(1)) * _UNIT_S["ms" if unit == "ms" else unit[0]]
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None
