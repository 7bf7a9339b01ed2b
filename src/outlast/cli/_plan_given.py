"""What a user says of a job: flags, and below them the `[plan]` table of a job file."""

from __future__ import annotations

import json
import os
import time
import tomllib
from dataclasses import dataclass, fields, replace
from datetime import date
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from outlast._errors import ConfigError

TABLE = "plan"


@dataclass(frozen=True, kw_only=True)
class Flags:
    """What is said of a job; None where it is not.

    Attributes:
        work: How long the job runs undisturbed, such as 48h; or its steps, such as 20000steps, with --step.
        deadline: After its beginning, such as 70h, or a time in UTC such as 2026-12-01T12:00.
        spot: USD per hour of one spot machine.
        on_demand: USD per hour of one on-demand machine.
        state: What a save writes, of the whole job, such as 14GB.
        rate: To the store, of the whole job, such as 0.9GB/s.
        pause: For how long training stands still at a save, such as 0.5s.
        step: How long a step takes, where --work counts steps.
        provisioning: From asking for a machine until the script starts there, paid for (default: 3m).
        restart: From there until steps are made again (default: what --run says, else 1m).
        notice: From notice to power-off; 0s where there is none (default: 30s).
        hazard: Interruptions of one spot machine, such as 0.1/h or 2/day; without it, those of zones that were measured.
        recall: Share of interruptions whose notice leads to a durable save where one fits, such as 90%.
        traces: CSV files of spot capacity, gzipped or not: time_utc,zone,nodes_available.
        max_lost_work: The most work that an interruption may cost (default: 10m).
        nodes: Machines that the job takes (default: 1).
        elastic: It goes on with the machines that are left.
        runs: So many runs share the effort (default: 1).
        engineering: The one-time effort of making it ready for spot, such as 400usd.
        egress: USD per GB that a restart reads from the store; nothing within one region.
        storage: USD per GB and month on the store.
        requests: USD per 1,000 requests to the store.
        run: URL, path, or name of a run: what is not given is taken from its ledger.
    """

    work: str | None = None
    deadline: str | None = None
    spot: str | None = None
    on_demand: str | None = None
    state: str | None = None
    rate: str | None = None
    pause: str | None = None
    step: str | None = None
    provisioning: str | None = None
    restart: str | None = None
    notice: str | None = None
    hazard: str | None = None
    recall: str | None = None
    traces: Annotated[list[Path] | None, Parameter(consume_multiple=True, negative="")] = None
    max_lost_work: str | None = None
    nodes: str | None = None
    elastic: Annotated[bool | None, Parameter(negative="")] = None
    runs: str | None = None
    engineering: str | None = None
    egress: str | None = None
    storage: str | None = None
    requests: str | None = None
    run: str | None = None


_EXAMPLES: dict[str, object] = {
    "work": "48h",
    "deadline": "70h",
    "spot": 0.92,
    "on_demand": 3.06,
    "state": "14GB",
    "rate": "0.9GB/s",
    "pause": "0.5s",
    "step": "0.8s",
    "provisioning": "3m",
    "restart": "1m",
    "notice": "30s",
    "hazard": "0.1/h",
    "recall": "90%",
    "traces": ["zones.csv.gz"],
    "max_lost_work": "10m",
    "nodes": 4,
    "elastic": True,
    "runs": 20,
    "engineering": 400,
    "egress": 0.02,
    "storage": 0.023,
    "requests": 0.005,
    "run": "gpt-small",
}
_COUNTS = ("nodes", "runs")
_NUMBERS = ("spot", "on_demand", "engineering", "egress", "storage", "requests", "recall")
"""Where a file may say a bare number: it can mean nothing but USD, or a share."""

_OF_RUN = ("spot", "on_demand", "state", "rate", "pause")
"""What has to be said and a run's ledger may say."""


@dataclass(frozen=True)
class Given:
    """What is said of a job, and by whom.

    Attributes:
        flags: the command line's, and where that says nothing the file's.
        path: the job file; None without one.
        in_file: fields that it says.
        age_s: since it was written; None without one.
    """

    flags: Flags
    path: Path | None = None
    in_file: frozenset[str] = frozenset()
    age_s: float | None = None

    def name(self, field: str) -> str:
        """A field as its user wrote it."""
        return f"{self.path}: [{TABLE}] {_key(field)}" if field in self.in_file else f"--{_key(field)}"

    def source(self, field: str) -> tuple[str, float | None]:
        """Who says a field, and how old that is; None for what was said just now."""
        if self.path is None or field not in self.in_file:
            return "given", None
        return self.path.name, self.age_s

    def missing(self, field: str) -> str:
        """What to say where a field has to be said and is not."""
        places = f"{self.path or 'a job file (--job)'}{' or a run (--run)' if field in _OF_RUN else ''}"
        return f"--{_key(field)} is not given, nor does {places} say it; expected a value such as {_EXAMPLES[field]}"


def given(flags: Flags, path: Path | None) -> Given:
    """Put flags over a job file.

    Raises:
        ConfigError: the file cannot be read, is no TOML, has no table `[plan]`, or that holds an unknown key or a wrong type.
    """
    if path is None:
        return Given(flags)
    found, age_s = _read(path)
    for field in _overruled(flags):
        found.pop(field, None)
    return Given(replace(flags, **found), path, frozenset(found), age_s)


def _overruled(flags: Flags) -> set[str]:
    """What a file says in vain: what a flag says, and what goes only with what a flag replaces."""
    said = {each.name for each in fields(Flags) if getattr(flags, each.name) is not None}
    if said & {"hazard", "traces"}:
        said |= {"hazard", "traces"}
    if flags.work is not None and "step" not in flags.work:
        said.add("step")
    return said


def _read(path: Path) -> tuple[dict[str, Any], float]:
    """What the file says, and seconds since it was written."""
    try:
        with path.open("rb") as file:
            age_s = max(time.time() - os.fstat(file.fileno()).st_mtime, 0.0)
            whole = tomllib.load(file)
    except OSError as error:
        msg = f"--job {path} cannot be read: {error.strerror}; expected a TOML file with a table [{TABLE}]"
        raise ConfigError(msg) from None
    except (ValueError, RecursionError) as error:
        msg = (
            f"--job {path} is no TOML: {error}; expected lines such as {_shown('work')} in a table [{TABLE}]"
        )
        raise ConfigError(msg) from None
    table = whole.get(TABLE)
    if not isinstance(table, dict):
        msg = f"--job {path} has no table [{TABLE}]; expected one with lines such as {_shown('work')}"
        raise ConfigError(msg)
    known = {_key(each.name): each.name for each in fields(Flags)}
    for key in table:
        if key not in known:
            msg = f"{path}: [{TABLE}] holds {key!r}, which it does not know; expected keys of {', '.join(known)}"
            raise ConfigError(msg)
    return {known[key]: _value(path, known[key], value) for key, value in table.items()}, age_s


def _value(path: Path, field: str, value: object) -> Any:
    """As the command line hands it over. Paths start where the file is."""
    match value:
        case bool() if field == "elastic":
            return value
        case bool():
            pass
        case int() if field in _COUNTS:
            return str(value)
        case int() | float() if field in _NUMBERS:
            return str(value)
        case date() if field == "deadline":
            return value.isoformat()
        case [*names] if field == "traces" and names and all(isinstance(name, str) for name in names):
            return [path.parent / str(name) for name in names]
        case str() if field == "run" and value.startswith(("./", "../")):
            return str((path.parent / value).absolute())
        case str() if field not in {*_COUNTS, "traces", "elastic"}:
            return value
    msg = f"{path}: [{TABLE}] {_key(field)} is {value!r}; expected a value such as {_shown(field)}"
    raise ConfigError(msg)


def _key(field: str) -> str:
    return field.replace("_", "-")


def _shown(field: str) -> str:
    """A line of TOML; JSON writes these values as TOML does."""
    return f"{_key(field)} = {json.dumps(_EXAMPLES[field])}"
