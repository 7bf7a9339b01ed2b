"""Stores: one run's immutable objects, on a disk or in a bucket."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from outlast._errors import ConfigError
from outlast.store.base import ObjectInfo, Store

__all__ = ["ObjectInfo", "Store", "open_store"]

SUPPORTED = "a path, file:///absolute/path, s3://bucket/prefix, gs://bucket/prefix or az://container/prefix"

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://|(?:s3|gs|az|file):")


def open_store(url: str) -> Store:
    """Return the store of the run at `url`.

    Opening touches nothing: no folder is made and no request is sent, so a wrong bucket shows at the first use.

    Raises:
        ConfigError: the URL is of no kind that is supported.
    """
    scheme = _SCHEME.match(url)
    if scheme is None:
        return _local(url, url)
    kind = (scheme.group(1) or "").lower()
    if kind == "file":
        parts = urlsplit(url)
        if parts.netloc not in ("", "localhost") or parts.query or parts.fragment:
            msg = f"{url!r} names no file of this machine: expected {SUPPORTED}"
            raise ConfigError(msg)
        return _local(unquote(parts.path), url)
    if kind in ("s3", "gs", "az"):
        from outlast.store.remote import RemoteStore

        return RemoteStore(url)
    msg = f"{scheme.group()} is no store that Outlast can write to: expected {SUPPORTED}"
    raise ConfigError(msg)


def _local(path: str, url: str) -> Store:
    from outlast.store.local import LocalStore

    if not path.strip("/") or "\0" in path:
        msg = f"{url!r} names no folder for a run: expected {SUPPORTED}"
        raise ConfigError(msg)
    return LocalStore(Path(path))
