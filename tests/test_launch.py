"""What the tests themselves rest on."""

from __future__ import annotations

import launch


def test_a_pid_that_has_come_round_is_another_process(tmp_path, monkeypatch):
    """In a long run they do: the exit code of the one before says nothing about this one's."""
    starts_and_ends = [{"pid": 7}, {"pid": 7, "code": 0}, {"pid": 7}, {"pid": 7, "code": 1}]
    answers = iter(starts_and_ends)
    zygote = launch.Zygote()
    monkeypatch.setattr(zygote, "_answer", lambda: next(answers))
    idle = tmp_path / "idle.py"
    idle.write_text("")
    try:
        for code in (0, 1):
            pid = zygote.start([str(idle)], {}, tmp_path, tmp_path / "log")
            assert zygote.wait(pid) == code
    finally:
        zygote.close()
