"""One file per framework; what it needs is imported when it is used."""

from __future__ import annotations

from outlast.trainer.tracker import Row, TrackedRun, Tracker

__all__ = ["Row", "TrackedRun", "Tracker"]
