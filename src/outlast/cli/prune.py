"""`outlast checkpoints pin` and `prune`: what stays for good, and what goes now."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.progress import track

from outlast._errors import ConfigError, RunAlive
from outlast._process import process_id
from outlast._types import Json, Keep
from outlast.agent.claim import Claimant, Waits, utc_now, wait_until_gone
from outlast.agent.earlier import is_over, may_still_write
from outlast.checkpoint import catalog, pins
from outlast.checkpoint.holdings import Flight, Seen
from outlast.checkpoint.manifest import CheckpointId, RunRecord
from outlast.checkpoint.prune import Plan, Pruner, Whose
from outlast.cli._place import checkpoint_named, open_run
from outlast.cli._show import console, print_json, size, table, text
from outlast.cli._whole import MaybeWhole
from outlast.policy.retention import ALWAYS_NEWEST
from outlast.store.base import Store


def pin(run: str, checkpoint: str, /, *, remove: Annotated[bool, Parameter(negative="")] = False) -> None:
    """Keep a checkpoint until the pin is removed, whatever keep_last and prune say.

    Example: outlast checkpoints pin gpt-small 00003-k7f2-000000001200

    Args:
        run: URL, path, or name under $OUTLAST_STORE.
        checkpoint: Name of the checkpoint, as `list` shows it.
        remove: Take the pin back.
    """
    store, record = open_run(run)
    chosen = checkpoint_named(checkpoint)
    if remove:
        if not pins.unpin(store, chosen):
            msg = (
                f"{chosen.name} at {store.url} has no pin that was put by hand. One that the script saved with "
                "pin=True stays pinned: what is saved is never changed."
            )
            raise ConfigError(msg)
        console().print(text(f"{chosen.name} is not pinned any more."))
        return
    if not pins.pin(store, record.run_id, chosen, utc_now()):
        msg = f"{store.url} holds no checkpoint {chosen.name} (any more); `outlast checkpoints list` shows what is there"
        raise ConfigError(msg)
    console().print(text(f"{chosen.name} is pinned."))


def prune(
    run: str,
    /,
    *,
    keep_last: MaybeWhole = None,
    damaged: Annotated[bool, Parameter(negative="")] = False,
    dry_run: Annotated[bool, Parameter(negative="")] = False,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Delete the checkpoints of a run that need not be kept, and what cut saves left. Not while the run lives.

    Every byte of the newest ones is read first: only what is whole counts as kept. What always stays: the newest two, pinned
    ones, the last emergency checkpoint, and what the script asked for (keep_every, keep_best).

    Example: outlast checkpoints prune gpt-small --keep-last 1 --dry-run

    Args:
        run: URL, path, or name under $OUTLAST_STORE.
        keep_last: How many of the newest stay; the script's own keep_last if left out.
        damaged: Read all of them, and delete those that are damaged too.
        dry_run: Only say what would be deleted.
        json: Print JSON.
    """
    if keep_last is not None and keep_last < 1:
        msg = f"--keep-last is {keep_last}; expected how many checkpoints to keep, at least 1"
        raise ConfigError(msg)
    store, run_record = open_run(run)
    newest = _wait_until_gone(store, run_record)
    if not dry_run:
        catalog.adopt(store, run_record.run_id)
    attempt = catalog.read_attempt(store, newest) if newest else None
    keep = _asked(store)
    pruner = Pruner(store, _with_last(keep, keep_last))
    seen = pruner.holdings.look(Flight)
    whole, bad = _read(store, seen, count=None if damaged else max(keep_last or keep.last, ALWAYS_NEWEST))
    if damaged and bad and not whole:
        msg = (
            f"none of the {len(bad)} checkpoints of {store.url} is whole. Nothing was deleted: with the last of them gone, the "
            "next start would begin at step 0. `outlast checkpoints verify` says what is wrong; put the missing objects back, "
            "or delete the run's folder if that is what you want."
        )
        raise ConfigError(msg)
    whose = Whose(
        run_id=run_record.run_id,
        attempt=None,
        known=whole,
        passed_over=bad,
        floor=may_still_write(store, attempt) if attempt else 0,
        perhaps_alive=newest if newest and not is_over(store, newest, attempt) else None,
    )
    plan = pruner.plan(
        seen, whose, now_s=time.monotonic(), at_once=True, damaged=bad if damaged else frozenset()
    )
    if not dry_run:
        planned = plan
        plan = pruner.carry_out(plan, seen, lambda: max(catalog.attempts(store), default=0) == newest)
        if len(plan.checkpoints) < len(planned.checkpoints):
            Console(stderr=True).print(
                "not all that may go is deleted: a start has claimed the run, which prunes itself, or somebody pinned one meanwhile"
            )
    _show(store, seen, plan, bad, dry_run=dry_run, json=json)


def _asked(store: Store) -> Keep:
    """What the script asked to keep, as the newest attempt says whose record can be read.

    Raises:
        ConfigError: none can, so it is not known what may go.
    """
    for number in reversed(catalog.attempts(store)):
        attempt = catalog.read_attempt(store, number)
        if attempt is not None:
            return attempt.keep
    msg = (
        f"{store.url}: no attempt's record can be read, so what the script asked to keep is not known. Nothing was deleted: "
        "start the run once more, and its agent prunes."
    )
    raise ConfigError(msg)


def _with_last(keep: Keep, last: int | None) -> Keep:
    return keep if last is None else Keep(last, keep.every_s, keep.every_steps, keep.best)


def _wait_until_gone(store: Store, record: RunRecord) -> int:
    """Return the newest attempt's number once it is gone.

    No attempt is claimed for a prune. A start meanwhile must not be refused because of it, nor the run's history show an
    attempt that never trained; and nothing that a start could resume from is deleted. A newer attempt ends the prune.
    """
    process = process_id(os.getpid())
    claimant = Claimant(
        run_id=record.run_id,
        trainer=process,
        agent=process,
        launch_id="",
        job_id=None,
        world_size=1,
        global_batch=None,
        settings={},
        take_over=False,
    )
    try:
        return wait_until_gone(store, claimant, say=Console(stderr=True).print, waits=Waits())
    except RunAlive as error:
        who = str(error).partition("; this start is")[0]
        msg = f"{who}. Nothing was deleted: while a run lives, its own agent prunes. Stop it first."
        raise RunAlive(msg) from error


def _read(
    store: Store, seen: Seen, count: int | None
) -> tuple[frozenset[CheckpointId], frozenset[CheckpointId]]:
    """Read every byte of the newest checkpoints, until so many are whole (None: of all); return the whole and the damaged."""
    whole, bad = set[CheckpointId](), set(seen.damaged)
    watched = Console(stderr=True)
    newest_first: Iterable[CheckpointId] = sorted(seen.whole, reverse=True)
    if count is None:  # one that a newer Outlast wrote is not damaged: it ends the prune
        for each in seen.damaged:
            catalog.verify(store, each, events=False)
    for each in track(
        newest_first, "reading", console=watched, transient=True, disable=not watched.is_terminal
    ):
        if count is not None and len(whole) >= count:
            break
        (bad if catalog.verify(store, each, events=False) else whole).add(each)
    return frozenset(whole), frozenset(bad)


def _show(
    store: Store, seen: Seen, plan: Plan, bad: frozenset[CheckpointId], *, dry_run: bool, json: bool
) -> None:
    freed = sum(plan.segments.values())
    gone = {*plan.checkpoints}
    rows: list[dict[str, Json]] = [
        {
            "checkpoint": id.name,
            "step": id.step,
            "deleted": id in gone,
            "damaged": id in bad,
            "pinned": id in seen.pins or (id in seen.whole and seen.whole[id].fact.pinned),
        }
        for id in sorted((*seen.whole, *seen.damaged), reverse=True)  # noqa: A001
    ]
    if json:
        print_json({"url": store.url, "dry_run": dry_run, "bytes_freed": freed, "checkpoints": rows})
        return
    shown = table("checkpoint", "step", "", right=("step",))
    for row in rows:
        notes = [name for name in ("damaged", "pinned") if row[name]]
        goes = ("would go" if dry_run else "deleted") if row["deleted"] else "stays"
        shown.add_row(text(row["checkpoint"]), str(row["step"]), text(", ".join((goes, *notes))))
    out = console()
    if rows:
        out.print(shown)
    what = f"{len(gone)} of {len(rows)} checkpoints, {size(freed)} in all"
    out.print(text(f"{'Would delete' if dry_run else 'Deleted'} {what}."))
    if kept_bad := len(bad - gone):
        out.print(text(f"{kept_bad} damaged: they stay until `prune --damaged`."))
