"""What a job is going to cost: our policy replayed through windows that may come."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from outlast.policy.availability import count_stays
from outlast.policy.capacity import TICK_S, Bools, Floats, Ints, Job, Market, Pool
from outlast.policy.expected_cost import plan
from outlast.policy.plan_records import Forecast, Question
from outlast.policy.plan_windows import draw, grouped, models, rate_per_hour, scaled, with_hazard
from outlast.policy.prior import known_zones
from outlast.sim.replay import replay
from outlast.sim.traces import Piece, evenly_spaced

WINDOWS = 32
"""Drawn of each zone, or taken from its trace, evenly spaced."""
LONGEST_S = 72 * 3600.0
"""A job with a longer way is replayed over so much of it, and what that part costs is carried over to the whole."""
ROOMY = 10.0
"""A deadline of more times the work changes nothing: spot that is there for a tenth of the time does all of it."""
_GROUPS = 3
"""Models that the policy learns between while it runs; all of the table would be a little better, and take seconds more."""
_SEED = 6
_RARE_PER_HOUR = 1e-6
_BEYOND = 0.35
"""Which part of what lies beyond the zones that are known counts as capacity that is never there or always: with it, 95 % of the costs in
zones that a forecast did not know lie inside its 90 % interval (docs/when-not-to-use-spot.md)."""


@dataclass(frozen=True)
class Zones:
    """Where a job may run.

    Attributes:
        models: hazards of each zone, [zones, 2, RANGES].
        per_hour: interruptions per hour held, of all zones together.
        pieces: their traces, where there are any: replayed as they are.
        nodes: machines that must be there in them.
    """

    models: Floats
    per_hour: float
    pieces: tuple[Piece, ...] = ()
    nodes: int = 1

    def ask(self, question: Question) -> Forecast:
        """Replay our policy; in drawn windows where no trace has room, or where interruptions are to come at another rate."""
        job, times = _part(question)
        ticks = math.ceil(job.deadline_s / TICK_S)
        is_as_seen = math.isclose(question.per_hour, self.per_hour, rel_tol=1e-6)
        windows, zone = self._measured(ticks) if is_as_seen else (None, None)
        if windows is None or zone is None:
            factor = question.per_hour / max(self.per_hour, _RARE_PER_HOUR)
            windows = draw(scaled(self.models, factor), WINDOWS, ticks, _SEED)
            zone = np.repeat(np.arange(len(self.models)), WINDOWS)
        of = "of the traces" if is_as_seen and self.pieces else "drawn"
        return _forecast(windows, zone, job, question, times, f"{len(windows)} windows {of}")

    def _measured(self, ticks: int) -> tuple[Bools | None, Ints | None]:
        """Windows of the traces, and the zone of each; None where none has room."""
        windows, zone_of = [], []
        for zone in sorted({piece.zone for piece in self.pieces}):
            own = [piece.nodes >= self.nodes for piece in self.pieces if piece.zone == zone]
            for piece, first in evenly_spaced([len(part) for part in own], ticks, WINDOWS):
                windows.append(own[piece][first : first + ticks])
                zone_of.append(zone)
        if not windows:
            return None, None
        return np.array(windows), np.unique(zone_of, return_inverse=True)[1]


def known(per_hour: float | None = None) -> Zones:
    """The zones that were measured; with a hazard, machines are lost at that rate, and wait as long as in those."""
    stays = [zone.stays for zone in known_zones(())]
    found = models(stays)
    if per_hour is None:
        return Zones(found, rate_per_hour(stays))
    return Zones(with_hazard(found, per_hour), per_hour)


def traced(pieces: Sequence[Piece], nodes: int) -> Zones:
    """The zones of traces."""
    zones = sorted({piece.zone for piece in pieces})
    stays = [count_stays(piece.nodes >= nodes for piece in pieces if piece.zone == zone) for zone in zones]
    return Zones(models(stays), rate_per_hour(stays), tuple(pieces), nodes)


def _part(question: Question) -> tuple[Job, float]:
    """The part of the job that is replayed, and how often the whole holds it."""
    whole_s = min(question.deadline_s, max(ROOMY * question.work_s, LONGEST_S))
    times = max(1.0, whole_s / LONGEST_S)
    work_s = question.work_s / times
    deadline_s = max(whole_s / times, work_s + question.overhead_s)
    return Job(work_s, deadline_s, question.overhead_s), times


def _forecast(windows: Bools, zone: Ints, job: Job, question: Question, times: float, of: str) -> Forecast:  # noqa: PLR0917
    spot_usd, own_usd = question.usd_per_hour
    market = Market((Pool("spot", "spot", spot_usd), Pool("on-demand", "on-demand", own_usd)))
    policy = plan(job, market, grouped([zone.stays for zone in known_zones(())], _GROUPS))
    done = replay(policy, job, market, np.stack([windows, np.ones_like(windows)], axis=2))
    own_h = _held_h(done.choices == 1, done.finish_s)
    spot_h = _held_h(done.choices == 0, done.finish_s)
    zones = int(zone.max()) + 1
    share = np.array([1 / zones / (zone == z).sum() for z in range(zones)])[zone]
    beyond = _BEYOND / (zones + 1)
    whole_h = (question.work_s + question.overhead_s) / 3600
    inside = (1 - 2 * beyond) * share
    return Forecast(
        np.r_[_grown(done.cost_usd, zone, times), spot_usd * whole_h, own_usd * whole_h],
        np.r_[inside, beyond, beyond],
        float(inside @ spot_h) * times + beyond * whole_h,
        float(inside @ own_h) * times + beyond * whole_h,
        float(inside @ (done.starts - 1.0)) * times + 1,
        float(inside @ done.finish_s) / 3600 * times + 2 * beyond * whole_h,
        of,
    )


def _held_h(held: Bools, finish_s: Floats) -> Floats:
    """Hours in which a pool was held: whole ticks, but for the last one of the job."""
    last = np.maximum(np.ceil(finish_s / TICK_S).astype(int) - 1, 0)
    unused_s = (last + 1) * TICK_S - finish_s
    return np.asarray(
        (held.sum(axis=1) * TICK_S - np.where(held[np.arange(len(held)), last], unused_s, 0.0)) / 3600
    )


def _grown(usd: Floats, zone: Ints, times: float) -> Floats:
    """A zone's mean grows as the job does, what chance adds to it as the root of that."""
    mean = np.array([usd[zone == z].mean() for z in range(int(zone.max()) + 1)])[zone]
    return np.asarray(mean * times + (usd - mean) * math.sqrt(times))
