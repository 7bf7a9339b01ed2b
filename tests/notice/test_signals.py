"""Real signals become notices, and nothing happens inside the handler."""

from __future__ import annotations

import os
import select
import signal
from datetime import UTC, datetime

import pytest

from outlast.notice.signals import SignalSource

NOW_UTC = datetime(2026, 1, 31, 12, 0, 0, tzinfo=UTC)


@pytest.fixture
def source():
    source = SignalSource((signal.SIGTERM, signal.SIGUSR2), 12.0)
    yield source
    source.close()


def send(number):
    os.kill(os.getpid(), number)


@pytest.mark.parametrize(("number", "kind"), [(signal.SIGTERM, "signal"), (signal.SIGUSR2, "warning")])
def test_a_signal_is_a_notice_with_the_grace_time(source, number, kind):
    """SIGTERM ends this process; SIGUSR2 says that the machine may go."""
    assert source.poll(100.0, NOW_UTC).notices == ()
    send(number)
    (notice,) = source.poll(100.0, NOW_UTC).notices
    assert (notice.source, notice.kind, notice.deadline_s) == (number.name, kind, 112.0)
    assert (notice.deadline_utc - NOW_UTC).total_seconds() == 12.0


def test_the_descriptor_wakes_a_waiting_loop(source):
    """A loop that selects learns of the signal without waiting for its interval."""
    assert select.select([source.fileno()], [], [], 0)[0] == []
    send(signal.SIGUSR2)
    assert select.select([source.fileno()], [], [], 30)[0] == [source.fileno()]


def test_a_repeated_signal_does_not_move_the_deadline(source):
    """The time of power-off was set by the first; after it, a signal is a new notice."""
    send(signal.SIGUSR2)
    (first,) = source.poll(100.0, NOW_UTC).notices
    send(signal.SIGUSR2)
    assert source.poll(105.0, NOW_UTC).notices == ()
    send(signal.SIGUSR2)
    (second,) = source.poll(113.0, NOW_UTC).notices
    assert second.id != first.id
    send(signal.SIGTERM)
    assert len(source.poll(114.0, NOW_UTC).notices) == 1


def test_a_flood_of_signals_does_not_block(source):
    """Whoever sends signals in a loop gets one notice."""
    for _ in range(70_000):
        source._handle(signal.SIGTERM, None)
    assert len(source.poll(100.0, NOW_UTC).notices) == 1


def test_closing_puts_the_handlers_back():
    """A library that is done leaves the process as it was."""
    before = signal.getsignal(signal.SIGTERM)
    source = SignalSource((signal.SIGTERM,), 1.0)
    assert signal.getsignal(signal.SIGTERM) != before
    source.close()
    assert signal.getsignal(signal.SIGTERM) == before
