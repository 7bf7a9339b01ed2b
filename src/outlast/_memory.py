"""How much memory this process may still take: what the machine has left, and what its cgroups leave. No torch."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

_RECLAIMABLE = re.compile(r"^(?:total_)?(?:in)?active_file (\d+)$", re.MULTILINE)
"""Page cache of files in memory.stat: the kernel gives it back before it kills. Memory files are not part of it."""


def free_bytes(root: Path = Path("/")) -> int:
    """Bytes that can be taken before the kernel kills something.

    The least of what /proc/meminfo calls available, and what each cgroup above this process leaves: its limit less
    what is used, page cache apart. Version 1 and 2 are read; a limit that cannot be read counts as none.

    Args:
        root: where /proc and the cgroups' mounts are found.

    Raises:
        OSError: there is no /proc/meminfo.
    """
    meminfo = (root / "proc/meminfo").read_text()
    match = re.search(r"^MemAvailable: +(\d+) kB$", meminfo, re.MULTILINE)
    free = int(match.group(1)) * 1024 if match else 0
    for folder in _cgroups(root):
        left = _left(folder, "memory.max", "memory.current")
        if left is None:
            left = _left(folder, "memory.limit_in_bytes", "memory.usage_in_bytes")
        if left is not None:
            free = min(free, left)
    return max(free, 0)


def _left(folder: Path, limit: str, usage: str) -> int | None:
    """What a cgroup leaves; None where it sets no limit."""
    try:
        most = (folder / limit).read_text().strip()
        if most == "max":
            return None
        used = int((folder / usage).read_text())
        stat = (folder / "memory.stat").read_text()
    except (OSError, ValueError):
        return None
    # Version 1 lists a cgroup's own figures first, then with `total_` those of all below it, which usage counts.
    found = _RECLAIMABLE.findall(stat[stat.index("total_") :] if "total_" in stat else stat)
    return int(most) - used + sum(int(nbytes) for nbytes in found)


def _cgroups(root: Path) -> Iterator[Path]:
    """Go through the folders of the memory cgroups that hold this process, from its own up."""
    try:
        mounts = (root / "proc/self/mountinfo").read_text().splitlines()
        memberships = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    paths = {}
    for line in memberships:
        _, controllers, path = line.split(":", 2)
        if controllers == "" or "memory" in controllers.split(","):
            paths[controllers] = path
    for line in mounts:
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2)
        shown, at = before.split(" ")[3:5]
        for controllers, path in paths.items():
            if kind == ("cgroup2" if controllers == "" else "cgroup") and (
                controllers == "" or "memory" in options.rsplit(" ", 1)[-1].split(",")
            ):
                yield from _upwards(root / at.lstrip("/"), shown, path)


def _upwards(mount: Path, shown: str, path: str) -> Iterator[Path]:
    """From a process's own folder up to the mount, which shows the cgroup `shown` and what is below it."""
    inside = path.removeprefix(shown.rstrip("/")).strip("/") if path.startswith(shown.rstrip("/")) else ""
    folder = mount / inside
    if not folder.is_dir():
        folder = mount  # a container that sees its own cgroup as the root, and its path from outside
    while True:
        yield folder
        if folder == mount:
            return
        folder = folder.parent
