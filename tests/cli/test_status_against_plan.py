"""`outlast status --plan`: what a real plan expected, against a ledger that the test wrote and summed up by hand."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from outlast._errors import ConfigError
from outlast._process import process_id
from outlast._types import Capacity
from outlast.checkpoint import catalog
from outlast.checkpoint.events import EventLog
from outlast.checkpoint.manifest import AttemptRecord, attempt_key, seal
from outlast.cli import status
from outlast.cli._against_plan import against_plan, against_plan_said, read_plan
from outlast.cli.plan import app
from outlast.policy.plan_error import Planned
from saving import RUN_ID, MemoryStore, id_of, save

HERE = process_id(os.getpid())
SPOT = Capacity(pool="aws-1a", usd_per_hour=3.06, usd_from="outlast run", on_demand_usd_per_hour=10.20)
FLAGS = (
    "--work=4h --deadline=10h --spot=3.06usd --on-demand=10.20usd --state=14GB --rate=0.9GB/s --pause=0.5s "
    "--hazard=0.3/h --engineering=100usd --egress=0.02usd --storage=0.1usd --requests=0.005usd --json"
)


class Ledger:
    """A run in memory, in which the test writes what its attempts did, minutes after midnight."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.store = MemoryStore()
        self._capsys = capsys
        record = catalog.create_run(self.store, RUN_ID, "2026-11-01T00:00:00+00:00")
        monkeypatch.setattr(status, "open_run", lambda _: (self.store, record))
        monkeypatch.setenv("COLUMNS", "200")

    def attempt(self, number: int, minute: int, capacity: Capacity | None, resumed: int | None) -> None:
        record = AttemptRecord(
            format=1, run_id=RUN_ID, attempt=number, nonce="aaaa", claimed_utc=_utc(minute), world_size=1, global_batch=8,
            launch_id="l", job_id=None, agent=HERE, trainer=HERE, settings={}, capacity=capacity,
            resumed_from=None if resumed is None else id_of(resumed, attempt=number - 1).name,
        )  # fmt: skip
        self.store.create(attempt_key(number), seal(record))

    def put(self, number: int, minute: int, kind: str, step: int, **fields: object) -> None:
        log = EventLog(self.store, number, "aaaa", 0)
        saved = {"checkpoint": id_of(step, attempt=number).name, "seconds": 0.0} if kind == "save" else {}
        log.add({"kind": kind, "utc": _utc(minute), "step": step, **saved, **fields})
        log.flush()

    def train(self, capacity: Capacity | None = SPOT) -> None:
        """An hour that ends without a word, 5 minutes after a save; then two hours to the end."""
        self.attempt(1, 0, SPOT, None)
        self.put(1, 55, "save", 100, paused_s=12.0)
        self.put(1, 60, "alive", 0, agent=msgspec.to_builtins(HERE))
        self.attempt(2, 70, capacity, 100)
        self.put(2, 190, "save", 300, paused_s=24.0)

    def finish(self) -> None:
        self.put(2, 190, "end", 300, outcome="finished")
        save(self.store, id_of(300, attempt=2), {"x": b"1"}, finished=True)

    def said(self, plan: Path) -> tuple[dict[str, Any], str]:
        status.status("gpt", plan=plan, json=True)
        found = json.loads(self._capsys.readouterr().out)["plan"]
        status.status("gpt", plan=plan)
        return found, " ".join(self._capsys.readouterr().out.split())


def _utc(minute: int) -> str:
    return f"2026-11-01T{minute // 60:02d}:{minute % 60:02d}:00.000+00:00"


@pytest.fixture(scope="module")
def printed() -> dict[str, Any]:
    """What `outlast plan --json` prints."""
    with pytest.MonkeyPatch.context() as patch:
        lines: list[str] = []
        patch.setattr("builtins.print", lines.append)
        app(FLAGS.split(), exit_on_error=False, print_error=False, result_action="return_value")
    return json.loads("".join(lines))


@pytest.fixture
def plan(printed: dict[str, Any], tmp_path: Path) -> Path:
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(printed))
    return path


@pytest.fixture
def ledger(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Ledger:
    return Ledger(monkeypatch, capsys)


def test_a_finished_run_is_compared_with_what_its_plan_expected(
    printed: dict[str, Any], plan: Path, ledger: Ledger
) -> None:
    """3 h of 3.06 USD, one interruption, 5 minutes lost, 36 s of saves; effort and store are in the plan's cost, and in no ledger."""
    ledger.train()
    ledger.finish()
    found, text = ledger.said(plan)
    terms = {term["name"]: term["value"] for term in printed["terms"]}
    realised = {"machines": 9.18, "interruptions": 1, "lost work": 5 / 60, "save overhead": 0.01}
    assert {each["name"]: each["realised"] for each in found["compared"]} == pytest.approx(realised)
    for each in found["compared"]:
        assert each["expected"] == pytest.approx(terms[each["name"]])
        assert each["error"] == pytest.approx(terms[each["name"]] - realised[each["name"]])
        assert each["error_share"] == pytest.approx(terms[each["name"]] / realised[each["name"]] - 1)
    others = sum(terms[name] for name in ("egress", "storage", "requests", "engineering"))
    assert others > 100
    low, high = printed["cost_usd"]["p5"] - others, printed["cost_usd"]["p95"] - others
    assert (found["machines_p5_usd"], found["machines_p95_usd"]) == pytest.approx((low, high))
    assert found["inside"] is (low <= 9.18 <= high)
    off = terms["machines"] / 9.18 - 1
    where = "inside" if found["inside"] else "outside"
    assert (
        f"plan cost of the machines: {terms['machines']:.2f} USD expected, 9.18 USD realised: {abs(off):.0%} too "
        f"{'high' if off > 0 else 'low'}, {where} the 90 % interval of {low:.2f} to {high:.2f} USD interruptions: "
    ) in text
    assert "1 realised" in text


def test_an_error_that_is_none_is_not_called_one() -> None:
    """Nor one that rounds to nothing; where nothing was realised, the amount is said."""
    cost = {
        "attempts_not_counted": 0, "attempts_with_unknown_loss": 0, "attempts_with_unknown_saves": 0,
        "paid_usd": 9.99, "priced_s": 1.0, "seconds": 1.0, "lost_s": 0.0, "saving_s": 0.0,
    }  # fmt: skip
    said = against_plan_said(
        against_plan(Planned(10.0, 8.0, 12.0, 0.0, 0.5, 0.0), cost, 0, is_finished=True)
    ).splitlines()
    assert said == [
        "cost of the machines: 10.00 USD expected, 9.99 USD realised: as planned, inside the 90 % interval of 8.00 to 12.00 USD",
        "interruptions: 0 expected, 0 realised: as planned",
        "lost work: 30.0 min expected, 0 s realised: 30.0 min too high",
        "save overhead: 0 s expected, 0 s realised: as planned",
    ]


def test_before_the_end_it_is_said_what_came_of_it_so_far(plan: Path, ledger: Ledger) -> None:
    """Without a judgement on the plan."""
    ledger.train()
    found, text = ledger.said(plan)
    assert (found["finished"], found["inside"]) == (False, None)
    assert {each["error"] for each in found["compared"]} == {None}
    assert found["compared"][1]["realised"] == 1  # the second attempt may live
    assert "9.18 USD so far (90 % interval of" in text
    assert "too" not in text


def test_an_amount_that_is_not_known_of_the_whole_run_is_not_compared(plan: Path, ledger: Ledger) -> None:
    """Nobody said what the second attempt's machine costs: the first one's 3.06 USD are not what the run cost."""
    ledger.train(capacity=None)
    ledger.finish()
    found, text = ledger.said(plan)
    assert (found["compared"][0]["realised"], found["inside"]) == (None, None)
    assert "USD expected; what it was is not known of the whole run" in text


def test_what_saves_took_is_unknown_where_one_attempt_does_not_say_it(plan: Path, ledger: Ledger) -> None:
    """The others' sum is not the run's."""
    ledger.attempt(1, 0, SPOT, None)
    ledger.put(1, 55, "save", 100)
    ledger.attempt(2, 70, SPOT, 100)
    ledger.put(2, 190, "save", 300, paused_s=24.0)
    ledger.finish()
    found, text = ledger.said(plan)
    assert [each["realised"] is None for each in found["compared"]] == [False, False, False, True]
    assert "at least 0.02 USD into saves" in text


def test_attempts_of_which_nothing_was_read_leave_all_of_it_unknown(plan: Path, ledger: Ledger) -> None:
    ledger.train()
    ledger.finish()
    ledger.attempt(3, 200, SPOT, 300)
    ledger.attempt(4, 210, SPOT, 300)
    ledger.put(4, 220, "alive", 0)
    found, _ = ledger.said(plan)
    assert {each["realised"] for each in found["compared"]} == {None}


def _set(found: dict[str, Any], path: str, value: object) -> None:
    *folders, last = path.split(".")
    for name in folders:
        found = (
            found[name]
            if isinstance(found, dict)
            else next(each for each in found if each["name"] == name.replace("_", " "))
        )
    found[last] = value


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("cost_usd", None, "cost_usd is missing; expected an object"),
        ("cost_usd", 5.0, "cost_usd is 5.0; expected an object"),
        ("cost_usd.p5", "nan", "cost_usd.p5 is 'nan'; expected a finite number of at least 0"),
        ("cost_usd.p95", float("nan"), "cost_usd.p95 is nan; expected a finite number"),
        ("cost_usd.p95", -1, "cost_usd.p95 is -1; expected a finite number"),
        ("cost_usd.mean", True, "cost_usd.mean is True; expected a finite number"),
        ("cost_usd.mean", 10**400, "cost_usd.mean is 1000"),
        ("cost_usd.p5", 1e6, "cost_usd.p5 is 1000000.0; expected no more than cost_usd.p95"),
        ("cost_usd.mean", 1.0, "cost_usd.mean is 1.0; expected 1"),
        ("terms", {}, "terms is {}; expected a list"),
        ("terms", [], "the number of terms named egress is 0; expected 1"),
        ("terms.lost_work.value", None, "the value of lost work is missing; expected a finite number"),
        ("terms.lost_work.value", -0.1, "the value of lost work is -0.1"),
        ("terms.save_overhead.unit", "s", "the unit of save overhead is 's'; expected 'h'"),
        ("terms.storage.name", "egress", "the number of terms named egress is 2"),
        ("terms.interruptions.name", "lost", "the number of terms named interruptions is 0"),
    ],
)
def test_a_field_that_holds_what_it_may_not_is_named(
    path: str, value: object, says: str, printed: dict[str, Any], tmp_path: Path
) -> None:
    """With what was found and what was expected."""
    changed = copy.deepcopy(printed)
    _set(changed, path, value)
    file = tmp_path / "changed.json"
    file.write_text(json.dumps(changed))
    with pytest.raises(ConfigError) as refused:
        read_plan(file)
    assert says in str(refused.value)
    assert str(file) in str(refused.value)


@pytest.mark.parametrize("content", [b"", b"worth it: spot is cheaper", b"\xff\xfe", b"[" * 100_000, b"[1]"])
def test_a_file_that_is_no_plan_is_refused(content: bytes, tmp_path: Path) -> None:
    """What `outlast plan` prints without --json among them."""
    file = tmp_path / "plan.txt"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=r"outlast plan .* --json"):
        read_plan(file)
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read_plan(tmp_path / "none.json")
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        read_plan(tmp_path)
