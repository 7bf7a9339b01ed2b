"""Read a sealed record from a store: what is read wrong once is read again before it is called damaged."""

from __future__ import annotations

from outlast._errors import ObjectDamaged
from outlast.checkpoint.manifest import Record, digest, unseal
from outlast.store.base import Store


def read_record(store: Store, key: str, kind: type[Record], expect: str | None = None) -> tuple[Record, str]:
    """Get and decode a sealed record; return it and the digest of the object's bytes.

    Args:
        store: where it is.
        key: its key.
        kind: the record it must be.
        expect: the digest that a commit names for the object, if one does.

    Raises:
        ObjectMissing: there is no such object.
        ObjectDamaged: two separate reads found it cut, changed or of another kind.
        FormatTooNew: it was written by a newer format version.
    """
    try:
        return _read_once(store, key, kind, expect)
    except ObjectDamaged:
        return _read_once(store, key, kind, expect)


def _read_once(store: Store, key: str, kind: type[Record], expect: str | None) -> tuple[Record, str]:
    data = store.get(key)
    found = digest(data)
    if expect is not None and found != expect:
        msg = (
            f"{key}: the commit names digest {expect}, its bytes have {found}: the object was cut or changed"
        )
        raise ObjectDamaged(msg)
    return unseal(data, kind, key), found
