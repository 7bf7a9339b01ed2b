"""What each event that a place can announce leads to: all of them at once, each to a script of its own, as real processes.

Asserted from what the scripts wrote, what lies on their stores, and what the metadata services were sent.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Self

import pytest

from launch import Lab, Started, Zygote, eventually
from outlast.drill.metadata import (
    AWS_MAINTENANCE,
    AWS_REBALANCE,
    AZURE_EVENTS,
    GCP_MAINTENANCE,
    Cloud,
    MetadataService,
    announce,
    azure_event,
    azure_events,
    azure_time,
    cancel,
    environment,
    metadata_service,
)

PREEMPTED = 75
STEPS = 18
WARNING_S = 12.0
AT = "step:5"
"""Where a script waits while it is told, if a save is all that follows; it has a durable save behind it, and so knows what one costs."""
LATER = "step:9"
QUICKLY = """
import outlast.policy.restart
outlast.policy.restart.MACHINE_SURVIVED_S = 1.0
"""
"""The minute after which a machine counts as spared is a second for processes that find this on their path."""


def soon() -> datetime:
    return datetime.now(UTC) + timedelta(seconds=WARNING_S + 1)  # a second is what the bodies leave out


def tell(cloud: Cloud) -> Callable[[Told], None]:
    return lambda told: announce(told.service, cloud, soon())


def say(path: str, body: Callable[[], object]) -> Callable[[Told], None]:
    return lambda told: told.service.say(path, body())


def rebalance() -> object:
    return {"noticeTime": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"}


def maintenance() -> object:
    """As AWS documents it, a day ahead."""
    at = datetime.now(UTC) + timedelta(days=1)
    return [
        {
            "NotBefore": f"{at:%d %b %Y %H:%M:%S} GMT",
            "Code": "system-reboot",
            "Description": "scheduled reboot",
            "EventId": "instance-event-0d59937288b749b32",
            "NotAfter": f"{at:%d %b %Y %H:%M:%S} GMT",
            "State": "active",
        }
    ]


def azure(kind: str) -> Callable[[], object]:
    return lambda: azure_events(azure_event(kind, azure_time(soon())))


GOES: dict[str, tuple[Cloud, Callable[[Told], None]]] = {
    "AWS instance-action": ("aws", tell("aws")),
    "GCP preempted": ("gcp", tell("gcp")),
    "Azure Preempt": ("azure", tell("azure")),
    "Azure Terminate": ("azure", say(AZURE_EVENTS, azure("Terminate"))),
    "Alibaba release": ("alibaba", tell("alibaba")),
    "Tencent repossession": ("tencent", tell("tencent")),
}
"""Saved for at once, trained on until the latest safe leave, saved for again, left with 75."""
MAY_GO: dict[str, tuple[Cloud, Callable[[Told], None]]] = {
    "AWS rebalance": ("aws", say(AWS_REBALANCE, rebalance)),
    "AWS maintenance": ("aws", say(AWS_MAINTENANCE, maintenance)),
    "Azure Freeze": ("azure", say(AZURE_EVENTS, azure("Freeze"))),
    "GCP MIGRATE": ("gcp", say(GCP_MAINTENANCE, lambda: "MIGRATE_ON_HOST_MAINTENANCE")),
}
"""Saved for once, and trained on."""
SIGTERM, CANCELLED = "SIGTERM", "AWS instance-action, cancelled"


@dataclass
class Told:
    """One event, the script that it happens to, and the service that says so.

    Attributes:
        acknowledged: for each acknowledgement of the service: the emergency checkpoints that stood on the store by then.
    """

    lab: Lab
    started: Started
    service: MetadataService
    acknowledged: list[list[int]]

    @property
    def saved(self) -> list[int]:
        """Steps of the emergency checkpoints on the store."""
        return emergencies(self.lab)

    @property
    def trained(self) -> int:
        """Steps that the script wrote down."""
        return len(self.lab.of("step"))


def emergencies(lab: Lab) -> list[int]:
    return [commit["step"] for commit in lab.commits() if commit["reason"] == "emergency"]


class Acknowledged(list):
    """What a service was sent, with a look at the store whenever that happens."""

    def __init__(self, lab: Lab, seen: list[list[int]]) -> None:
        self.lab, self.seen = lab, seen

    def __iadd__(self, ids: list[str]) -> Self:
        self.seen.append(emergencies(self.lab))
        self.extend(ids)
        return self


@pytest.fixture(scope="module")
def told(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Told]]:
    """Every event happens to a script that waits between two steps; all have ended."""
    with ExitStack() as stack:

        def start(event: str, cloud: Cloud, **env: object) -> Told:
            lab = Lab(tmp_path_factory.mktemp("event"), zygote)
            stack.callback(lab.close)
            service, seen = stack.enter_context(metadata_service(cloud)), list[list[int]]()
            service.acknowledged = Acknowledged(lab, seen)
            env |= environment(service, cloud) | {"OUTLAST_GRACE_S": WARNING_S, "T_SAVE": "step:2"}
            return Told(lab, lab.script(**env), service, seen)

        goes = {event: start(event, cloud, T_SLEEP=0.1, T_EPOCHS=200) for event, (cloud, _) in GOES.items()}
        may_go = {event: start(event, cloud, T_GATES=f"{AT},{LATER}") for event, (cloud, _) in MAY_GO.items()}
        cancelled = start(CANCELLED, "aws", T_GATES=f"{AT},{LATER}")
        sigterm = start(SIGTERM, "aws", T_GATES=AT)
        everyone = {**goes, **may_go, CANCELLED: cancelled, SIGTERM: sigterm}
        for event, (_, order) in GOES.items():
            goes[event].lab.committed(2)
            order(goes[event])
        told_at_the_gate = (*may_go.values(), cancelled, sigterm)
        for one in told_at_the_gate:
            one.lab.at(AT)
            one.lab.committed(2)
        for event, (_, order) in MAY_GO.items():
            order(may_go[event])
        announce(cancelled.service, "aws", datetime.now(UTC) + timedelta(seconds=100))
        os.kill(sigterm.started.pid, signal.SIGTERM)
        sigterm.started.says("then the trainer leaves")
        cancelled.started.says("training goes on for")
        for one in may_go.values():
            one.started.says("then training goes on")
        for one in told_at_the_gate:
            one.lab.open(AT)
        for one in (*may_go.values(), cancelled):
            one.lab.at(LATER)
            eventually("it is saved", lambda one=one: one.saved, one.lab.said)
        cancel(cancelled.service, "aws")
        cancelled.started.says("cancelled; training goes on")
        for one in everyone.values():
            one.lab.open(LATER)
        for one in everyone.values():
            one.started.wait()
        for one in everyone.values():
            one.lab.nothing_left()
        yield everyone


@pytest.mark.parametrize("event", GOES)
def test_a_machine_that_goes_is_saved_for_twice_and_left_in_time(told: dict[str, Told], event: str) -> None:
    """At the next safe point, and at the last one before the deadline, which is that of the last step: none is lost."""
    one = told[event]
    assert one.started.wait() == PREEMPTED, one.lab.said()
    # Between them perhaps one that the agent saved without a trainer that stood still too long.
    first, *_, last = one.saved
    assert first < last == one.trained, one.lab.said()


@pytest.mark.parametrize("event", MAY_GO)
def test_a_machine_that_may_go_is_saved_for_once_and_trained_on(told: dict[str, Told], event: str) -> None:
    """One save more, and no restart."""
    one = told[event]
    assert one.started.wait() == 0, one.lab.said()
    assert one.saved == [5]
    assert len(one.lab.of("run")) == 1
    assert one.trained == STEPS


def test_a_signal_is_left_after_its_first_save(told: dict[str, Told]) -> None:
    """Whoever sends SIGTERM ends this process too, though saves are measured and time is left."""
    one = told[SIGTERM]
    assert one.started.wait() == PREEMPTED, one.lab.said()
    assert one.saved == [5]
    assert one.trained == 5


def test_a_notice_that_is_cancelled_before_the_leave_costs_one_save(told: dict[str, Told]) -> None:
    """It was trained on meanwhile; so it goes on."""
    one = told[CANCELLED]
    assert one.started.wait() == 0, one.lab.said()
    assert one.saved == [5]
    assert len(one.lab.of("run")) == 1
    assert one.trained == STEPS


@pytest.mark.parametrize("event", ["Azure Preempt", "Azure Terminate"])
def test_azure_may_begin_once_the_last_save_is_durable(told: dict[str, Told], event: str) -> None:
    """StartRequests names the event, once; by then the commit of the last step stood on the store."""
    one = told[event]
    assert one.acknowledged == [one.saved]
    assert one.service.acknowledged == ["C7061BAC-AFDC-4513-B24B-AA5F13A16123"]


@pytest.mark.parametrize("how", ["taken back", "outlived"])
def test_a_machine_that_was_spared_trains_on_where_it_was(lab: Lab, tmp_path: Path, how: str) -> None:
    """Taken back after the script has left, or still there after the deadline: the agent, still alive, starts it again."""
    (tmp_path / "sitecustomize.py").write_text(QUICKLY)
    with metadata_service("azure") as service:
        service.acknowledged = Acknowledged(lab, seen := list[list[int]]())
        started = leaver(lab, **environment(service, "azure"), PYTHONPATH=tmp_path)
        announce(service, "azure", datetime.now(UTC) + timedelta(seconds=100 if how == "taken back" else 3))
        started.says("waiting whether this machine goes away")
        eventually("Azure may begin", lambda: service.acknowledged, lab.said)
        assert seen == [[7]]
        if how == "taken back":
            cancel(service, "azure")
        started.says("resumed")
        assert started.wait() == 0, lab.said()
    assert (
        "the notice was cancelled" if how == "taken back" else "the machine outlived its notice"
    ) in started.text
    assert emergencies(lab) == [7]


def test_a_supervised_script_that_left_on_a_hint_is_not_started_here_again(lab: Lab) -> None:
    """The hint stands for ever: who asked to leave on it wants another machine."""
    with metadata_service("aws") as service:
        started = leaver(lab, "--on-rebalance", "leave", **environment(service, "aws"))
        service.say(AWS_REBALANCE, rebalance())
        assert started.wait() == PREEMPTED, lab.said()
    assert "AWS rebalance recommendation: this machine may go away" in started.text
    assert "resumed" not in started.text
    assert emergencies(lab) == [7]


def leaver(lab: Lab, *options: str, **env: object) -> Started:
    """`outlast run` of a script that saves step 7 when it is told to leave; it trains."""
    script = Path(__file__).parents[1] / "field" / "leaver.py"
    url = (lab.folder / "store" / "run").as_uri()
    started = lab.supervised(*options, command=[sys.executable, str(script), url, "now"], **env)
    started.says("training")
    return started
