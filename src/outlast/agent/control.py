"""The control page: one shared page of 64-bit words through which trainer and agent see each other at no cost.

Each word has one writer. An aligned 8-byte store is atomic on every machine that torch runs on, so a reader sees
the old or the new value, never a mixture. Times are CLOCK_MONOTONIC nanoseconds, which all processes share.
"""

from __future__ import annotations

from enum import IntEnum

from outlast.snapshot.arena import Arena


class Word(IntEnum):
    """Index of each word."""

    STOP = 0
    """Agent: 0 go on, 1 leave at the next safe point, 2 a newer attempt has taken over."""
    DEADLINE_NS = 1
    """Agent: when this machine goes away; 0 unknown."""
    INTERRUPTS = 2
    """Agent: Ctrl-C reached it."""
    WHOLE = 3
    """Agent: 1 while the next snapshot must hold every byte: a save in full is due, or the last one is not known."""
    STORE_LOST_NS = 4
    """Agent: since when the store fails; 0 while it does not."""
    EMERGENCIES = 5
    """Agent: how many emergency saves it asked for that the trainer does not leave after."""
    INTERVAL_NS = 6
    """Agent: seconds of training between two saves, in nanoseconds; 0 while it does not know better than the trainer."""
    BEGUN_NS = 7
    """Trainer: when its first agent claimed this attempt; 0 until it knows."""
    BATCHES = 8
    """Trainer: batches asked for in this attempt."""
    STEPS = 9
    """Trainer: run.step at the last safe point."""
    SAFE_POINT_NS = 10
    """Trainer: when the last safe point was."""
    SAFE_POINT_BATCHES = 11
    """Trainer: BATCHES at the last safe point."""
    PHASE = 12
    """Trainer: a `Phase`."""
    PAUSE_NS = 13
    """Trainer: how long it stood still for the last interval save."""
    PAUSED_NS = 14
    """Trainer: the same of all saves of this attempt together."""
    TAKING = 15
    """Trainer: 1 while it takes a snapshot, which the agent will have soon; 0 else."""


class Stop(IntEnum):
    """Values of `Word.STOP`."""

    NO = 0
    LEAVE = 1
    SUPERSEDED = 2


class Phase(IntEnum):
    """Where the trainer is."""

    STARTING = 0
    TRAINING = 1
    TAIL = 2
    ENDED = 3


class ControlPage:
    """A mapped control page.

    Attributes:
        words: the same words by plain index, for the one place where a microsecond counts.
    """

    def __init__(self, arena: Arena) -> None:
        self._arena = arena
        arena.share_with_forks()  # a page is little, and a forked process may ask run.should_stop()
        self.words = arena.view.cast("Q")

    @classmethod
    def create(cls) -> ControlPage:
        """Create a zeroed page."""
        return cls(Arena.create(1))

    @property
    def fd(self) -> int:
        """Descriptor to pass on."""
        return self._arena.fd

    def __getitem__(self, word: Word) -> int:
        return self.words[word]

    def __setitem__(self, word: Word, value: int) -> None:
        self.words[word] = value

    def close(self) -> None:
        """Unmap and close."""
        self.words.release()
        self._arena.close()
