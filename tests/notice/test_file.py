"""A file that is there is a notice; one that goes takes it back; what it holds is checked."""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime, timedelta

import pytest

from outlast.notice.file import FileSource
from outlast.notice.watch import Watch

NOW_S = 1000.0
NOW_UTC = datetime(2026, 1, 31, 12, 0, 0, tzinfo=UTC)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "notice"


def poll(source, later_s=0.0):
    return source.poll(NOW_S + later_s, NOW_UTC + timedelta(seconds=later_s))


def only(polled):
    assert len(polled.notices) == 1
    return polled.notices[0]


def test_no_file_is_no_notice(path):
    """Neither a missing file nor a missing folder says anything."""
    assert poll(FileSource(path)).notices == ()
    assert poll(FileSource(path / "deeper")) == poll(FileSource(path))


def test_an_empty_file_is_a_notice_with_the_default_grace(path):
    """`touch` is enough, and says it once."""
    source = FileSource(path, default_grace_s=25.0)
    path.touch()
    notice = only(poll(source))
    assert (notice.deadline_s, notice.deadline_utc) == (NOW_S + 25, NOW_UTC + timedelta(seconds=25))
    assert notice.kind == "machine"
    assert not notice.cancelled
    assert poll(source, 1).notices == ()


@pytest.mark.parametrize(
    ("content", "left_s"),
    [
        ('{"seconds": 120}', 120.0),
        ('{"seconds": 0.5}', 0.5),
        ('{"seconds": -5}', 0.0),
        ('{"deadline_utc": "2026-01-31T12:02:00Z"}', 120.0),
        ('{"deadline_utc": "2026-01-31T13:02:00+01:00"}', 120.0),
        ('{"deadline_utc": "2026-01-31T12:02:00"}', 120.0),
        ('{"deadline_utc": "2026-01-31T11:00:00Z"}', 0.0),
    ],
)
def test_content_names_the_deadline(path, content, left_s):
    """Seconds from now, or a time in UTC; one that has passed leaves nothing."""
    path.write_text(content)
    polled = poll(FileSource(path))
    assert only(polled).deadline_s == pytest.approx(NOW_S + left_s)
    assert polled.warnings == ()


@pytest.mark.parametrize(
    "content",
    [
        b"soon",
        b'{"seconds": "many"}',
        b'{"seconds": 1e400}',
        b'{"seconds": 1e12}',
        b'{"seconds": 3, "deadline_utc": "2026-01-31T12:02:00Z"}',
        b'{"second": 3}',
        b"{}",
        b"[1]",
        b"\xff\xfe\x00",
        b"x" * 100_000,
        b'{"deadline_utc": "1970-01-01T00:00:00Z"}',
        b'{"deadline_utc": 1769860920}',
        b'{"seconds": NaN}',
        b'{"deadline_utc": "0001-01-01T00:00:00+23:59"}',
    ],
)
def test_garbage_is_a_notice_with_a_warning(path, content):
    """What cannot be read is taken as a notice all the same, and said."""
    path.write_bytes(content)
    polled = poll(FileSource(path, default_grace_s=25.0))
    assert only(polled).deadline_s == NOW_S + 25
    assert len(polled.warnings) == 1
    assert str(path) in polled.warnings[0]


def test_removal_cancels_and_a_new_file_is_a_new_notice(path):
    """The notice that goes has the same id, the next one another."""
    source = FileSource(path)
    path.touch()
    first = only(poll(source))
    path.unlink()
    gone = only(poll(source, 5))
    assert (gone.id, gone.cancelled) == (first.id, True)
    assert poll(source, 6).notices == ()
    path.touch()
    second = only(poll(source, 7))
    assert second.id != first.id
    assert not second.cancelled


def test_new_content_moves_the_deadline(path):
    """A hook may correct itself: the same notice, another deadline."""
    watch = Watch([FileSource(path)])
    path.write_text('{"seconds": 120}')
    assert len(watch.poll().new) == 1
    path.write_text('{"seconds": 3600}')
    changes = watch.poll()
    assert len(changes.moved) == 1
    assert changes.new == ()


def test_a_half_written_change_keeps_the_deadline(path):
    """Garbage after a good deadline is said, and does not replace it."""
    source = FileSource(path)
    path.write_text('{"seconds": 120}')
    poll(source)
    path.write_text('{"secon')
    polled = poll(source, 1)
    assert polled.notices == ()
    assert len(polled.warnings) == 1


def test_a_file_that_others_may_write_is_not_believed(path):
    """Anybody could stop the training: no notice, one warning."""
    path.touch()
    path.chmod(0o666)
    source = FileSource(path)
    polled = poll(source)
    assert polled.notices == ()
    assert "everybody" in polled.warnings[0]
    assert poll(source, 1).warnings == ()


def test_a_file_of_another_user_is_not_believed(path, monkeypatch):
    """Owner is root or this user; who this is is the only thing that the test changes."""
    path.touch()
    if os.geteuid() == 0:
        os.chown(path, 12345, 12345)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
    polled = poll(FileSource(path))
    assert polled.notices == ()
    assert "belongs to user" in polled.warnings[0]


@pytest.mark.timeout(30)
def test_what_is_no_file_is_not_believed_and_does_not_block(path):
    """A folder, a pipe that nobody writes and a broken link are no notice."""
    path.mkdir()
    assert poll(FileSource(path)).notices == ()
    pipe = path / "pipe"
    os.mkfifo(pipe)
    began = time.monotonic()
    assert "not a regular file" in poll(FileSource(pipe)).warnings[0]
    assert time.monotonic() - began < 5
    (path / "link").symlink_to(path / "nowhere")
    assert poll(FileSource(path / "link")).notices == ()


def test_a_file_that_is_written_again_with_the_same_content_gives_no_more_time(path):
    """A hook that writes its notice in a loop: the end comes no later for it."""
    source = FileSource(path)
    first = None
    for second in range(4):
        path.write_text('{"seconds": 10}')
        os.utime(path, ns=(second * 10**9, second * 10**9))
        polled = poll(source, second)
        first = first or polled.notices[0]
        assert not second or polled.notices == ()
    assert first.deadline_s == NOW_S + 10


@pytest.mark.parametrize("content", ['{"seconds": 120}', "", "soon"])
def test_an_agent_that_replaces_a_killed_one_reckons_from_when_the_file_was_put_there(path, content):
    """Not from when it sees it: the end comes no later because an agent was killed; one that has passed leaves nothing."""
    path.write_text(content)
    written_utc = datetime.now(UTC)

    def deadline_s(later_s):
        agent = FileSource(path, default_grace_s=120.0)
        return only(agent.poll(NOW_S + later_s, written_utc + timedelta(seconds=later_s))).deadline_s

    first_s = deadline_s(0)
    assert deadline_s(40) == pytest.approx(first_s)
    assert deadline_s(3600) == NOW_S + 3600


def test_a_file_that_was_prepared_long_ago_counts_from_when_it_was_moved_into_place(path):
    """Its content is old, the notice is not."""
    prepared = path.with_name("prepared")
    prepared.write_text('{"seconds": 1000}')
    os.utime(prepared, (0, 0))
    prepared.rename(path)
    left_s = only(FileSource(path).poll(NOW_S, datetime.now(UTC))).deadline_s - NOW_S
    assert 900 < left_s <= 1000


def test_a_file_that_was_prepared_long_ago_counts_from_when_it_was_linked_into_place(path):
    """The link is what is new."""
    prepared = path.with_name("prepared")
    prepared.write_text('{"seconds": 1000}')
    while not path.is_symlink() or path.lstat().st_ctime <= prepared.stat().st_ctime:
        path.unlink(missing_ok=True)
        path.symlink_to(prepared)
    now_utc = datetime.now(UTC)
    linked, direct = (only(FileSource(each).poll(NOW_S, now_utc)) for each in (path, prepared))
    assert linked.deadline_s > direct.deadline_s
