"""Whether a folder is on a disk of this machine, which goes away with it, or on a filesystem that others share."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

_SHARED = frozenset({
    "nfs", "nfs4", "lustre", "gpfs", "beegfs", "beegfs_nodev", "ceph", "cifs", "smb3", "smbfs", "afs", "9p", "virtiofs",
    "gfs2", "ocfs2", "orangefs", "pvfs2", "panfs", "wekafs", "glusterfs", "fuse",
})  # fmt: skip
"""Filesystem types of proc_pid_mountinfo(5) that outlive the machine, beside those that begin with `fuse.`."""

_OWN_FUSE = frozenset({"fuse.fuse-overlayfs", "fuse.ntfs-3g", "fuse.exfat"})
"""Disks and container layers of this machine that a FUSE process serves."""


def is_shared(path: Path, mountinfo: str | None = None) -> bool:
    """Whether `path`, or its nearest parent that exists, is on a shared filesystem.

    `mountinfo` is the text of /proc/self/mountinfo; where that cannot be read, the answer is False.
    """
    if mountinfo is None:
        mountinfo = ""
        with contextlib.suppress(OSError):
            mountinfo = Path("/proc/self/mountinfo").read_text(errors="surrogateescape")
    kind = _filesystem(os.path.realpath(path), mountinfo)
    return kind in _SHARED or (kind.startswith("fuse.") and kind not in _OWN_FUSE)


def _filesystem(path: str, mountinfo: str) -> str:
    """The type of the deepest mount above `path`; of two on one folder, the later one hides the earlier."""
    best, kind = -1, ""
    for line in mountinfo.splitlines():
        before, separator, after = line.partition(" - ")
        fields = before.split(" ")
        if not separator or len(fields) < 5:
            continue
        mount = re.sub(r"\\([0-7]{3})", lambda code: chr(int(code.group(1), 8)), fields[4]).rstrip("/")
        if (path == mount or path.startswith(mount + "/")) and len(mount) >= best:
            best, kind = len(mount), after.split(" ")[0]
    return kind
