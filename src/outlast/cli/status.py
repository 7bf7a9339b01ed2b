"""`outlast status`: where a run stands, from what its store says and what this machine can see."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import msgspec
from cyclopts import App, Parameter
from rich.table import Table

from outlast._errors import FormatTooNew, ObjectDamaged, ObjectMissing
from outlast._process import process_alive
from outlast._types import Json
from outlast.checkpoint import catalog
from outlast.checkpoint.events import kept_metrics
from outlast.checkpoint.manifest import AttemptRecord, ProcessId
from outlast.cli._against_plan import against_plan, against_plan_said, read_plan
from outlast.cli._bills import cost, cost_said, interruptions
from outlast.cli._interval import interval_said
from outlast.cli._place import open_run
from outlast.cli._recent import recent_events, saves_of
from outlast.cli._show import age_s, ago, clock, console, print_json, size, table, text
from outlast.policy.plan_error import Planned
from outlast.policy.recall import Heard, heard, recall
from outlast.store.base import Store

ATTEMPTS_SHOWN = 5
"""Newest attempts in the table; `--json` has all."""
RECORD_READS = 16
"""Attempts' records read at once; the store's latency is what counts."""

_OUTCOMES = {"saved": "; saved", "lost": "; not saved in time", "open": "; not saved yet"}
"""What is said of each outcome of a notice; that one was cancelled is said with the time."""
_ALARMING = ("warning", "damaged", "not durable")

app = App(name="status")


@app.default
def status(
    run: str, /, *, plan: Path | None = None, json: Annotated[bool, Parameter(negative="")] = False
) -> None:
    """Show where a run stands: attempts, newest durable step, last resume and notice, cost, warnings, metrics.

    Example: outlast status gpt-small

    Args:
        run: URL, path, or name under $OUTLAST_STORE.
        plan: What `outlast plan --json` printed for the run: what it expected is compared with what came of it.
        json: Print JSON.
    """
    planned = None if plan is None else read_plan(plan)
    store, record = open_run(run)
    found = {"run_id": record.run_id, "url": store.url, **_gather(store, planned)}
    if json:
        print_json(found)
    else:
        _show(found)


def _gather(store: Store, planned: Planned | None) -> dict[str, Json]:
    faults: list[str] = []
    numbers = catalog.attempts(store)
    with ThreadPoolExecutor(RECORD_READS, "outlast-status") as pool:
        records = list(pool.map(lambda number: catalog.read_attempt(store, number), numbers))
    durable, is_finished, reaching = _durable(store, faults)
    events = recent_events(store, numbers, reaching, faults.append)
    newest = [event for event in events if numbers and event.get("attempt") == numbers[-1]]
    metrics = kept_metrics(events)
    notices = heard(events)
    learnt = recall(notices)
    paid = cost(records, [*_rare_saves(store, records, events, faults, planned), *events])
    return {
        "finished": is_finished,
        "durable": durable,
        "attempts": [_attempt(n, r, events) for n, r in zip(numbers, records, strict=True)],
        "resume": _last(events, "resume"),
        "save": _last(newest, "save"),
        "interval": _last(newest, "interval"),
        "cost": paid,
        "plan": None
        if planned is None
        else against_plan(planned, paid, interruptions(records, events), is_finished=is_finished),
        "store_lost": _store_lost(newest),
        "deleted": _last(newest, "deleted"),
        "notice": _last_notice(events, notices),
        "notices": [msgspec.to_builtins(notice) for notice in notices],
        "recall": {"saved": learnt.saved, "counted": learnt.counted, "share": learnt.share},
        "warnings": _open_warnings(newest),
        "metrics": metrics[-1] if metrics else None,
        "faults": faults,
    }


def _rare_saves(
    store: Store,
    records: Sequence[AttemptRecord | None],
    events: Sequence[dict[str, Json]],
    faults: list[str],
    planned: Planned | None,
) -> list[dict[str, Json]]:
    """Those that attempts went on from, where it is asked what lost work has cost."""
    has_price = any(r is not None and r.capacity is not None and r.capacity.usd_per_hour for r in records)
    if planned is None and not has_price:
        return []
    return saves_of(store, [r.resumed_from for r in records if r is not None], events, faults.append)


def _durable(store: Store, faults: list[str]) -> tuple[dict[str, Json] | None, bool, list[str]]:
    """The newest checkpoint whose records are whole, whether the run has finished with it, and its events parts."""
    for checkpoint in catalog.committed(store):
        try:
            loaded = catalog.load(store, checkpoint)
        except (ObjectMissing, ObjectDamaged, FormatTooNew) as error:
            if catalog.is_committed(store, checkpoint):  # else the run has deleted it meanwhile
                faults.append(f"checkpoint {checkpoint.name}: {error}")
            continue
        saved_utc = max(manifest.saved_utc for manifest in loaded.manifests)
        found = {
            "checkpoint": checkpoint.name,
            "step": checkpoint.step,
            "saved_utc": saved_utc,
            "age_s": age_s(saved_utc),
            "reason": loaded.commit.reason.value,
        }
        reaching = [manifest.events for manifest in loaded.manifests if manifest.events is not None]
        return found, loaded.commit.finished, reaching
    return None, False, []


def _attempt(number: int, record: AttemptRecord | None, events: Sequence[dict[str, Json]]) -> dict[str, Json]:
    its = [event for event in events if event.get("attempt") == number]
    end = _last(its, "end")
    return {
        "attempt": number,
        "host": record.trainer.host if record else None,
        "pid": record.trainer.pid if record else None,
        "since_utc": record.claimed_utc if record else None,
        "world_size": record.world_size if record else None,
        "capacity": msgspec.to_builtins(record.capacity) if record and record.capacity else None,
        "resumed_from": record.resumed_from if record else None,
        "state": "unknown" if record is None else _state(record, _last(its, "alive")),
        "outcome": end.get("outcome") if end else None,
        "last_sign_utc": its[-1].get("utc") if its else None,
    }


def _state(record: AttemptRecord, alive: dict[str, Json] | None) -> str:
    """`alive`, `gone`, or `unknown` where the attempt runs on another machine or in another container."""
    processes = [record.trainer, record.agent]
    try:
        processes.append(msgspec.convert((alive or {}).get("agent"), ProcessId))
    except msgspec.ValidationError:
        pass  # it has written no sign of life yet
    seen = [process_alive(process) for process in processes]
    return "alive" if True in seen else "unknown" if None in seen else "gone"


def _open_warnings(events: Sequence[dict[str, Json]]) -> list[dict[str, Json]]:
    """The last warning of each cause since the newest attempt last made something durable."""
    warnings: dict[str, dict[str, Json]] = {}
    for event in events:
        if event.get("kind") == "save":
            warnings.clear()
        elif event.get("kind") == "warning":
            warnings[str(event.get("cause"))] = event
    return list(warnings.values())


def _store_lost(events: Sequence[dict[str, Json]]) -> dict[str, Json] | None:
    """Since when the newest attempt's saves fail; None if they do not."""
    back = ("store-lost", "store-back", "save")
    last = next((event for event in reversed(events) if event.get("kind") in back), None)
    return last if last is not None and last["kind"] == "store-lost" else None


def _last_notice(events: Sequence[dict[str, Json]], notices: Sequence[Heard]) -> dict[str, Json] | None:
    """The last notice, with what became of it, and `cancelled_utc` if it was taken back."""
    notice = _last(events, "notice")
    if notice is None:
        return None
    cancelled = _last(events[events.index(notice) :], "notice-cancelled")
    its = (notice.get("attempt"), str(notice.get("source")))
    outcomes = [each.outcome for each in notices if (each.attempt, each.source) == its]
    return {
        **notice,
        "cancelled_utc": cancelled.get("utc") if cancelled else None,
        "outcome": outcomes[-1] if outcomes else None,
    }


def _last(events: Sequence[dict[str, Json]], kind: str) -> dict[str, Json] | None:
    return next((event for event in reversed(events) if event.get("kind") == kind), None)


def _show(found: dict[str, Json]) -> None:
    out = console()
    facts = Table.grid(padding=(0, 2, 0, 0))
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column(overflow="fold")
    for label, value in _facts(found):
        facts.add_row(label, text(value, "yellow" if label in _ALARMING else ""))
    out.print(facts)
    attempts = found["attempts"]
    if not attempts:
        return
    out.print()
    shown = table("attempt", "host", "since (UTC)", "state", "last sign", right=("attempt",))
    for each in attempts[-ATTEMPTS_SHOWN:]:
        state = f"{each['state']}, {each['outcome']}" if each["outcome"] else each["state"]
        shown.add_row(
            str(each["attempt"]),
            text(each["host"] or "(record damaged)"),
            clock(each["since_utc"] or ""),
            text(state),
            ago(each["last_sign_utc"]) if each["last_sign_utc"] else "",
        )
    out.print(shown)
    if len(attempts) > ATTEMPTS_SHOWN:
        out.print(text(f"and {len(attempts) - ATTEMPTS_SHOWN} earlier"))


def _facts(found: dict[str, Any]) -> list[tuple[str, str]]:
    durable, resume, notice, metrics = (found[name] for name in ("durable", "resume", "notice", "metrics"))
    save, lost, deleted = (found[name] for name in ("save", "store_lost", "deleted"))
    facts = [
        ("run", f"{found['run_id']} at {found['url']}"),
        ("finished", "yes" if found["finished"] else "no"),
    ]
    if durable is None:
        facts.append(("durable", "nothing yet"))
    else:
        facts.append(
            ("durable", f"step {durable['step']}, {ago(durable['saved_utc'])} ({durable['checkpoint']})")
        )
    if save is not None:
        facts.append(("last save", _cost(save)))
    if found["interval"] is not None:
        facts.append(("interval", interval_said(found["interval"])))
    if lost is not None:
        facts.append(
            ("not durable", f"the store fails, since {ago(str(lost.get('utc')))}: {lost.get('error')}")
        )
    if deleted is not None:
        facts.append(("deleted", _deletion(deleted)))
    if resume is not None:
        guarantee, why = str(resume.get("guarantee")), str(resume.get("why", ""))
        promise = why if why.startswith(guarantee) else f"{guarantee}, {why}".rstrip(", ")
        when = ago(str(resume.get("utc")))
        facts.append(
            ("resumed", f"attempt {resume['attempt']} at step {resume.get('step')}, {when}: {promise}")
        )
    if notice is not None:
        until = f", machine goes at {notice['deadline_utc']}" if notice.get("deadline_utc") else ""
        until = f", cancelled {ago(notice['cancelled_utc'])}" if notice["cancelled_utc"] else until
        outcome = _OUTCOMES.get(notice["outcome"], "")
        facts.append(("notice", f"{notice.get('source')}, {ago(str(notice.get('utc')))}{until}{outcome}"))
    if found["recall"]["counted"]:
        facts.append(("recall", _recall(found["notices"], found["recall"])))
    if (said := cost_said(found["cost"])) is not None:
        facts.append(("cost", said))
    if found["plan"] is not None:
        facts.append(("plan", against_plan_said(found["plan"])))
    if metrics is not None:
        values = ", ".join(f"{name} {value}" for name, value in metrics["values"].items())
        facts.append(("metrics", f"step {metrics['step']}: {values}"))
    facts += [("warning", f"{w.get('cause')}: {w.get('message')}") for w in found["warnings"]]
    facts += [("damaged", fault) for fault in found["faults"]]
    return facts


def _recall(notices: Sequence[dict[str, Json]], learnt: dict[str, Json]) -> str:
    """How many notices led to a durable save, and of what sources those came that did not."""
    said = f"{learnt['saved']} of {learnt['counted']} notices led to a durable save ({learnt['share']:.0%})"
    lost = sorted({n["source"] for n in notices if n["outcome"] == "lost" and n["announces"] != "hint"})
    return f"{said}; not those of {', '.join(lost)}" if lost else said


def _cost(save: dict[str, Json]) -> str:
    """What the last save took: time until it was durable, and bytes that were copied and written."""
    said = f"durable in {save.get('seconds')} s"
    held, copied, written = (save.get(name) for name in ("bytes", "bytes_copied", "bytes_written"))
    if isinstance(held, int) and isinstance(copied, int) and isinstance(written, int):
        said += f"; {size(written)} written, {size(copied)} copied of {size(held)}"
    return said


def _deletion(deleted: dict[str, Json]) -> str:
    """What retention deleted last."""
    names, nbytes = deleted.get("checkpoints"), deleted.get("bytes")
    count = len(names) if isinstance(names, list) else 0
    freed = size(nbytes) if isinstance(nbytes, int) else "?"
    return f"{count} checkpoint{'s' if count != 1 else ''}, {freed}, {ago(str(deleted.get('utc')))}"
