"""What a script has printed, on the store: a bounded number of objects, nothing doubled, and what is missing is said."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from outlast._errors import StoreUnavailable
from outlast.checkpoint.output import (
    BLOCK_BYTES,
    FIRST_BLOCKS,
    LAST_BLOCKS,
    OutputLog,
    fold,
    list_output,
    read_output,
)
from saving import UTC, MemoryStore

FOLDER = "output/00001-aaaa-00000"


class Printer:
    """Prints line by line through one agent."""

    def __init__(self, store: MemoryStore) -> None:
        self.log = OutputLog(store, 1, "aaaa", 0)
        self._at = 0

    def say(self, text: str) -> None:
        self.log.add(utc=UTC, stream="stdout", at=self._at, nbytes=len(text), text=text)
        self._at += len(text)

    def put(self, *texts: str) -> None:
        for text in texts:
            self.say(text)
        self.log.flush()


def read(store: MemoryStore) -> tuple[str, list[str]]:
    """All text there is, and what is said of faults."""
    faults: list[str] = []
    return "".join(output.text for output in read_output(store, list_output(store), faults.append)), faults


def test_each_flush_puts_the_block_anew_and_leaves_one_object() -> None:
    """So a line is durable at once, and ten thousand flushes leave no ten thousand objects."""
    store = MemoryStore()
    printer = Printer(store)
    for n in range(50):
        printer.put(f"{n}\n")
        assert list(store.objects) == [f"{FOLDER}/000000-{n:04d}.jsonl"]
    assert read(store) == ("".join(f"{n}\n" for n in range(50)), [])


def test_of_a_long_output_the_first_and_the_last_blocks_stay() -> None:
    """With the place of each text, so that a reader sees how much lies between."""
    store = MemoryStore()
    printer = Printer(store)
    texts = [f"{n:09d}\n" * 400 for n in range(1000)]  # 4 KB each
    for text in texts:
        printer.put(text)
    blocks = [key.block for key in list_output(store)]
    assert len(store.objects) == len(blocks) <= FIRST_BLOCKS + LAST_BLOCKS + 1
    assert blocks[:FIRST_BLOCKS] == list(range(FIRST_BLOCKS))
    assert sum(map(len, store.objects.values())) < (FIRST_BLOCKS + LAST_BLOCKS + 1) * 2 * BLOCK_BYTES
    outputs = list(read_output(store, list_output(store), pytest.fail))
    assert outputs[0].text == texts[0]
    assert [output.text for output in outputs[-100:]] == texts[-100:]
    ends = [output.at + output.nbytes for output in outputs]
    gaps = [after.at - end for end, after in zip(ends, outputs[1:], strict=False) if after.at != end]
    assert gaps == [4000 * (len(texts) - len(outputs))]


def test_a_put_that_failed_but_arrived_is_not_doubled() -> None:
    """A time-out says nothing about what the store has done."""
    fails = True

    class Late(MemoryStore):
        def put(self, key: str, data: bytes) -> None:
            super().put(key, data)
            if fails:
                msg = "timed out"
                raise StoreUnavailable(msg)

    store = Late()
    printer = Printer(store)
    with pytest.raises(StoreUnavailable):
        printer.put("one\n")
    fails = False
    printer.put("two\n")
    assert read(store) == ("one\ntwo\n", [])
    assert len(store.objects) == 1


def test_an_object_that_cannot_be_deleted_now_is_deleted_later() -> None:
    """And is no reason to put nothing."""
    denied = True

    class Full(MemoryStore):
        def delete(self, keys: list[str]) -> None:
            if denied:
                msg = "not now"
                raise StoreUnavailable(msg)
            super().delete(keys)

    store = Full()
    printer = Printer(store)
    for n in range(3):
        printer.put(f"{n}\n")
    assert (len(store.objects), read(store)[0]) == (3, "0\n1\n2\n")
    denied = False
    printer.put("3\n")
    assert (len(store.objects), read(store)[0]) == (1, "0\n1\n2\n3\n")


def test_an_agent_that_takes_over_writes_on_behind_what_is_there() -> None:
    """In the next block, and the places of its texts go on."""
    store = MemoryStore()
    Printer(store).put("before\n")
    Printer(store).put("after\n")
    outputs = list(read_output(store, list_output(store), pytest.fail))
    assert [(output.at, output.text) for output in outputs] == [(0, "before\n"), (7, "after\n")]


class Killed(BaseException):
    """Nothing catches it, as nothing catches SIGKILL."""


@pytest.mark.parametrize("arrives", [False, True])
def test_killed_at_any_operation_nothing_durable_is_lost_and_nothing_doubled(arrives: bool) -> None:
    """Before it or right after; then an agent takes over and prints on."""

    class Dying(MemoryStore):
        left: float = 0

        def put(self, key: str, data: bytes) -> None:
            self._step(lambda: super(Dying, self).put(key, data))

        def delete(self, keys: list[str]) -> None:
            self._step(lambda: super(Dying, self).delete(list(keys)))

        def _step(self, act: Callable[[], None]) -> None:
            self.left -= 1
            if self.left < 0:
                if arrives:
                    act()
                raise Killed
            act()

    texts = [f"{n}" * (BLOCK_BYTES // 3) + "\n" for n in range(8)]
    lives = 0
    for lives in range(100):
        store = Dying()
        store.left = lives
        printer, durable = Printer(store), 0
        try:
            for text in texts:
                printer.put(text)
                durable += 1
        except Killed:
            pass
        store.left = math.inf
        Printer(store).put("after\n")
        found, faults = read(store)
        assert faults == []
        assert found in {"".join(texts[:n]) + "after\n" for n in range(durable, len(texts) + 1)}
        if durable == len(texts):
            break
    assert lives > len(texts), "every operation was killed once, and then none"


def test_a_damaged_block_is_said_and_the_others_are_read() -> None:
    """A flipped bit of a script's last words is no reason to show none."""
    store = MemoryStore()
    for text in ("one\n", "two\n", "three\n"):
        Printer(store).put(text)
    key = f"{FOLDER}/000001-0000.jsonl"
    store.objects[key] = store.objects[key].replace(b"two", b"too")
    text, faults = read(store)
    assert text == "one\nthree\n"
    assert len(faults) == 1
    assert key in faults[0]


def test_a_block_whose_last_version_is_damaged_is_read_in_the_one_before() -> None:
    """Which a kill between a put and the delete has left."""
    store = MemoryStore()
    printer = Printer(store)
    printer.put("one\n")
    before = dict(store.objects)
    printer.put("two\n")
    (key,) = store.objects
    store.objects[key] = store.objects[key][:-20]
    store.objects.update(before)
    text, faults = read(store)
    assert text == "one\n"
    assert key in faults[0]


def test_a_block_that_is_put_anew_while_it_is_read_is_read_in_its_new_version() -> None:
    """The run goes on: what was listed may be gone when it is asked for."""
    store = MemoryStore()
    printer = Printer(store)
    printer.put("one\n")
    listed = list_output(store)
    printer.put("two\n")
    assert "".join(output.text for output in read_output(store, listed, pytest.fail)) == "one\ntwo\n"


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("a\nb\n", "a\nb\n"),
        ("1%\r2%\r3%\nend\n1\r2\n", "\r3%\nend\n2\n"),
        ("\r1%\r2%", "\r2%"),
        ("1%\r2%\r", "\r2%\r"),
        ("dos\r\nlines\r\n", "dos\nlines\n"),
    ],
)
def test_what_was_written_over_in_its_line_is_folded(text: str, left: str) -> None:
    """But where the text begins or ends in the midst of a line, whatever belongs to it may come yet."""
    assert fold(text) == left


def test_folding_takes_as_long_as_the_text() -> None:
    """A megabyte without an end of line, and one of carriage returns: neither is looked at again and again."""
    assert fold("x" * 1_000_000) == "x" * 1_000_000
    assert fold("x\r" * 500_000 + "y") == "\ry"
