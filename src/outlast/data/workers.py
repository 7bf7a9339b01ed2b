"""Keep loader workers alive until their trainer is done with them, and not one moment longer.

A SIGTERM to the process group (what schedulers, container runtimes and terminals send) reaches the workers too. They
would die first, and the trainer would fail on its loader instead of saving (KempnerForge 177).
"""

from __future__ import annotations

import ctypes
import functools
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch.utils.data import dataloader as torch_loader
from torch.utils.data import get_worker_info
from torch.utils.data._utils import worker as torch_worker

from outlast.data.fetch import Fetch

_TORCHDATA = "torchdata.stateful_dataloader.stateful_dataloader"
_NOTICES = (signal.SIGTERM, signal.SIGUSR2)
_PR_SET_PDEATHSIG = 1
"""prctl(2): the signal that a process gets when the thread that started it ends."""


class ShieldedInit:
    """A `worker_init_fn` that shields the worker, then calls the user's.

    SIGTERM, SIGUSR2 and SIGINT are for the trainer: the worker ignores them, unless the trainer itself sent the SIGTERM,
    as torch does to end a worker that hangs. It is killed when the trainer dies. The first two are blocked, not ignored, so
    that their sender can be told; programs that a worker starts inherit that, and are ended by SIGKILL, not by SIGTERM.
    """

    def __init__(self, user: Callable[[int], Any] | None, context: Any = None) -> None:
        self.user = user
        self._child = (context or multiprocessing).get_start_method() != "forkserver"
        self._trainer = os.getpid()
        self._in_main_thread = threading.current_thread() is threading.main_thread()

    def __call__(self, worker_id: int) -> None:
        """Shield this worker, then do what the user wants done in it."""
        signal.pthread_sigmask(signal.SIG_BLOCK, _NOTICES)
        signal.signal(signal.SIGINT, _leave_to_the_trainer)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT,))
        threading.Thread(
            target=_await_trainer, args=(self._trainer,), daemon=True, name="outlast-shield"
        ).start()
        if self._child:
            self._die_with_the_trainer()
        _show_users_dataset()
        if self.user is not None:
            self.user(worker_id)

    def _die_with_the_trainer(self) -> None:
        if self._in_main_thread:
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != self._trainer:
            # It was gone before: torch would wait for the end of whoever took over as parent.
            os._exit(1)


@contextmanager
def notices_held() -> Iterator[None]:
    """Hold signals back while workers are started: they inherit that, and are shielded from the first moment.

    A signal that comes meanwhile reaches the trainer at the end.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (*_NOTICES, signal.SIGINT))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def shield(loader: Any) -> None:
    """Shield the workers of a loader that starts them itself, where it is torch's or takes a `worker_init_fn` as torch's does."""
    if getattr(loader, "num_workers", 0) and hasattr(loader, "worker_init_fn"):
        user = loader.worker_init_fn
        loader.worker_init_fn = ShieldedInit(
            user.user if isinstance(user, ShieldedInit) else user,
            getattr(loader, "multiprocessing_context", None),
        )


def shield_every_loader() -> None:
    """Shield, from now on, the workers of all loaders of this process that are torch's, or torchdata's if that is imported.

    An evaluation's loader is not handed to `run.batches`. Its workers would die of a signal to the group, and with them the
    evaluation, the trainer and all since the last save.
    """
    _shield_workers_of(torch_loader._MultiProcessingDataLoaderIter)  # noqa: SLF001  # torch has no hook there
    of_torchdata = getattr(sys.modules.get(_TORCHDATA), "_StatefulMultiProcessingDataLoaderIter", None)
    if of_torchdata is not None:
        _shield_workers_of(of_torchdata)


def _shield_workers_of(iterator: Any) -> None:
    """Shield the workers that iterators of a class start for a loader, their first argument; once, however often it is said."""
    made = iterator.__init__
    if hasattr(made, "__wrapped__"):
        return

    @functools.wraps(made)
    def shielded(self: Any, loader: Any, *args: Any) -> None:
        user = loader.worker_init_fn
        shield(loader)
        try:
            with notices_held():
                made(self, loader, *args)
        finally:
            loader.worker_init_fn = user

    iterator.__init__ = shielded


def _leave_to_the_trainer(*_: object) -> None:
    """Do nothing. Unlike SIG_IGN, this is not inherited by programs that the worker starts."""


def _await_trainer(trainer: int) -> None:
    while True:
        info = signal.sigwaitinfo(_NOTICES)
        if info.si_signo == signal.SIGTERM and info.si_pid == trainer:
            os._exit(0)  # as torch's own handler does


def _show_users_dataset() -> None:
    """Let `get_worker_info().dataset` be the user's data set, not what fetches its batches."""
    info = get_worker_info()
    if info is not None and isinstance(info.dataset, Fetch):
        torch_worker._worker_info = type(info)(  # noqa: SLF001  # torch has no setter
            id=info.id, num_workers=info.num_workers, seed=info.seed, dataset=info.dataset.dataset
        )
