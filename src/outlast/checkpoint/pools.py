"""What is kept of a pool, for all runs of a root: how long each attempt lived there, and how it ended.

`<root>/_pools/<pool>/<when it was claimed>-<run id>-<attempt>-<nonce>.json`: one object per attempt, put once it is over by its own agent, or by the
run's next attempt where its machine went without a word. Two runs never write the same object, and none is read to be changed.
"""

from __future__ import annotations

import contextlib
import re
from concurrent.futures import ThreadPoolExecutor

import msgspec

from outlast._errors import FormatTooNew, ObjectDamaged, ObjectMissing
from outlast._types import FORMAT_VERSION, settle
from outlast.checkpoint.manifest import AttemptRecord, seal
from outlast.checkpoint.sealed import read_record
from outlast.policy.hazard import MOST_SPELLS, End, Spell
from outlast.store.base import Store

_READS = 16
_LONGEST_S = 10 * 365 * 86_400.0
"""No attempt lives longer: a record that says so, or less than nothing, is no record."""


class SpellRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt's time in a pool. `end`: see `policy/hazard.py`."""

    format: int
    run_id: str
    attempt: int
    pool: str
    machine_type: str | None
    began_utc: str
    seconds: float
    end: End


def put_spell(root: Store, attempt: AttemptRecord, spell: Spell) -> None:
    """Keep an attempt's spell for other runs; it may be there already.

    Raises:
        StoreError: the root cannot be written.
    """
    if attempt.capacity is None:
        return
    record = SpellRecord(
        format=FORMAT_VERSION,
        run_id=attempt.run_id,
        attempt=attempt.attempt,
        pool=attempt.capacity.pool,
        machine_type=attempt.capacity.machine_type,
        began_utc=attempt.claimed_utc,
        seconds=round(spell.seconds, 3),
        end=spell.end,
    )
    when = re.sub(r"[^0-9]", "", attempt.claimed_utc.partition("+")[0])
    name = f"{when}-{attempt.run_id}-{attempt.attempt:05d}-{attempt.nonce}.json"
    root.create(f"{_folder(record.pool)}/{name}", seal(record))


def read_spells(root: Store, pool: str, *, but: str) -> list[SpellRecord]:
    """Return the newest spells of a pool's attempts, oldest first, but for those of the run `but`; damaged ones are left out.

    Raises:
        StoreError: the root cannot be read.
    """
    keys = [info.key for info in root.list(_folder(pool)) if but not in _name(info.key).split("-")[1:-2]]
    keys = keys[-MOST_SPELLS:]
    with ThreadPoolExecutor(_READS, "outlast-pool") as reads:
        found = list(reads.map(lambda key: _read(root, key), keys))
    return [r for r in found if r is not None and r.pool == pool and 0 <= r.seconds <= _LONGEST_S]


def _folder(pool: str) -> str:
    return f"_pools/{pool}"


def _name(key: str) -> str:
    return key.rpartition("/")[2]


def _read(root: Store, key: str) -> SpellRecord | None:
    with contextlib.suppress(ObjectMissing, ObjectDamaged, FormatTooNew):
        return read_record(root, key, SpellRecord)[0]
    return None


settle(SpellRecord)
