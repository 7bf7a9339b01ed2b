"""`outlast checkpoints`: list a run's checkpoints, check every byte of them, keep some and delete others."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated

import msgspec
from cyclopts import App, Parameter
from rich.console import Console
from rich.progress import track

from outlast._errors import FormatTooNew, ObjectDamaged, ObjectMissing
from outlast._types import Json
from outlast.checkpoint import catalog, pins
from outlast.checkpoint.holdings import owner_of
from outlast.checkpoint.manifest import CheckpointId
from outlast.cli._place import checkpoint_named, open_run
from outlast.cli._show import ago, clock, console, print_json, size, table, text
from outlast.cli.export import export
from outlast.cli.prune import pin, prune
from outlast.store.base import Store

LOADS = 8
"""Checkpoints whose records are read at once; the store's latency is what counts."""

HELP = """List a run's checkpoints, check every byte of them, take them out, keep some and delete others.

Example: outlast checkpoints list gpt-small
"""

app = App(name="checkpoints", help=HELP)
app.command(export)
app.command(pin)
app.command(prune)


@app.command(name="list")
def list_(run: str, /, *, json: Annotated[bool, Parameter(negative="")] = False) -> None:
    """List the checkpoints of a run, newest first. Reads records only; `verify` reads every byte.

    Example: outlast checkpoints list s3://bucket/runs/gpt-small

    Args:
        run: URL, path, or name under $OUTLAST_STORE.
        json: Print JSON.
    """
    store, record = open_run(run)
    by_hand = pins.pinned(store)
    with ThreadPoolExecutor(LOADS, "outlast-list") as pool:
        found = catalog.committed(store)
        made = list(pool.map(lambda checkpoint: _row(store, checkpoint, checkpoint in by_hand), found))
    rows = [row for row in made if row is not None]
    on_store = sum(info.size_bytes for info in store.list())
    if json:
        print_json(
            {"run_id": record.run_id, "url": store.url, "bytes_on_store": on_store, "checkpoints": rows}
        )
        return
    out = console()
    if not rows:
        out.print(text(f"{store.url} holds no checkpoint yet."))
        return
    shown = table("checkpoint", "step", "saved (UTC)", "reason", "size", "", right=("step", "size"))
    for row in rows:
        if row["fault"] is not None:
            shown.add_row(text(row["checkpoint"]), str(row["step"]), "", "", "", text("damaged", "red"))
            continue
        notes = [name for name in ("pinned", "finished") if row[name]]
        if row["best"]:
            notes.append("best")
        if row["world_size"] > 1:
            notes.append(f"{row['world_size']} ranks")
        shown.add_row(
            text(row["checkpoint"]),
            str(row["step"]),
            clock(row["saved_utc"]),
            row["reason"],
            size(row["bytes"]),
            text(", ".join(notes)),
        )
    out.print(shown)
    for row in rows:
        if row["fault"] is not None:
            out.print(text(f"\n{row['checkpoint']}: {row['fault']}", "red"))
    shared = sum(row["bytes_shared"] or 0 for row in rows)
    out.print(text(f"\nOn the store: {size(on_store)}; {size(shared)} are shared with older checkpoints."))
    whole = next((row for row in rows if row["fault"] is None), None)
    if whole is not None:
        out.print(text(f"Newest: step {whole['step']}, saved {ago(whole['saved_utc'])}."))


@app.command
def verify(
    run: str, checkpoint: str | None = None, /, *, json: Annotated[bool, Parameter(negative="")] = False
) -> None:
    """Read every byte of a checkpoint, or of all of a run, and compare it with its digest. Exits 1 on a fault.

    Changes nothing. A store that is out of reach is an error (exit 74), not a fault.

    Example: outlast checkpoints verify gpt-small 00003-k7f2-000000001200

    Args:
        run: URL, path, or name under $OUTLAST_STORE.
        checkpoint: Name of one checkpoint, as `list` shows it; all of them if left out.
        json: Print JSON.
    """
    store, record = open_run(run)
    chosen = catalog.committed(store) if checkpoint is None else [checkpoint_named(checkpoint)]
    shown = table("checkpoint", "step", "result", right=("step",))
    rows: list[dict[str, Json]] = []
    watched = Console(stderr=True)
    for each in track(chosen, "reading", console=watched, transient=True, disable=not watched.is_terminal):
        try:
            faults = catalog.verify(store, each)
        except FormatTooNew as error:
            faults = [str(error)]
        if faults and checkpoint is None and not catalog.is_committed(store, each):
            continue  # the run has deleted it meanwhile
        rows.append({"checkpoint": each.name, "step": each.step, "faults": faults})
        result = text("\n".join(faults), "red") if faults else text("whole", "green")
        shown.add_row(each.name, str(each.step), result)
    is_whole = not any(row["faults"] for row in rows)
    if json:
        print_json({"run_id": record.run_id, "url": store.url, "whole": is_whole, "checkpoints": rows})
    elif rows:
        console().print(shown)
    else:
        console().print(text(f"{store.url} holds no checkpoint yet."))
    if not is_whole:
        sys.exit(1)


def _row(store: Store, checkpoint: CheckpointId, pinned_by_hand: bool) -> dict[str, Json] | None:
    """What `list` says about one checkpoint; the same fields whether it can be read or not. None: it was deleted just now.

    `bytes_shared` lie in segments that earlier saves wrote; `best` is the metric that was the best so far with it.
    """
    row: dict[str, Json] = {
        "checkpoint": checkpoint.name,
        "attempt": checkpoint.attempt,
        "step": checkpoint.step,
        "saved_utc": None,
        "reason": None,
        "bytes": None,
        "bytes_shared": None,
        "world_size": None,
        "pinned": pinned_by_hand,
        "finished": None,
        "best": None,
        "fault": None,
    }
    try:
        loaded = catalog.load(store, checkpoint)
        records = catalog.tensors(loaded)
    except (ObjectMissing, ObjectDamaged, FormatTooNew) as error:
        return row | {"fault": str(error)} if catalog.is_committed(store, checkpoint) else None
    head = loaded.commit
    chunks = [chunk for record in records for held in record.slices for chunk in held.chunks]
    best = next((manifest.best for manifest in loaded.manifests if manifest.best is not None), None)
    return row | {
        "saved_utc": max(manifest.saved_utc for manifest in loaded.manifests),
        "reason": head.reason.value,
        "bytes": sum(chunk.nbytes for chunk in chunks),
        "bytes_shared": sum(chunk.nbytes for chunk in chunks if owner_of(chunk.segment) != checkpoint),
        "world_size": head.world_size,
        "pinned": head.pinned or pinned_by_hand,
        "finished": head.finished,
        "best": msgspec.to_builtins(best),
    }
