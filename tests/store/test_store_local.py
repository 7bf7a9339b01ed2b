"""What only a folder can show: durable order, kills between any two calls, full disks, permissions, symbolic links."""

from __future__ import annotations

import errno
import os
import resource
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outlast import _errors as errors
from outlast.store import local, open_store
from outlast.store._mounts import is_shared

MIB = 1 << 20


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "root" / "run"


@pytest.fixture(params=["nameless", "named"])
def manner(request, monkeypatch):
    """Once with `O_TMPFILE`, once as on a filesystem that has none."""
    if request.param == "named":
        monkeypatch.setattr(os, "open", without_tmpfile(os.open))
    return request.param


def without_tmpfile(real_open):
    def open_(path, flags, *args, **kwargs):
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        return real_open(path, flags, *args, **kwargs)

    return open_


@pytest.mark.parametrize("call", ["create", "put", "write"])
def test_data_is_synced_before_its_name_and_the_name_before_returning(run, monkeypatch, manner, call):
    """The file is fsynced before it is linked; then its folder; and each new folder's parent, from the top down."""
    steps: list[str] = []
    real_fsync, real_link = os.fsync, os.link

    def fsync(fd):
        mode = os.fstat(fd).st_mode
        steps.append("sync " + (os.readlink(f"/proc/self/fd/{fd}") if stat.S_ISDIR(mode) else "file"))
        real_fsync(fd)

    def link(*args, **kwargs):
        steps.append("link")
        real_link(*args, **kwargs)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "link", link)
    store = open_store(str(run))
    getattr(store, call)("a/b/1.bin", [memoryview(b"x")] if call == "write" else b"x")
    folders = [f"sync {path}" for path in (run.parent.parent, run.parent)]
    assert [step for step in steps if step in folders][:2] == folders
    assert steps[-5:] == [f"sync {run}", f"sync {run / 'a'}", "sync file", "link", f"sync {run / 'a/b'}"]


def test_a_folder_made_by_another_process_is_made_durable_first(run, monkeypatch):
    """Another process may have died between mkdir and fsync; what we put below must not depend on it."""
    (run / "a").mkdir(parents=True)
    synced = []
    real_fsync = os.fsync

    def fsync(fd):
        synced.append(os.readlink(f"/proc/self/fd/{fd}"))
        real_fsync(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    store = open_store(str(run))
    store.put("a/1", b"x")
    assert str(run) in synced
    assert str(run.parent) in synced
    synced.clear()
    store.put("a/2", b"x")
    assert len(synced) == 2, "a folder that this store knows to be durable is synced again"


def test_deleting_is_durable_folder_by_folder(run, monkeypatch):
    """A commit's end is on the disk before the first segment goes, or a power cut could leave it without them."""
    store = open_store(str(run))
    store.put("checkpoints/c/commit.json", b"x")
    store.put("segments/s/1", b"x")
    steps = []
    real_fsync, real_unlink = os.fsync, os.unlink
    monkeypatch.setattr(
        os, "unlink", lambda name, **kw: (steps.append(f"unlink {name}"), real_unlink(name, **kw))
    )
    monkeypatch.setattr(os, "fsync", lambda fd: (steps.append("sync"), real_fsync(fd)))
    store.delete(["checkpoints/c/commit.json", "segments/s/1"])
    assert steps == ["unlink commit.json", "sync", "unlink 1", "sync"]
    assert os.listdir(run) == []


def test_files_are_private(run, manner):
    """Nobody else may read a run's files, whatever the umask."""
    before = os.umask(0)
    try:
        open_store(str(run)).put("a/1", b"x")
    finally:
        os.umask(before)
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (run.parent, run, run / "a", run / "a/1")]
    assert modes == [0o700, 0o700, 0o700, 0o600]


KILLED = """
import os, signal, sys
from outlast.store import local, open_store
folder, kill_at, manner, call, size = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4], int(sys.argv[5])
store = open_store(folder)
if manner == "named":
    os.O_TMPFILE = 0  # opening "." for writing is then EISDIR, which is what kernels without O_TMPFILE say
calls = 0
def counted(real):
    def wrapped(*args, **kwargs):
        global calls
        calls += 1
        if calls == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)
    return wrapped
for name in ("open", "mkdir", "write", "fsync", "link", "unlink", "close"):
    setattr(os, name, counted(getattr(os, name)))
data = bytes(range(256)) * (size // 256)
getattr(store, call)("a/1.bin", [memoryview(data)] if call == "write" else data)
os.write(1, b"returned")
"""


@pytest.mark.parametrize(
    ("manner", "call", "size"),
    [("nameless", "write", 2 * MIB), ("named", "create", 512), ("named", "write", 2 * MIB)],
)
def test_a_kill_before_any_system_call_leaves_the_whole_object_or_none(run, manner, call, size):
    """SIGKILL before the 1st, 2nd, 3rd ... call: never half an object, nor one lost after the return, nor any other."""
    whole = bytes(range(256)) * (size // 256)
    outcomes = []
    returned = False
    for kill_at in range(1, 100):
        folder = run / str(kill_at)
        done = subprocess.run(
            [sys.executable, "-c", KILLED, str(folder), str(kill_at), manner, call, str(size)],
            capture_output=True, check=False,
        )  # fmt: skip
        returned = b"returned" in done.stdout
        assert returned or done.returncode == -signal.SIGKILL, done.stderr.decode()
        store = open_store(str(folder))
        keys = [info.key for info in store.list()]
        assert keys in ([], ["a/1.bin"])
        assert not keys or store.get("a/1.bin") == whole
        assert keys or not returned
        outcomes.append(bool(keys))
        if returned and done.returncode == 0:
            break
    assert returned
    assert outcomes == sorted(outcomes), "the object went away again"
    assert outcomes.index(True) >= 8, "too few calls were killed: does the script still count them?"


@pytest.mark.parametrize("size", [64 << 10, 3 * MIB], ids=["small", "direct"])
@pytest.mark.parametrize("call", ["create", "write"])
def test_a_full_disk_is_said_and_leaves_nothing(run, manner, call, size):
    """A file-size limit stands for the quota. What was saved before stays, and nothing half is left behind."""
    store = open_store(str(run))
    store.put("a/before", b"kept")
    data = os.urandom(size)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, limits[1]))
    try:
        with pytest.raises(errors.StoreFull, match="a/big"):
            getattr(store, call)("a/big", [memoryview(data)] if call == "write" else data)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert os.listdir(run / "a") == ["before"]
    assert store.get("a/before") == b"kept"


@pytest.mark.parametrize(
    ("number", "error"),
    [
        (errno.ENOSPC, errors.StoreFull), (errno.EDQUOT, errors.StoreFull),
        (errno.EACCES, errors.StoreDenied), (errno.EPERM, errors.StoreDenied), (errno.EROFS, errors.StoreDenied),
        (errno.EIO, errors.StoreUnavailable), (errno.ESTALE, errors.StoreUnavailable),
        (errno.ETIMEDOUT, errors.StoreUnavailable), (errno.EMFILE, errors.StoreUnavailable),
    ],
)  # fmt: skip
def test_what_the_system_says_is_told_apart(run, monkeypatch, number, error):
    """Each error number of fsync(2) becomes the store's own error, which names file and cause; nothing is visible."""
    store = open_store(str(run))

    def fails(fd):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch, pytest.raises(error, match=f"a/1: {os.strerror(number)}"):
        patch.setattr(os, "fsync", fails)
        store.write("a/1", [memoryview(b"x")])
    assert store.list() == []
    store.write("a/1", [memoryview(b"x")])


def test_no_permission_is_said(tmp_path):
    """A folder of somebody else, met as an ordinary user: denied when writing, reading, listing and deleting."""
    run = tmp_path / "run"
    store = open_store(str(run))
    store.put("a/1", b"x")
    owner = os.geteuid()
    (run / "a").chmod(0)
    if owner == 0:
        for folder in (tmp_path, run):
            folder.chmod(0o755)
    nobody = 65534
    parents = [parent for parent in tmp_path.parents if parent.stat().st_uid == 0 and owner == 0]
    modes = {parent: stat.S_IMODE(parent.stat().st_mode) for parent in parents}
    for parent, mode in modes.items():
        parent.chmod(mode | 0o011)
    try:
        if owner == 0:
            os.seteuid(nobody)
        for call in (
            lambda: store.put("a/2", b"x"),
            lambda: store.write("a/2", [memoryview(b"x")]),
            lambda: store.get("a/1"),
            lambda: store.list(),
            lambda: store.delete(["a/1"]),
        ):
            with pytest.raises(errors.StoreDenied, match="Permission denied"):
                call()
    finally:
        os.seteuid(owner)
        for parent, mode in modes.items():
            parent.chmod(mode)
        (run / "a").chmod(0o700)
    assert store.get("a/1") == b"x"


@pytest.mark.parametrize("at", ["a", "a/b", "a/b/1"])
def test_a_symbolic_link_inside_the_run_leads_nowhere(run, tmp_path, at):
    """No operation reads, writes or deletes through a planted link, and a listing does not pass it over silently."""
    outside = tmp_path / "outside"
    (outside / "b").mkdir(parents=True)
    for name in ("1", "b/1"):
        (outside / name).write_bytes(b"secret")
    link = run / at
    link.parent.mkdir(parents=True)
    link.symlink_to({"a": outside, "a/b": outside, "a/b/1": outside / "1"}[at])
    store = open_store(str(run))
    with pytest.raises(errors.StoreDenied, match="symbolic link"):
        store.get("a/b/1")
    with pytest.raises(errors.StoreDenied, match=f"{link}: .*symbolic link"):
        store.list()
    if at != "a/b/1":
        for call in (lambda: store.put("a/b/2", b"x"), lambda: store.delete(["a/b/1"])):
            with pytest.raises(errors.StoreDenied, match="symbolic link"):
                call()
    assert sorted(str(path.relative_to(outside)) for path in outside.rglob("*")) == ["1", "b", "b/1"]
    assert (outside / "1").read_bytes() == b"secret"


def test_a_place_that_takes_no_folders_is_named():
    """/proc answers that there is no such file, as for a folder that was deleted: that is no race to be won."""
    with pytest.raises(errors.StoreDenied, match="/proc/outlast cannot be made: /proc takes no new folders"):
        open_store("/proc/outlast/run").create("run.json", b"{}")


def test_the_root_may_be_a_link_and_odd_files_are_no_objects(tmp_path):
    """The run's own folder is the user's choice; FIFOs, hidden files and foreign names inside it are not objects."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to("disk")
    store = open_store(str(tmp_path / "link"))
    store.put("a/1", b"x")
    os.mkfifo(tmp_path / "disk/a/fifo")
    (tmp_path / "disk/a/.tmp-0123").write_bytes(b"leftover")
    (tmp_path / "disk/a/my notes").write_bytes(b"foreign")
    assert [info.key for info in store.list()] == ["a/1"]
    with pytest.raises(errors.ObjectMissing, match="no regular file"):
        store.get("a/fifo")
    store.delete(["a/1"])
    assert (tmp_path / "disk/a/.tmp-0123").exists()


def test_a_filesystem_without_direct_io_gets_ordinary_writes(run, monkeypatch):
    """Whether the refusal comes when switching or when writing, the bytes are the same."""
    import fcntl as real

    data = os.urandom(2 * MIB + 77)
    for name, refuses in (("switch", True), ("write", False)):
        with monkeypatch.context() as patch:
            if refuses:

                def fcntl(fd, command, argument=0, real_fcntl=real.fcntl):
                    if command == real.F_SETFL and argument & os.O_DIRECT:
                        raise OSError(errno.EINVAL, "Invalid argument")
                    return real_fcntl(fd, command, argument)

                patch.setattr("outlast.store._direct.fcntl.fcntl", fcntl)
            else:
                real_write = os.write

                def write(fd, view, real_fcntl=real.fcntl, real_write=real_write):
                    if real_fcntl(fd, real.F_GETFL) & os.O_DIRECT:
                        raise OSError(errno.EINVAL, "Invalid argument")
                    return real_write(fd, view)

                patch.setattr(os, "write", write)
            open_store(str(run)).write(f"a/{name}", [memoryview(data)])
        assert (run / "a" / name).read_bytes() == data


PARTS = st.lists(st.tuples(st.integers(0, 3 * 4096 + 5), st.booleans()), max_size=6)


@settings(max_examples=30, deadline=None)
@given(sizes=PARTS, large=st.integers(0, 6), at=st.integers(0, 6))
def test_any_sequence_of_parts_is_written_exactly(tmp_path_factory, sizes, large, at):
    """Aligned or not, in every mixture with the gathering buffer: the file is the parts, joined."""
    import mmap

    sizes.insert(min(at, len(sizes)), (MIB + large * 1023, True))
    parts = []
    for size, in_arena in sizes:
        data = os.urandom(size)
        if in_arena:
            memory = mmap.mmap(-1, size + 4096)
            view = memoryview(memory)[:size]
            view[:] = data
            parts.append(view)
        else:
            parts.append(memoryview(data))
    store = open_store(str(tmp_path_factory.mktemp("parts")))
    store.write("a/x", parts)
    assert store.get("a/x") == b"".join(parts)


MOUNTS = """\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 22 0:30 / /mnt/nfs rw shared:2 - nfs4 server:/x rw
31 22 0:31 / /mnt/my\\040disk rw - lustre mds rw
32 22 0:32 / /mnt/s3 rw - fuse.s3fs s3fs rw
33 22 0:33 / /mnt/ssh rw - fuse.sshfs host: rw
34 30 254:1 / /mnt/nfs/scratch rw - xfs /dev/vdb rw
35 22 0:35 / /mnt/twice rw - nfs a:/ rw
36 22 254:2 / /mnt/twice rw - ext4 /dev/vdc rw
37 22 0:37 / /var/lib/containers rw - fuse.fuse-overlayfs fuse-overlayfs rw
38 22 0:38 / /mnt/ceph rw - ceph mon:/ rw
39 22 0:39 / /mnt/gpfs rw - gpfs fs0 rw
40 22 0:40 / /mnt/bee rw - beegfs beegfs_nodev rw
"""


@pytest.mark.parametrize(
    ("path", "shared"),
    [
        ("/", False), ("/home/x", False), ("/mnt/nfs", True), ("/mnt/nfs/a/b", True), ("/mnt/nfsx", False),
        ("/mnt/my disk/a", True), ("/mnt/s3/x", True), ("/mnt/ssh/x", True), ("/mnt/nfs/scratch/x", False),
        ("/mnt/twice/x", False), ("/var/lib/containers/x", False), ("/mnt/ceph/x", True), ("/mnt/gpfs/x", True),
        ("/mnt/bee/x", True),
    ],
)  # fmt: skip
def test_a_shared_filesystem_is_not_this_machines_disk(path, shared):
    """Read off the mounts: the deepest one counts, and of two on one folder the later."""
    assert is_shared(Path(path), MOUNTS) is shared


def test_this_machines_own_disk_is_known_before_it_is_used(tmp_path):
    """The answer is there before the run's folder is, and asking makes none."""
    assert open_store(str(tmp_path / "not" / "yet")).is_local_disk is True
    assert os.listdir(tmp_path) == []


def test_a_folder_pruned_under_a_writer_is_made_again(run, monkeypatch):
    """`delete` removes a folder that it emptied; a save into it at that instant must not fail."""
    store = open_store(str(run))
    store.put("a/1", b"x")
    real_fill, pruned = local.write_all, []

    def prune_first(file, parts):
        if not pruned:
            pruned.append(True)
            open_store(str(run)).delete(["a/1"])
            assert not (run / "a").exists()
        real_fill(file, parts)

    monkeypatch.setattr(local, "write_all", prune_first)
    store.put("a/2", b"y")
    assert (run / "a/2").read_bytes() == b"y"


def test_a_run_that_is_gone_is_not_begun_again_in_its_place(run):
    """Deleted, moved or unmounted while it is written to: what went on in an empty folder would hide that."""
    store = open_store(str(run))
    store.put("a/1", b"x")
    run.rename(run.with_name("moved"))
    with pytest.raises(errors.StoreUnavailable, match="is gone: the folder was deleted or moved"):
        store.put("a/2", b"y")
    assert not run.exists()
    run.with_name("moved").rename(run)
    store.put("a/2", b"y")
