"""How many arenas there are, by what a snapshot needs and what the machine has left. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from outlast._errors import ConfigError

MOST_ARENAS = 2
"""One is written to the store while the next snapshot is taken; a third would only wait."""
DEFAULT_SHARE = 0.5
"""Of the free memory, where no cap is given: the data pipeline, the page cache and a growing model need the rest."""
_HEADROOM = 1.02
"""An arena is made a little larger than needed, so that a state that grows by a few values fits again."""


@dataclass(frozen=True)
class Plan:
    """What snapshots take.

    Attributes:
        arenas: 1 or 2.
        arena_bytes: size of each.
        free_bytes: what was free, the arenas that there are already counted as free.
    """

    arenas: int
    arena_bytes: int
    free_bytes: int

    def text(self) -> str:
        """For people, on one line."""
        took = f"{self.arenas} x {amount(self.arena_bytes)} of the {amount(self.free_bytes)} that are free"
        waits = (
            "" if self.arenas == MOST_ARENAS else "; with one, a save waits until the one before is durable"
        )
        return f"snapshots take {took}{waits}"


def plan_arenas(state_bytes: int, free_bytes: int, cap_bytes: int | None) -> Plan:
    """Decide how many arenas there are: two if they fit, else one.

    Args:
        state_bytes: of a whole snapshot.
        free_bytes: what can be taken, what arenas hold already included.
        cap_bytes: `host_memory`; None: `DEFAULT_SHARE` of what is free.

    Raises:
        ConfigError: not even one fits; says the numbers.
    """
    allowed = int(free_bytes * DEFAULT_SHARE) if cap_bytes is None else min(cap_bytes, free_bytes)
    arena_bytes = int(state_bytes * _HEADROOM)
    if arena_bytes <= allowed:
        fits = MOST_ARENAS * arena_bytes <= allowed
        return Plan(MOST_ARENAS if fits else 1, arena_bytes, free_bytes)
    needed = f"a snapshot of this state takes {amount(arena_bytes)} of memory"
    if arena_bytes > free_bytes:
        msg = (
            f"{needed}, and {amount(free_bytes)} are free (of the machine, or of its cgroup's limit). Use a machine or a "
            "limit with more memory, fewer loader workers, or hand in less state"
        )
    elif cap_bytes is None:
        msg = (
            f"{needed}, and {amount(free_bytes)} are free, of which snapshots take at most half by themselves. "
            f'Allow more with host_memory="{_whole_gb(arena_bytes)}GB" (one snapshot at a time) or '
            f'"{_whole_gb(MOST_ARENAS * arena_bytes)}GB"'
        )
    else:
        msg = (
            f"{needed}, and host_memory allows {amount(cap_bytes)}. Allow {amount(arena_bytes)} (one snapshot at a "
            f"time) or {amount(MOST_ARENAS * arena_bytes)}"
        )
    raise ConfigError(msg)


def amount(nbytes: int) -> str:
    """Bytes as people read them, in powers of ten: `1.81 GB`."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if nbytes >= size:
            return f"{nbytes / size:.3g} {unit}"
    return f"{nbytes} bytes"


def _whole_gb(nbytes: int) -> int:
    return -(-nbytes // 10**9)
