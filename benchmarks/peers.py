"""The savers that are compared, each as its own documentation says it is used.

A saver's `save` runs in the training thread, between two steps. What it saved counts as durable once every file that it
wrote and the folders that name them are fsynced; on S3 once the server has answered. Where a saver does not fsync
itself, that is done for it, off the training thread: a peer is never held up by being measured.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from watch import Commits
from work import NO_GUARD

THREADS = 2
"""Writing threads that a peer is given where it takes a number: one for each core of the machine of the issue's table."""

State = dict[str, Any]


class Saver(Protocol):
    """One of the savers.

    Attributes:
        guard: held while the weights change.
    """

    guard: AbstractContextManager[Any]

    def point(self) -> None:
        """Called between two steps at which nothing is saved."""

    def is_due(self) -> bool:
        """Whether the end of the next step is a place to save at."""

    def save(self, number: int) -> None:
        """Save now."""

    def durable_at(self) -> float | None:
        """Monotonic seconds at which the last save became durable; None while it is not."""

    def close(self) -> None: ...


class _Told:
    """What the peers share: they say themselves when they are done."""

    guard: AbstractContextManager[Any] = NO_GUARD

    def __init__(self, place: str, state: Callable[[], State]) -> None:
        self.place = place
        self.state = state
        self._durable: float | None = None
        self._failed: BaseException | None = None

    def point(self) -> None:
        pass

    def is_due(self) -> bool:
        return True

    def durable_at(self) -> float | None:
        if self._failed:
            raise self._failed
        return self._durable

    def close(self) -> None:
        pass

    def begin(self) -> None:
        self._durable = None

    def end(self) -> None:
        self._durable = time.monotonic()

    def end_with(self, future: Future[Any], finish: Callable[[], None]) -> None:
        """Durable once the future is done and `finish` has returned."""

        def done(done: Future[Any]) -> None:
            self._failed = done.exception()
            if not self._failed:
                finish()
                self.end()

        future.add_done_callback(done)


class TorchSave(_Told):
    """torch.save to a file, fsync in a thread of its own, rename, fsync of the folder."""

    def save(self, number: int) -> None:
        self.begin()
        path = Path(self.place) / f"{number}.pt"
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_suffix(".tmp")
        torch.save(self.state(), aside)

        def finish() -> None:
            fsync(aside)
            aside.rename(path)
            fsync(path.parent)
            self.end()

        threading.Thread(target=finish).start()


class DcpSave(_Told):
    """torch.distributed.checkpoint.save, whose writer fsyncs its files."""

    def save(self, number: int) -> None:
        self.begin()
        path = f"{self.place}/{number}"
        dcp.save(self.state(), storage_writer=writer(path), no_dist=True)
        fsync_folder(path)
        self.end()


class DcpAsync(_Told):
    """torch.distributed.checkpoint.async_save, its stager kept so that staging memory is used again.

    It stages at once, which is as DCP does it by default; the stager's own thread would need a guard around every
    optimizer step.
    """

    def __init__(self, place: str, state: Callable[[], State]) -> None:
        super().__init__(place, state)
        self._stager = DefaultStager(
            StagingOptions(
                use_pinned_memory=torch.cuda.is_available(),
                use_shared_memory=False,
                use_async_staging=False,
                use_non_blocking_copy=torch.cuda.is_available(),
            )
        )

    def save(self, number: int) -> None:
        self.begin()
        path = f"{self.place}/{number}"
        future = dcp.async_save(
            self.state(), storage_writer=writer(path), async_stager=self._stager, no_dist=True
        )
        self.end_with(future, lambda: fsync_folder(path))

    def close(self) -> None:
        self._stager.close()


class TorchCheckpointing(_Told):
    """torch_checkpointing's asynchronous manager; buffered where the filesystem refuses its direct I/O."""

    def __init__(self, place: str, state: Callable[[], State]) -> None:
        super().__init__(place, state)
        self.is_direct = self._takes_direct()
        self._manager = self._made(direct=self.is_direct)
        self.guard = Again(self._manager.lock)

    def save(self, number: int) -> None:
        self.begin()
        future = self._manager.save(f"{self.place}/{number}", self.state())
        self.end_with(future, lambda: fsync(Path(self.place)))

    def close(self) -> None:
        self._manager.close()

    def _takes_direct(self) -> bool:
        manager = self._made(direct=True)
        try:
            manager.save(f"{self.place}/probe", {"probe": {"x": torch.ones(3)}}).result()
        except Exception:
            return False
        finally:
            try:
                manager.close()
            except Exception as error:
                print(f"torch_checkpointing's direct I/O: {error}".splitlines()[0], flush=True)
        return True

    def _made(self, *, direct: bool) -> Any:
        from torch_checkpointing import CheckpointManager
        from torch_checkpointing.checkpoint_writer import CheckpointWriterConfig
        from torch_checkpointing.config import AsyncCheckpointSaverConfig
        from torch_checkpointing.storage.filesystem import LocalFileSystemStorageConfig

        return CheckpointManager(
            CheckpointManager.Config(
                save=AsyncCheckpointSaverConfig(
                    writer_config=CheckpointWriterConfig(file_write_max_threads=THREADS)
                ),
                storage_config=LocalFileSystemStorageConfig(use_direct_io=direct),
                pre_finalize_callback=fsync_written,
            )
        )


class Outlast:
    """outlast.Run in a loop of one's own, its saves those of an interval, as a training run has them.

    A commit is seen by another process that looks at the store.

    Args:
        folder: where the run's files appear.
        steps: between two saves.
    """

    guard: AbstractContextManager[Any] = NO_GUARD

    def __init__(self, url: str, folder: Path, steps: int, **state: Any) -> None:
        import outlast

        self._commits = Commits(folder)
        self._steps = steps
        self._run = outlast.Run(url, save_every=f"{steps} steps", **state)
        self._saved_step = self._run.step
        self._before = 0

    def point(self) -> None:
        self._run.safe_point()

    def is_due(self) -> bool:
        return self._run.step + 1 - self._saved_step == self._steps

    def save(self, number: int) -> None:  # noqa: ARG002 - the other savers name what they write after it
        self._before = len(self._commits.seen)
        self._run.safe_point()
        self._saved_step = self._run.step

    def durable_at(self) -> float | None:
        if len(self._commits.seen) > self._before + 1:
            msg = f"{self._steps} steps are too few: the next save came before this one was measured"
            raise RuntimeError(msg)
        return self._commits.seen[self._before] if len(self._commits.seen) > self._before else None

    def close(self) -> None:
        self._commits.close()


class Again:
    """A context manager that asks for a new one each time it is entered."""

    def __init__(self, make: Callable[[], AbstractContextManager[Any]]) -> None:
        self._make = make
        self._current: AbstractContextManager[Any] = NO_GUARD

    def __enter__(self) -> None:
        self._current = self._make()
        self._current.__enter__()

    def __exit__(self, *error: object) -> None:
        self._current.__exit__(*error)


def writer(path: str) -> Any:
    """DCP's writer for a folder, or its fsspec writer for an S3 URL, whose endpoint comes from AWS_ENDPOINT_URL."""
    if not path.startswith("s3://"):
        return dcp.FileSystemWriter(path, thread_count=THREADS)
    from torch.distributed.checkpoint._fsspec_filesystem import FsspecWriter

    # There is no file to fsync; asked to, DCP would sync the whole machine.
    return FsspecWriter(path, thread_count=THREADS, sync_files=False)


def through_obstore(place: str, state: Callable[[], State]) -> DcpSave:
    """dcp.save on S3 through the client that Outlast uses, where fsspec takes its own (s3fs) otherwise."""
    from obstore.fsspec import register

    register("s3")
    os.environ["AWS_ALLOW_HTTP"] = "true"
    return DcpSave(place, state)


def fsync_folder(path: str) -> None:
    """Make a folder's names and its own durable; nothing to do on S3."""
    if not path.startswith("s3://"):
        fsync(Path(path))
        fsync(Path(path).parent)


def fsync_written(written: Any) -> None:
    """torch_checkpointing's hook before a checkpoint gets its name; runs in its writing process."""
    for root, _, names in os.walk(written.path):
        for name in names:
            fsync(Path(root) / name)
        fsync(Path(root))


def fsync(path: Path) -> None:
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


LOCAL: dict[str, Callable[..., _Told]] = {
    "torch.save + fsync": TorchSave,
    "torch.distributed.checkpoint.save": DcpSave,
    "dcp.async_save": DcpAsync,
    "torch_checkpointing": TorchCheckpointing,
}
ON_S3: dict[str, Callable[..., _Told]] = {
    "dcp.save to S3 by s3fs": DcpSave,
    "dcp.async_save to S3 by s3fs": DcpAsync,
    "dcp.save to S3 by obstore": through_obstore,
}
OURS = "outlast"
