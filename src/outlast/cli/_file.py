"""A file that a command makes: whole under its name, or not there."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from outlast._errors import ConfigError, StoreFull

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS)
"""What filesystems without hard links answer."""


@contextmanager
def new_file(path: Path, *, overwrite: bool) -> Iterator[BinaryIO]:
    """Open a file that appears as `path`, durable, when the block ends without an error; else nothing is left.

    It is written beside under a hidden name; only a SIGKILL leaves that one (`.NAME.....part`).

    Raises:
        ConfigError: something is there and `overwrite` is False, or the folder takes no file.
        StoreFull: no space is left.
    """
    if not overwrite and os.path.lexists(path):
        raise ConfigError(_taken(path))
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with beside.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        _name(beside, path, overwrite=overwrite)
    except FileExistsError as error:
        raise ConfigError(_taken(path)) from error
    except OSError as error:
        if error.errno in _FULL:
            msg = f"{path}: {error.strerror}: free space there, or choose another place. Nothing was left there."
            raise StoreFull(msg) from error
        msg = f"{path} cannot be written: {error.strerror}. Choose a file in a folder that exists and takes files."
        raise ConfigError(msg) from error
    finally:
        try:
            beside.unlink(missing_ok=True)
        except OSError:
            pass  # the folder that took no file is what the error is about


def _name(beside: Path, path: Path, *, overwrite: bool) -> None:
    """Give the whole file its name, durably; only `overwrite` replaces what came there meanwhile."""
    if overwrite:
        beside.replace(path)
    else:
        try:
            path.hardlink_to(beside)
        except OSError as error:
            if error.errno not in _NO_LINKS or os.path.lexists(path):
                raise
            beside.rename(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _taken(path: Path) -> str:
    return f"{path} exists already. Choose another name, or replace it with --overwrite."
