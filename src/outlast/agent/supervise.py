"""`outlast run`: be the node's agent, start the training script, and start it again by the table of exit codes."""

from __future__ import annotations

import math
import os
import random
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from outlast._errors import EXIT_INTERRUPTED, EXIT_PREEMPTED, EXIT_STORE, EXIT_SUPERSEDED, ConfigError
from outlast._say import say, wait_for_nobody
from outlast.agent.requeue import batch_job, requeue
from outlast.agent.server import Loop
from outlast.agent.session import Session
from outlast.agent.tasks import Newest
from outlast.agent.tee import FLUSH_S, Outlets, open_outlets
from outlast.agent.wire import Wire, peer_is_me
from outlast.notice.base import Notice
from outlast.notice.watch import watch_machine
from outlast.policy.emergency import EXIT_S
from outlast.policy.restart import (
    MAX_RESTARTS,
    STORE_WAIT_S,
    End,
    Outcome,
    Relaunch,
    StandingNotice,
    WaitNotice,
    decide,
)

_PASS_ON_AFTER_S = 1.0
"""A command that had the signal itself, as all of its group, ends within a moment."""
_TOLD_TO_LEAVE: dict[str | None, int] = {
    "preempted": EXIT_PREEMPTED,
    "interrupted": EXIT_INTERRUPTED,
    "superseded": EXIT_SUPERSEDED,
    "unsaved": EXIT_STORE,
}
"""Exit code of a script that was told to leave, or whose end is not durable, whatever became of the exception by which it was told."""


@dataclass
class _History:
    """What is remembered from one launch of the script to the next.

    `newest` is the memory of the script that has ended: the next one restores from it. `held` are the URLs at which there was
    a checkpoint: where there is none any more, nothing is begun afresh.
    """

    restarts: int = 0
    store_tries: int = 0
    store_since_s: float | None = None
    exception: str | None = None
    durable: str | None = None
    attempts: int = 0
    newest: Newest | None = None
    held: set[str] = field(default_factory=set)

    def remember(self, session: Session) -> None:
        """Take over what a session that is done leaves, and close it."""
        if session.holds is not None:
            self.held.add(session.holds)
        self.newest = session.take_newest()
        session.close()


@dataclass(frozen=True)
class _Ended:
    """How one launch of the script ended."""

    returncode: int
    exception: str | None
    durable: str | None
    attempt: int


def supervise(
    command: Sequence[str],
    *,
    store: str | None = None,
    max_restarts: int = MAX_RESTARTS,
    resume: str | None = None,
    take_over: bool = False,
    store_wait_s: float = STORE_WAIT_S,
) -> int:
    """Run `command` until it is done, and return the exit code to end with.

    The script finds this agent by an abstract socket whose name it gets in its environment: it has no place in a
    filesystem, goes with this process, and only this user's processes are answered.

    Raises:
        ConfigError: the command cannot be started.
    """
    wait_for_nobody()
    name = f"outlast-{os.getuid()}-{secrets.token_hex(8)}"
    env = {**os.environ, "OUTLAST_AGENT": name, "OUTLAST_LAUNCH_ID": secrets.token_hex(8)}
    if store is not None:
        env["OUTLAST_STORE"] = store
    if resume is not None:
        env["OUTLAST_RESUME"] = resume
    if take_over:
        env["OUTLAST_TAKE_OVER"] = "1"
    outlets = open_outlets(os.environ)
    if outlets is not None:
        env |= outlets.env
    loop = Loop(watch_machine(os.environ))
    interrupts = _Interrupts()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(f"\0{name}")
    listener.listen()
    history = _History()
    job = batch_job(os.environ, os.getpid())
    try:
        while True:
            ended = _launch(
                command, env, listener, loop, interrupts=interrupts, history=history, outlets=outlets
            )
            if ended.attempt:  # what this launch has started is its own from now on
                env.pop("OUTLAST_TAKE_OVER", None)
            code = _what_next(
                ended,
                history,
                loop,
                interrupts,
                max_restarts=max_restarts,
                store_wait_s=store_wait_s,
                batch=job is not None,
            )
            if code == EXIT_PREEMPTED and job is not None:
                requeue(job)
            if code is not None:
                return code
    finally:
        listener.close()


class _Interrupts:
    """Ctrl-C reaches the whole terminal group: the trainer answers it, the agent only passes on that it came.

    Attributes:
        count: how often it came.
    """

    def __init__(self) -> None:
        self.count = 0
        self._taken = 0
        signal.signal(signal.SIGINT, self._handle)

    @property
    def pending(self) -> bool:
        """Whether one came since the last `take`."""
        return self.count > self._taken

    @property
    def insists(self) -> bool:
        """Whether it came twice: leave at once, wait for nothing."""
        return self.count > 1

    def take(self) -> None:
        """What came so far is being answered."""
        self._taken = self.count

    def _handle(self, _number: int, _frame: object) -> None:
        self.count += 1


def _launch(
    command: Sequence[str],
    env: dict[str, str],
    listener: socket.socket,
    loop: Loop,
    *,
    interrupts: _Interrupts,
    history: _History,
    outlets: Outlets | None,
) -> _Ended:
    """Start the script once, serve it until it has ended and what it handed over is durable; then what it printed."""
    try:
        child = subprocess.Popen(
            list(command),
            env=env,
            stdout=outlets.stdout if outlets is not None else None,
            stderr=outlets.stderr if outlets is not None else None,
            pass_fds=outlets.inherited if outlets is not None else (),
        )
    except OSError as error:
        msg = f"cannot start {command[0]!r}: {error.strerror}. Give the command after --: outlast run -- python train.py"
        raise ConfigError(msg) from error
    pidfd = os.pidfd_open(child.pid)
    session: Session | None = None
    unheard = _Unheard(child)

    def interrupted() -> bool:
        unheard.look(_came(loop, interrupts) if session is None or session.done.is_set() else [])
        return interrupts.pending

    try:
        while child.poll() is None:
            loop.wait(session, (listener.fileno(), pidfd), interrupted)
            interrupts.take()
            session = _accept(listener, session, loop, history, outlets)
            if interrupts.count and session is not None:
                session.interrupt()
    finally:
        os.close(pidfd)
    if session is not None:
        session.trainer_gone()
        loop.wait(session, (), lambda: session.done.is_set() or interrupts.insists)
    if outlets is not None:
        outlets.tee.end(_left_s(loop, interrupts))
    if session is None:
        return _Ended(child.returncode, None, None, 0)
    claimed = session.claimed
    durable = claimed.persister.durable if claimed else None
    attempt = claimed.record.attempt if claimed else 0
    exception = session.exception
    if session.done.is_set():
        loop.ended(session)
        history.remember(session)
    code = child.returncode or _TOLD_TO_LEAVE.get(session.outcome, 0)
    return _Ended(code, exception, durable.name if durable else None, attempt)


def _left_s(loop: Loop, interrupts: _Interrupts) -> float:
    """How long the store is waited for with the last of what the script has printed, its state being durable."""
    deadlines = [notice.deadline_s for notice in loop.standing if notice.deadline_s is not None]
    left_s = min(deadlines, default=math.inf) - time.monotonic() - EXIT_S
    return 0.0 if interrupts.insists else max(min(left_s, FLUSH_S), EXIT_S)


class _Unheard:
    """Passes on, once each, the signals that this process got and that no session is there to tell the command of."""

    def __init__(self, child: subprocess.Popen[bytes]) -> None:
        self._child = child
        self._since_s: dict[signal.Signals, float] = {}
        self._passed: set[signal.Signals] = set()

    def look(self, came: Sequence[signal.Signals]) -> None:
        """Pass on those of `came` that the command has not ended by within a moment."""
        now = time.monotonic()
        self._since_s = {number: self._since_s.get(number, now) for number in came}
        for number, since_s in self._since_s.items():
            if number not in self._passed and now - since_s >= _PASS_ON_AFTER_S:
                self._passed.add(number)
                self._child.send_signal(number)


def _came(loop: Loop, interrupts: _Interrupts) -> list[signal.Signals]:
    terminated = any(notice.kind == "signal" and not notice.cancelled for notice in loop.notices)
    return [signal.SIGTERM] * terminated + [signal.SIGINT] * bool(interrupts.count)


def _accept(
    listener: socket.socket,
    session: Session | None,
    loop: Loop,
    history: _History,
    outlets: Outlets | None,
) -> Session | None:
    """Take the trainer's connection. While one is served another gets none, and starts an agent of its own.

    It gets the memory of the one before it, and gives it back once it has restored from it.
    """
    listener.setblocking(False)
    try:
        connection, _ = listener.accept()
    except BlockingIOError:
        return session
    if (session is not None and not session.done.is_set()) or not peer_is_me(connection):
        connection.close()
        return session
    if session is not None:
        history.remember(session)
    newest, history.newest = history.newest, None
    return Session(
        Wire(connection),
        say=say,
        heard=loop.trainer_heard,
        wake=loop.wake,
        outlived=newest,
        held=frozenset(history.held),
        printed=outlets.tee.printed if outlets is not None else None,
    )


def _what_next(
    ended: _Ended,
    history: _History,
    loop: Loop,
    interrupts: _Interrupts,
    *,
    max_restarts: int,
    store_wait_s: float,
    batch: bool,
) -> int | None:
    """Carry out what the policy decides: None to start again, else the exit code. `batch`: this is a Slurm job's script."""
    history.attempts = max(history.attempts, ended.attempt)
    new_checkpoint = ended.durable is not None and ended.durable != history.durable
    now = time.monotonic()
    if ended.returncode == os.EX_IOERR:
        history.store_since_s = history.store_since_s or now
    else:
        history.store_since_s, history.store_tries = None, 0
    exception = ended.exception
    if exception is None and ended.attempt == 0 and ended.returncode > 0:
        exception = f"exit code {ended.returncode} before outlast.Run was reached"
    while True:
        if interrupts.count:
            return 0 if ended.returncode == 0 else EXIT_INTERRUPTED
        now = time.monotonic()
        outcome = Outcome(
            returncode=ended.returncode,
            notices=tuple(_as_heard(notice, now, batch=batch) for notice in loop.notices),
            restarts=history.restarts,
            max_restarts=max_restarts,
            store_tries=history.store_tries,
            store_waited_s=now - history.store_since_s if history.store_since_s else 0.0,
            store_wait_s=store_wait_s,
            earlier_attempt=history.attempts > 0,
            exception=exception,
            previous_exception=history.exception,
            new_checkpoint=new_checkpoint,
        )
        action = decide(outcome, random.random())  # noqa: S311 - spreads retries, guards nothing
        match action:
            case End():
                if action.code != 0:
                    say(f"ending with {action.code}: {action.why}")
                return action.code
            case WaitNotice():
                say(action.why)
                _wait(loop, interrupts, action.at_most_s)
            case Relaunch():
                say(f"starting again: {action.why}")
                if not _wait(loop, interrupts, action.after_s):
                    continue
                if ended.returncode == os.EX_IOERR:
                    history.store_tries += 1
                history.restarts += action.counts
                history.exception = exception
                history.durable = ended.durable or history.durable
                loop.forget_settled()
                return None


def _wait(loop: Loop, interrupts: _Interrupts, seconds: float | None) -> bool:
    """Wait so long; False where a notice or Ctrl-C came meanwhile."""
    until_s = math.inf if seconds is None else time.monotonic() + seconds
    before = loop.notices

    def disturbed() -> bool:
        return interrupts.pending or loop.notices != before

    loop.wait(None, (), lambda: disturbed() or time.monotonic() >= until_s)
    return not disturbed()


def _as_heard(notice: Notice, now_s: float, *, batch: bool) -> StandingNotice:
    """What the policy is told of a notice. Slurm warns a batch job (`--signal=B:USR2@N`) only when it will end it."""
    past_s = now_s - notice.deadline_s if notice.deadline_s is not None else None
    kind = "signal" if batch and notice.kind == "warning" else notice.kind
    return StandingNotice(kind, notice.cancelled, past_s)
