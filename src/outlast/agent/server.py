"""The agent's loop: notices, alarms and sessions; and the agent of a script that was started without one."""

from __future__ import annotations

import os
import selectors
import signal
import socket
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from outlast._errors import ConfigError
from outlast._say import LAST_WORDS_S, said, say, wait_for_nobody
from outlast.agent.protocol import NoticeHeard
from outlast.agent.session import Session
from outlast.agent.tee import FLUSH_S, take_over
from outlast.agent.wire import Wire
from outlast.notice.base import Notice
from outlast.notice.watch import Watch, for_policy, watch_machine
from outlast.policy.alarm import alarms
from outlast.policy.restart import MACHINE_SURVIVED_S, settled

TICK_S = 0.2
"""Between looks at sources that have no descriptor to wait on."""
ALARM_EVERY_S = 5.0
ALARM_AGAIN_S = 600.0
"""A warning that still holds is said again after this long."""


class Loop:
    """What the plain agent and the supervisor share: one loop that waits, hears notices and minds the session."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch
        self.heard: list[NoticeHeard] = []
        self._own: dict[str, Notice] = {}
        self._repeated: set[str] = set()
        self._shown: set[Notice] = set()
        self._alarmed: dict[str, float] = {}
        self._alarm_at_s = time.monotonic() + ALARM_EVERY_S
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        if watch.says:
            say(watch.says)

    @property
    def notices(self) -> tuple[Notice, ...]:
        """Every notice of this agent's life: those of its sources, and those that trainers heard."""
        return (*self.watch.notices, *self._own.values())

    @property
    def standing(self) -> tuple[Notice, ...]:
        """The notices that hold, the most urgent first, one of each source: not cancelled, not outlived by this machine."""
        now = time.monotonic()
        outlived_s = now - MACHINE_SURVIVED_S
        standing = [
            notice
            for notice in self.notices
            if not notice.cancelled
            and notice.id not in self._repeated
            and (notice.deadline_s is None or notice.deadline_s > outlived_s)
        ]
        first: dict[str, Notice] = {}
        for notice in sorted(standing, key=lambda notice: _urgency(notice, now)):
            first.setdefault(notice.source, notice)
        return tuple(first.values())

    def forget_settled(self) -> None:
        """Before a relaunch: forget notices that were cancelled or outlived, so that the next of their kind counts."""
        now = time.monotonic()
        self.watch.forget_settled(now)
        self._own = {
            source: notice for source, notice in self._own.items() if not settled(for_policy(notice, now))
        }

    def trainer_heard(self, message: NoticeHeard) -> None:
        """A signal reached the trainer. Called from the session's thread."""
        self.heard.append(message)
        self.wake()

    def wait(self, session: Session | None, descriptors: tuple[int, ...], until: Callable[[], bool]) -> None:
        """Run until `until()` holds, or one of the descriptors becomes readable."""
        while not until():
            with selectors.DefaultSelector() as selector:
                ours = set(descriptors)
                for fd in {*ours, *self.watch.filenos, self._wake_read}:
                    selector.register(fd, selectors.EVENT_READ)
                # Of a session that is done it stays readable, while the command that its script was part of goes on.
                pidfd = session.trainer_pidfd if session and not session.done.is_set() else None
                if pidfd is not None and pidfd not in ours:
                    selector.register(pidfd, selectors.EVENT_READ)
                ready = {key.fd for key, _ in selector.select(_tick_s(session))}
            if self._wake_read in ready:
                os.read(self._wake_read, 4096)
            if session is not None and pidfd in ready:
                session.trainer_gone()
                session.done.wait(TICK_S)
            self.tick(session)
            if ready & ours:
                return

    def tick(self, session: Session | None) -> None:
        """One look at everything."""
        changes = self.watch.poll()
        self._repeated |= {notice.id for notice in changes.new if self._repeats(notice)}
        for line in changes.warnings:
            say(f"warning: {line}")
        for message in self.heard[:]:
            self.heard.remove(message)
            self._hear(message)
        for notice in changes.cancelled:
            say(f"{notice.source}: cancelled; training goes on")
        standing = self.standing
        urgent = next((notice for notice in standing if notice.kind != "hint"), None)
        hints = {notice for notice in standing if notice.kind == "hint"}
        if urgent is not None and urgent not in self._shown:
            goes = "may go away" if urgent.kind == "leave" else "goes away"
            say(f"{urgent.source}: this machine {goes}{_when(urgent)}; saving at the next safe point")
        for hint in hints - self._shown:
            say(f"{hint.source}: this machine may go away{_when(hint)}; saving once, and training goes on")
        self._shown = hints | ({urgent} if urgent is not None else set())
        if session is not None:
            session.notice(standing)
        self._check_alarms(session)

    def ended(self, session: Session) -> None:
        """The trainer has ended, and what it handed over is durable: nobody need wait any longer for this machine."""
        for id in session.served:  # noqa: A001 - the field's name
            self.watch.acknowledge(id)

    def _hear(self, message: NoticeHeard) -> None:
        if message.source in self._own or any(n.source == message.source for n in self.watch.notices):
            return  # the same signal went to the whole process group
        self._own[message.source] = Notice(
            id=f"trainer-{message.source}",
            source=message.source,
            kind="warning" if message.source == "SIGUSR2" else "signal",
            deadline_s=time.monotonic() + message.grace_s,
            deadline_utc=datetime.now(UTC) + timedelta(seconds=message.grace_s),
        )

    def _repeats(self, notice: Notice) -> bool:
        """Whether a trainer told of the same signal before it was heard here."""
        own = self._own.get(notice.source)
        return own is not None and own.deadline_s is not None and time.monotonic() < own.deadline_s

    def _check_alarms(self, session: Session | None) -> None:
        now = time.monotonic()
        if session is None or now < self._alarm_at_s:
            return
        self._alarm_at_s = now + ALARM_EVERY_S
        session.remind()
        sight = session.sight()
        for alarm in alarms(sight) if sight else []:
            if now - self._alarmed.get(alarm.cause, -ALARM_AGAIN_S) >= ALARM_AGAIN_S:
                self._alarmed[alarm.cause] = now
                session.warn(alarm.cause, alarm.message)

    def wake(self) -> None:
        """Have the loop look again now. Thread-safe."""
        try:
            os.write(self._wake_write, b"\0")
        except BlockingIOError:
            pass  # it will wake up as it is


def serve(fd: int) -> int:
    """Be the agent of the trainer at the other end of `fd`, until it is gone and all it handed over is durable."""
    try:
        wait_for_nobody()
        watch = watch_machine(os.environ)
    except ConfigError as error:
        say(str(error))
        return error.exit_code
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the trainer's to answer
    loop = Loop(watch)
    said(LAST_WORDS_S)  # before what the script prints passes through here
    tee = take_over(os.environ)
    session = Session(
        Wire(socket.socket(fileno=fd)),
        say=say,
        heard=loop.trainer_heard,
        wake=loop.wake,
        printed=tee.printed if tee is not None else None,
    )
    loop.wait(session, (), session.done.is_set)
    loop.ended(session)
    session.close()
    if tee is not None:
        tee.end(FLUSH_S)
    return 0


def _when(notice: Notice) -> str:
    if notice.deadline_s is None:
        return ""
    return f" in {max(notice.deadline_s - time.monotonic(), 0):.0f} s"


def _urgency(notice: Notice, now: float) -> tuple[bool, bool, float]:
    """What sorts ends before hints, and of each the earliest deadline first; one that has come last, the later the earlier it was."""
    deadline_s = float("inf") if notice.deadline_s is None else notice.deadline_s
    return notice.kind == "hint", deadline_s <= now, deadline_s if deadline_s > now else -deadline_s


def _tick_s(session: Session | None) -> float:
    """Until the next look: the trainer is told to leave when it must, not a tick later."""
    if session is None:
        return TICK_S
    until_s = session.leaves_at_s - time.monotonic()
    return until_s if 0 < until_s < TICK_S else TICK_S
