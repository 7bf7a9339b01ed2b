"""Sources are merged; what was cancelled takes only itself back."""

from __future__ import annotations

import dataclasses
import os
import signal

import pytest

from outlast._errors import ConfigError
from outlast.notice.base import Notice, Polled
from outlast.notice.file import FileSource
from outlast.notice.watch import Watch, for_policy, leaves_on_hints, most_urgent, watch_machine
from outlast.policy.restart import MACHINE_SURVIVED_S, StandingNotice


def test_the_notice_that_leaves_the_least_time_stands(tmp_path):
    """Two notices: the earlier deadline counts; once it is taken back, the other one."""
    file = tmp_path / "notice"
    watch = watch_machine({"OUTLAST_NOTICE_FILE": str(file), "OUTLAST_GRACE_S": "50"})
    try:
        assert most_urgent([], 0.0) is None
        file.write_text('{"seconds": 20}')
        os.kill(os.getpid(), signal.SIGUSR2)
        assert len(watch.poll(100.0).new) == 2
        assert most_urgent(watch.notices, 100.0).source == f"file {file}"
        file.unlink()
        assert len(watch.poll(101.0).cancelled) == 1
        assert most_urgent(watch.notices, 101.0).source == "SIGUSR2"
    finally:
        watch.close()


def test_both_signals_and_the_file_are_watched(tmp_path):
    """What the environment offers is watched; the loop can wait on descriptors."""
    watch = watch_machine({})
    try:
        assert len(watch.filenos) == 1
        os.kill(os.getpid(), signal.SIGTERM)
        assert [n.kind for n in watch.poll().new] == ["signal"]
        (notice,) = watch.notices
        assert for_policy(notice, notice.deadline_s - 5) == StandingNotice("signal", False, -5.0)
    finally:
        watch.close()


def test_a_notice_that_the_machine_outlived_is_forgotten(tmp_path):
    """After the relaunch it is neither standing, nor known, nor cancelled when its file goes."""
    file = tmp_path / "notice"
    watch = Watch([FileSource(file, 30.0)])
    file.touch()
    assert watch.poll(100.0)
    over_s = 130.0 + MACHINE_SURVIVED_S
    assert most_urgent(watch.notices, over_s - 1) is not None
    watch.forget_settled(over_s - 1)
    assert len(watch.notices) == 1
    assert most_urgent(watch.notices, over_s) is None
    watch.forget_settled(over_s)
    assert watch.notices == ()
    file.unlink()
    assert not watch.poll(over_s + 1)


def test_ids_of_two_files_do_not_collide(tmp_path):
    """Two sources of one kind: two notices, and one cancelled leaves the other."""
    paths = (tmp_path / "a", tmp_path / "b")
    watch = Watch([FileSource(path, 30.0) for path in paths])
    for path in paths:
        path.touch()
    assert len(watch.poll(0.0).new) == 2
    paths[0].unlink()
    assert len(watch.poll(1.0).cancelled) == 1
    assert str(paths[1]) in most_urgent(watch.notices, 1.0).source


class Said:
    """A source that says what it is told to."""

    def __init__(self):
        self.notices = ()

    def poll(self, now_s, now_utc):
        polled, self.notices = Polled(self.notices), ()
        return polled

    def fileno(self):
        return None

    def close(self):
        pass


def test_hints_are_told_as_reasons_to_leave_where_that_is_asked_for():
    """They alone; one that becomes a machine's notice (far-off maintenance that comes near) is one."""
    source = Said()
    watch = Watch([source], leaves_on_hints=True)
    hint, goes = (Notice(f"{kind}-1", kind, kind, None, None) for kind in ("hint", "machine"))
    source.notices = (hint, goes)
    assert [notice.kind for notice in watch.poll(0.0).new] == ["leave", "machine"]
    source.notices = (hint,)
    assert not watch.poll(1.0)
    source.notices = (dataclasses.replace(hint, kind="machine", deadline_s=100.0),)
    assert [notice.kind for notice in watch.poll(2.0).moved] == ["machine"]


def test_what_hints_lead_to_is_save_or_leave():
    """Anything else is refused, with both."""
    assert not leaves_on_hints({})
    assert not leaves_on_hints({"OUTLAST_ON_REBALANCE": "save"})
    assert leaves_on_hints({"OUTLAST_ON_REBALANCE": "leave"})
    with pytest.raises(ConfigError, match="'go'.*save.*leave"):
        leaves_on_hints({"OUTLAST_ON_REBALANCE": "go"})
