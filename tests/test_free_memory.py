"""How much memory is free: the machine's and the cgroups' own words, from files as kernels write them."""

from __future__ import annotations

from pathlib import Path

import pytest

from outlast._memory import free_bytes

GIB = 1 << 30
MEMINFO = "MemTotal: 33554432 kB\nMemFree: 1000000 kB\nMemAvailable:   16777216 kB\nCached: 4000000 kB\n"
V2 = "30 23 0:26 {shown} /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = "35 31 0:32 {shown} /sys/fs/cgroup/memory rw,relatime shared:15 - cgroup cgroup rw,memory\n"


@pytest.fixture
def machine(tmp_path: Path):
    """Write a machine's files."""

    def write(mounts: str, membership: str, groups: dict[str, dict[str, object]]) -> Path:
        files = {"proc/meminfo": MEMINFO, "proc/self/mountinfo": mounts, "proc/self/cgroup": membership}
        for folder, contents in groups.items():
            files |= {f"{folder}/{name}": f"{value}\n" for name, value in contents.items()}
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path

    return write


def v2(limit: object, used: int, cached: int) -> dict[str, object]:
    stat = f"anon {used - cached}\nfile {cached}\nshmem 7\ninactive_anon 5\ninactive_file {cached}\nactive_file 0"
    return {"memory.max": limit, "memory.current": used, "memory.stat": stat}


def test_without_a_limit_it_is_what_the_kernel_calls_available(machine):
    """As on a machine of one's own."""
    root = machine(V2.format(shown="/"), "0::/user.slice\n", {"sys/fs/cgroup/user.slice": v2("max", GIB, 0)})
    assert free_bytes(root) == 16 * GIB


def test_a_cgroup_counts_with_its_page_cache_apart(machine):
    """Page cache is given back before anything is killed."""
    group = v2(8 * GIB, 6 * GIB, 3 * GIB)
    root = machine(V2.format(shown="/"), "0::/job/step\n", {"sys/fs/cgroup/job/step": group})
    assert free_bytes(root) == 5 * GIB


def test_the_tightest_of_all_cgroups_above_counts(machine):
    """A job's limit holds for its step, which has none."""
    groups = {
        "sys/fs/cgroup/job": v2(4 * GIB, 3 * GIB, 0),
        "sys/fs/cgroup/job/step": v2("max", GIB, 0),
    }
    assert free_bytes(machine(V2.format(shown="/"), "0::/job/step\n", groups)) == GIB


def test_a_container_that_sees_its_cgroup_as_the_root(machine):
    """Its path is that outside, which is not there inside."""
    root = machine(
        V2.format(shown="/docker/ab"), "0::/docker/ab\n", {"sys/fs/cgroup": v2(2 * GIB, GIB, GIB // 2)}
    )
    assert free_bytes(root) == GIB + GIB // 2
    other = machine(V2.format(shown="/"), "0::/kubepods/pod1\n", {"sys/fs/cgroup": v2(2 * GIB, GIB, 0)})
    assert free_bytes(other) == GIB


def test_version_1_counts_what_is_below_as_its_usage_does(machine):
    """`total_` figures; a limit of almost 2^63 is none."""
    stat = f"cache 0\ninactive_file 1\nactive_file 1\nhierarchical_memory_limit 1\ntotal_inactive_file {GIB}\ntotal_active_file 0"
    group = {"memory.limit_in_bytes": 8 * GIB, "memory.usage_in_bytes": 6 * GIB, "memory.stat": stat}
    unlimited = {**group, "memory.limit_in_bytes": 9223372036854771712}
    membership = "9:cpu:/\n4:memory:/slurm/job_1\n0::/\n"
    root = machine(V1.format(shown="/"), membership, {"sys/fs/cgroup/memory/slurm/job_1": group})
    assert free_bytes(root) == 3 * GIB
    root = machine(V1.format(shown="/"), membership, {"sys/fs/cgroup/memory/slurm/job_1": unlimited})
    assert free_bytes(root) == 16 * GIB


def test_this_machine_has_some():
    """Whatever its cgroups are."""
    assert 0 < free_bytes() < 1 << 60
