"""What a key may look like. Keys also come from listings and manifests, so they are checked before they are used."""

from __future__ import annotations

import re

from outlast._errors import ObjectDamaged

_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+=@-]{0,199}\Z")
"""One part of a key: safe on every filesystem and object store. A leading dot is left to temporary files."""


def is_key(key: str) -> bool:
    """Whether `key` is one or more parts joined by `/`, none of them empty, `.`, `..` or hidden."""
    return all(_PART.match(part) for part in key.split("/"))


def check_key(url: str, key: str) -> str:
    """Return `key` if it is one; a manifest that names another thing is damaged, whatever its digest says."""
    if not is_key(key):
        msg = f"{url}: {key!r} is no key of an Outlast store: expected names joined by '/', each of letters, digits and ._+=@-"
        raise ObjectDamaged(msg)
    return key


def folder_of(url: str, prefix: str) -> str:
    """Return a listing's prefix as a folder that ends in `/`, or `""` for the whole run."""
    folder = prefix.removesuffix("/")
    return check_key(url, folder) + "/" if folder else ""
