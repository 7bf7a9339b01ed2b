"""The trainer's end: find or start the agent, hand snapshots over, and start a new agent where one died.

No torch here: tensors are copied into arenas by `snapshot/stager.py`, this moves descriptors and records.
"""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Callable
from typing import TypeAlias

import msgspec

from outlast._errors import AgentLost, OutlastError
from outlast._say import say
from outlast._types import Reason
from outlast.agent.connecting import connect, refusal, start_agent
from outlast.agent.control import ControlPage, Phase, Stop, Word
from outlast.agent.protocol import (
    Accept,
    ArenaMessage,
    Bye,
    Ending,
    Events,
    EventsKept,
    Filled,
    GiveBack,
    Hello,
    Lend,
    Message,
    NoticeHeard,
    Offer,
    Read,
    Refuse,
    Rejoin,
    Saved,
    Snapshot,
    Taken,
    ToldLogged,
    Welcome,
)
from outlast.agent.refilling import Refilling
from outlast.agent.tee import give_back
from outlast.agent.told import Told
from outlast.agent.wire import Closed, Wire
from outlast.checkpoint.plan import Part
from outlast.snapshot.arena import Arena

_NEW_AGENTS = 5
_NEW_AGENTS_IN_S = 60.0
"""So many agents lost in such a time, and something kills them: then training must know."""
_SAY_WAITING_S = 10.0
_SAY_WAITING_AGAIN_S = 60.0
_LOOK_S = 0.1
"""Between looks at a deadline, which a notice may set at any time."""
_ANSWERS_KEPT = 16
"""Answers that somebody may still ask for; at most two snapshots are under way at a time."""


_OF_THE_TRAINER = (
    Word.BEGUN_NS,
    Word.BATCHES,
    Word.STEPS,
    Word.SAFE_POINT_NS,
    Word.SAFE_POINT_BATCHES,
    Word.PHASE,
)
"""Words of the page that the trainer writes."""
Copy: TypeAlias = Callable[[Filled, Arena | None, Callable[[Taken], None]], None]
"""Begins to copy a batch to where it belongs; gets the arena that the agent lends, if it does, and whom to tell the end."""


class Link:
    """The connection to this node's agent.

    Handshake in the main thread: `offer`, then `accept` until `welcome`; from then on a thread listens, and the
    rest is thread-safe.

    Attributes:
        retake: set when a snapshot must be taken again; whoever does so resets it.
        newest_index: arena of the newest snapshot that became durable; None while none has.
        heard: called, in the thread that listens, with a snapshot that has become durable, with what was logged, and with None
            where a new agent has taken over.
    """

    def __init__(self, hello: Hello) -> None:
        self._hello = hello
        self._wire: Wire | None
        self._own_agent: subprocess.Popen[bytes] | None
        self._wire, self._own_agent = connect()
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._told = Told()
        self._reserved: dict[int, int] = {}
        self._saved: dict[int, Saved] = {}
        self._events: list[dict[str, object]] = []
        self._lost_s: list[float] = []
        self._filled: list[Filled] = []
        self._agents = 1
        self._leaving = False
        self._outcome: Ending = "error"
        self._failure: OutlastError | None = None
        self.retake = False
        self.newest_index: int | None = None
        self.heard: Callable[[Snapshot | ToldLogged | None], None] = lambda _: None
        self.page: ControlPage | None = None
        self.welcome: Welcome | None = None

    def offer(self) -> Offer:
        """Say hello and wait for what the agent found on the store.

        Raises:
            OutlastError: of the kind that the agent refuses with.
        """
        self._send(self._hello)
        try:
            return self._expect_offer()
        except AgentLost:
            if self._own_agent is not None:
                raise
        # The agent of `outlast run` is gone, or serves another script of this launch: this one has its own.
        self._wire, self._own_agent = start_agent()
        self._send(self._hello)
        return self._expect_offer()

    def accept(
        self, batches: tuple[tuple[Part, ...], ...], ring: Arena | None, slot_bytes: int, copy: Copy
    ) -> Offer | None:
        """Accept the offer and have every byte copied out of the ring, batch by batch.

        Args:
            batches: what is wanted.
            ring: slots for them; None where nothing is.
            slot_bytes: size of a slot.
            copy: copies a batch out of the ring, or of the arena that the agent lends.

        Returns:
            None once the attempt is ours; or another offer: an older one if the first turned out to be damaged, a newer one if
            that was saved meanwhile.
        """
        self._send(Accept(batches=batches, slot_bytes=slot_bytes), (ring.fd,) if ring else ())
        lent: Arena | None = None
        try:
            while True:
                message, fds = self._receive()
                match message:
                    case Lend():
                        lent = Arena(fds[0])
                    case Filled():
                        copy(message, lent, self._send)
                    case Offer():
                        return self._offered(message)
                    case Welcome():
                        self.welcome = message
                        self.page = ControlPage(Arena(fds[0]))
                        self.page[Word.BEGUN_NS] = time.monotonic_ns()
                        threading.Thread(target=self._listen, name="outlast-link", daemon=True).start()
                        return None
                    case _:
                        msg = f"expected Welcome, got {type(message).__name__}"
                        raise AgentLost(msg)
        finally:
            if lent is not None:
                lent.close()

    def read(self, request: Read, ring: Arena, copy: Copy) -> None:
        """Have batches of a checkpoint read again, once the attempt is ours.

        Raises:
            StoreUnavailable: the store fails, or what it holds has become damaged.
            AgentLost: no agent can be had any more.
        """
        refilling = Refilling(request, ring, self._changed, self._try_send)
        while True:
            with self._changed:
                self._wait(
                    lambda: refilling.has_news(self._agents, self._filled) or self._failure is not None,
                    lambda: None,
                    "what is saved is read again",
                )
                self.raise_if_lost()
                filled = refilling.next(self._filled)
                if filled is None and refilling.is_done:
                    return
            if filled is not None:
                copy(filled, None, refilling.take)

    def add_arena(self, index: int, arena: Arena) -> None:
        """Hand over an arena; replaces the one of this index, which must be free."""
        with self._lock:
            self._told.arenas[index] = arena
            self._try_send(ArenaMessage(index=index), (arena.fd,))

    def reserve(self, snapshot: Snapshot) -> None:
        """Announce a snapshot whose copy is not complete: its arena is taken. `submit` or `withdraw` follows."""
        with self._lock:
            self._reserved[snapshot.number] = snapshot.index

    def submit(self, snapshot: Snapshot) -> None:
        """Hand over a complete snapshot, and before it the events up to its step (rule 12)."""
        with self._lock:
            self._reserved.pop(snapshot.number, None)
            self._flush_events()
            self._told.unsaved[snapshot.number] = snapshot
            self._try_send(snapshot)

    def is_free(self, index: int) -> bool:
        """Whether no snapshot that is still to be read lies in arena `index`."""
        with self._lock:
            return index not in self._busy()

    def wait_free(self, indices: tuple[int, ...], deadline_s: Callable[[], float | None]) -> int | None:
        """Wait until one of the arenas is free; None once `deadline_s()` (monotonic) has passed, or no agent is left."""

        def free() -> int | None:
            return next((index for index in indices if index not in self._busy()), None)

        with self._changed:
            self._wait(
                lambda: free() is not None or self._failure is not None,
                deadline_s,
                "an earlier save is durable, to have memory for the next",
            )
            return free()

    def withdraw(self, saved: Saved) -> None:
        """Answer a snapshot that was reserved and does not come."""
        with self._changed:
            self._reserved.pop(saved.number, None)
            self._answered(saved)

    @property
    def waiting(self) -> int | None:
        """The newest interval snapshot that is not answered: what the agent may not have begun. None if there is none."""
        with self._lock:
            numbers = [n for n, snapshot in self._told.unsaved.items() if snapshot.reason is Reason.INTERVAL]
            return max(numbers, default=None)

    def give_back(self, number: int, until_ns: int | None) -> None:
        """Ask for the arena of a snapshot that was not begun: a newer state is at hand, and waits until then."""
        with self._lock:
            self._told.given_back = GiveBack(number=number, until_ns=until_ns)
            self._try_send(self._told.given_back)

    def answer(self, number: int) -> Saved | None:
        """What came of a snapshot; None while it is not known."""
        with self._lock:
            return self._saved.get(number)

    def wait_saved(self, number: int, deadline_s: Callable[[], float | None], why: str) -> Saved | None:
        """Wait until snapshot `number` is answered; None once `deadline_s()` (monotonic) has passed."""
        with self._changed:
            self._wait(lambda: number in self._saved or self._failure is not None, deadline_s, why)
            if number not in self._saved and self._failure is not None:
                raise self._failure
            return self._saved.get(number)

    def add_events(self, records: list[dict[str, object]]) -> None:
        """Queue records; they travel with the next snapshot, or within a second."""
        with self._lock:
            self._events += records

    def flush_events(self) -> None:
        """Send what is queued now."""
        with self._lock:
            self._flush_events()

    def notice(self, source: str, grace_s: float) -> None:
        """Tell the agent of a signal that reached this process; a new agent is told what is left of its grace."""
        now = time.monotonic()
        with self._lock:
            self._told.heard(source, grace_s, now)
            self._try_send(NoticeHeard(source=source, grace_s=grace_s))

    def ask(self, message: Message) -> None:
        """Send what the agent answers to `heard`; a new agent does not know of it."""
        with self._lock:
            self._try_send(message)

    def raise_if_lost(self) -> None:
        """Raise what ended the link, if no agent can be had any more."""
        if self._failure is not None:
            raise self._failure

    def close(self, outcome: Ending) -> None:
        """Say goodbye and wait until the agent has made durable what is complete.

        At any exit but SIGKILL the trainer waits, since containers and scheduler steps kill what is left.
        """
        with self._lock:
            self._flush_events()
            self._leaving = True
            self._outcome = outcome
            if self.page is not None:
                self.page[Word.PHASE] = Phase.ENDED
            self._try_send(Bye(outcome=outcome))
        with self._changed:
            self._wait(
                lambda: self._wire is None or self._failure is not None,
                lambda: None,
                "the last save is durable",
            )
        if self._own_agent is not None:
            self._own_agent.wait()
            give_back(os.environ)

    def _wait(self, done: Callable[[], bool], deadline_s: Callable[[], float | None], why: str) -> None:
        """Wait, with the lock, until `done()` or the deadline; whoever watches is told what is waited for."""
        say_at_s = time.monotonic() + _SAY_WAITING_S
        while not done():
            now = time.monotonic()
            deadline = deadline_s()
            if deadline is not None and now >= deadline:
                return
            if now >= say_at_s:
                say(f"waiting until {why}")
                say_at_s = now + _SAY_WAITING_AGAIN_S
            self._changed.wait(_LOOK_S if deadline is None else min(_LOOK_S, deadline - now))

    def _listen(self) -> None:
        while True:
            wire = self._wire
            assert wire is not None
            try:
                message, _ = wire.receive()
            except Closed:
                if not self._reconnect():
                    return
                self.heard(None)
                continue
            if isinstance(message, EventsKept):
                with self._lock:
                    self._told.kept(message.count)
            elif isinstance(message, Filled):
                with self._changed:
                    self._filled.append(message)
                    self._changed.notify_all()
            elif isinstance(message, Saved):
                with self._changed:
                    snapshot = self._told.unsaved.pop(message.number, None)
                    if snapshot is not None and message.checkpoint is not None:
                        self.newest_index = snapshot.index
                    self._answered(message)
                if snapshot is not None and message.checkpoint is not None:
                    self.heard(snapshot)
            elif isinstance(message, ToldLogged):
                self.heard(message)

    def _busy(self) -> set[int]:
        """Arenas in which something lies, or is being copied, that is still to be read."""
        return {snapshot.index for snapshot in self._told.unsaved.values()} | set(self._reserved.values())

    def _answered(self, saved: Saved) -> None:
        self.retake = self.retake or saved.retake
        self._saved[saved.number] = saved
        self._saved.pop(saved.number - _ANSWERS_KEPT, None)
        self._changed.notify_all()

    def _reconnect(self) -> bool:
        """The agent is gone: start a new one and hand it all that was not answered. False to stop listening."""
        with self._changed:
            if self._wire is not None:
                self._wire.close()
            if self._leaving and not self._told.unsaved:
                self._wire = None
                self._changed.notify_all()
                return False
        if self.page is not None and self.page[Word.STOP] == Stop.SUPERSEDED:
            return self._fail(AgentLost("the agent left because a newer attempt has taken over"))
        now = time.monotonic()
        self._lost_s = [at for at in self._lost_s if now - at < _NEW_AGENTS_IN_S] + [now]
        if len(self._lost_s) > _NEW_AGENTS:
            return self._fail(
                AgentLost(f"{_NEW_AGENTS} agents were lost within {_NEW_AGENTS_IN_S:.0f} s; what kills them?")
            )
        say("the agent is gone; starting a new one, training goes on")
        try:
            self._join_new_agent()
        except (OutlastError, Closed, OSError) as error:
            return self._fail(AgentLost(f"no new agent could be started: {error}"))
        return True

    def _join_new_agent(self) -> None:
        welcome = self.welcome
        assert welcome is not None
        wire, process = start_agent()
        rejoin = Rejoin(run_id=welcome.run_id, attempt=welcome.attempt, nonce=welcome.nonce)
        wire.send(msgspec.structs.replace(self._hello, rejoin=rejoin))
        message, fds = wire.receive()
        if not isinstance(message, Welcome):
            raise refusal(message)
        page = ControlPage(Arena(fds[0]))
        with self._changed:
            old = self.page
            if old is not None:
                for word in _OF_THE_TRAINER:
                    page[word] = old[word]
            self.page = page
            self._wire, self._own_agent = wire, process
            self._agents += 1
            for again, with_it in self._told.again(time.monotonic()):
                self._try_send(again, with_it)
            if self._leaving:
                self._try_send(Bye(outcome=self._outcome))
            self._changed.notify_all()

    def _fail(self, error: OutlastError) -> bool:
        give_back(os.environ)
        with self._changed:
            self._failure = error
            self._wire = None
            self._changed.notify_all()
        return False

    def _flush_events(self) -> None:
        if self._events:
            events, self._events = self._events, []
            self._told.sent(events)
            self._try_send(Events(records=tuple(events)))

    def _try_send(self, message: Message, fds: tuple[int, ...] = ()) -> None:
        """Send; where the agent is gone the listening thread finds out, and sends again what matters."""
        if self._wire is None:
            return
        try:
            self._wire.send(message, fds)
        except Closed:
            pass

    def _send(self, message: Message, fds: tuple[int, ...] = ()) -> None:
        assert self._wire is not None
        try:
            self._wire.send(message, fds)
        except Closed:
            pass  # the answer that comes instead says why

    def _receive(self) -> tuple[Message, list[int]]:
        assert self._wire is not None
        try:
            message, fds = self._wire.receive()
        except Closed as error:
            msg = f"the agent ended while this run was being opened ({error}); its last lines are above"
            raise AgentLost(msg) from error
        if isinstance(message, Refuse):
            raise refusal(message)
        return message, fds

    def _expect_offer(self) -> Offer:
        message, _ = self._receive()
        if not isinstance(message, Offer):
            msg = f"expected Offer, got {type(message).__name__}"
            raise AgentLost(msg)
        return self._offered(message)

    def _offered(self, offer: Offer) -> Offer:
        """With resume="never" the place may be another than was asked for: a new agent must go on there."""
        self._hello = msgspec.structs.replace(self._hello, url=offer.url)
        return offer
