"""numpy arrays and scalars as leaves of a tree."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from outlast._errors import UnsupportedValue
from outlast._types import Json
from outlast.state.leaves import refusal

_DTYPE = re.compile(r"[<>|=][biufcSUVmM]\d+(\[\w+\])?")
"""dtype strings that say all there is: a kind, a size, a byte order and a time unit; no objects, no fields."""


def is_numpy(value: object) -> bool:
    """Whether it is numpy's array or scalar, or a subclass."""
    return isinstance(value, np.ndarray | np.generic)


def encode_array(value: Any, path: str, pack: Callable[[Any, str], Json]) -> Json:
    """Encode `{"array": [dtype, shape, column-major, bytes]}` or `{"scalar": [dtype, bytes]}`.

    Raises:
        UnsupportedValue: a subclass, objects or fields.
    """
    if isinstance(value, np.ndarray) and type(value) is not np.ndarray:
        raise UnsupportedValue(refusal(path, value, "is a subclass of numpy's array", "store np.array(x)"))
    text = value.dtype.str
    if not _DTYPE.fullmatch(text) or np.dtype(text) != value.dtype or value.dtype.metadata:
        advice = "store its fields as plain arrays"
        raise UnsupportedValue(refusal(path, value, f"has dtype {value.dtype}", advice))
    if isinstance(value, np.generic):
        return {"scalar": [text, pack(value.tobytes(), path)]}
    columns = value.flags.f_contiguous and not value.flags.c_contiguous
    return {"array": [text, list(value.shape), columns, pack(_bytes_of(value.T if columns else value), path)]}


def decode_array(payload: Json, unpack: Callable[[Json], bytes]) -> np.ndarray[Any, Any]:
    """Return a new, writable array."""
    text, shape, columns, data = payload
    flat = np.frombuffer(bytearray(unpack(data)), dtype=_checked(text))
    return flat.reshape(shape[::-1]).T if columns else flat.reshape(shape)


def decode_scalar(payload: Json, unpack: Callable[[Json], bytes]) -> Any:
    """Return a numpy scalar."""
    text, data = payload
    return np.frombuffer(unpack(data), dtype=_checked(text)).reshape(())[()]


def _bytes_of(array: np.ndarray[Any, Any]) -> Any:
    """Row-major bytes; over the array's own memory where that is possible (torch warns of what is read-only)."""
    if not array.nbytes or not array.flags.writeable:
        return array.tobytes()
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _checked(text: str) -> np.dtype[Any]:
    if not _DTYPE.fullmatch(text):
        msg = f"{text} is not a plain dtype"
        raise ValueError(msg)
    return np.dtype(text)
