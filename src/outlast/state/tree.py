"""Nested values <-> JSON that says exactly what they were.

JSON's None, bool, str, list, ints below 2**53 and finite floats stand for themselves; everything else is an object
with one key, which names its type: `{"tuple": [1, 2]}`, `{"float": "7ff0000000000000"}`. Tensors go into a table and
are referred to by name. Nothing is imported or called by a name that was read: every tag is listed here.
"""

from __future__ import annotations

import base64
import reprlib
import struct
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Mapping
from datetime import date, datetime, timedelta
from typing import Any, NoReturn

import msgspec
import torch

from outlast._errors import ObjectDamaged, UnsupportedValue
from outlast._types import Json
from outlast.state import arrays, leaves
from outlast.state.table import TensorTable

MAX_DEPTH = 200
"""Levels of containers; deeper is a mistake (or a cycle), and would reach Python's recursion limit."""
PLAIN_INT_LIMIT = 1 << 53
"""Integers below this are exact in every JSON reader, also one that reads numbers as doubles."""
INLINE_BYTES = 4096
"""Longer byte strings are stored beside the tensors, not in the manifest."""

_FACTORIES: dict[str, Callable[[], object]] = {
    kind.__name__: kind
    for kind in (
        bool,
        int,
        float,
        complex,
        str,
        bytes,
        list,
        tuple,
        dict,
        set,
        frozenset,
        deque,
        Counter,
        OrderedDict,
    )
}


def encode(value: object, path: str, table: TensorTable) -> Json:
    """Turn a nested value into JSON, adding its tensors to `table`.

    Everything comes back with its exact type and bits: ints of any size, nan payloads, -0.0, key types, insertion
    order, strides of dense tensors. Sets come back equal; their order of iteration is Python's own. Lists and dicts
    that are shared in two places become two; tensors that share memory come back as one.

    Args:
        value: None, bool, int, float, complex, str, bytes, bytearray, list, tuple, dict, set, frozenset, OrderedDict,
            Counter, deque, defaultdict of a builtin, range, slice, date, datetime, timedelta, tensors, parameters,
            torch.dtype/device/Size, numpy arrays and scalars. Exact types: a subclass would come back as its base.
        path: where the value stands, e.g. `scheduler`; parts are joined by `/`.
        table: takes the tensors.

    Raises:
        UnsupportedValue: something else is in there; the message names its path and what to do.
    """
    return _Encoder(table).encode(value, path, 0)


def decode(
    tree: Json, tensors: Mapping[str, torch.Tensor], owned: Mapping[str, torch.Tensor] | None = None
) -> Any:
    """Turn JSON back into the value.

    Tensors are copied out of `tensors`, never kept, but for those in `owned`, which become part of the value. They
    come back on the device type they were saved from, where this process has it, else on the CPU.

    Raises:
        ObjectDamaged: the tree holds something that this Outlast does not write.
    """
    try:
        return _Decoder(tensors, owned or {}).decode(tree)
    except RecursionError:
        _damaged(tree)


class _Encoder:
    def __init__(self, table: TensorTable) -> None:
        self.table = table
        self.open: set[int] = set()

    def encode(self, value: Any, path: str, depth: int) -> Json:
        kind = type(value)
        if kind in _PLAIN:
            return _scalar(value, kind)
        writer = _CONTAINERS.get(kind)
        if writer is None:
            return self.leaf(value, path)
        if depth >= MAX_DEPTH:
            _refuse(path[:200] + "...", value, f"is nested deeper than {MAX_DEPTH} levels", "flatten it")
        if id(value) in self.open:
            _refuse(path, value, "contains itself", "break the cycle")
        self.open.add(id(value))
        tree = writer(self, value, path, depth + 1)
        self.open.discard(id(value))
        return tree

    def leaf(self, value: Any, path: str) -> Json:
        if isinstance(value, torch.Tensor):
            return leaves.encode_tensor(value, path, self.table)
        for writer in (leaves.encode_torch, _encode_other):
            tree = writer(value)
            if tree is not None:
                return tree
        if arrays.is_numpy(value):
            return arrays.encode_array(value, path, self.pack)
        if type(value) in (bytes, bytearray):
            return {type(value).__name__: self.pack(value, path)}
        return _refuse(path, value, "is not a plain value", "")

    def pack(self, data: Any, path: str) -> Json:
        """Bytes as base64, or, when long, as `[name]` of a uint8 tensor."""
        if len(data) <= INLINE_BYTES:
            return base64.b64encode(data).decode()
        owned = bytearray(data) if isinstance(data, bytes | bytearray) else data
        return [self.table.add(path, torch.frombuffer(owned, dtype=torch.uint8))]

    def items(self, values: Iterable[Any], path: str, depth: int) -> list[Json]:
        out = []
        for index, value in enumerate(values):
            out.append(self.encode(value, f"{path}/{index}", depth))
        return out

    def pairs(self, value: Mapping[Any, Any], path: str, depth: int) -> list[Json]:
        out = []
        for key, item in value.items():
            if isinstance(key, torch.Tensor):
                _refuse(path, key, "is a key, and found by its identity", "use its name as the key")
            where = f"{path}/{key if type(key) is str else repr(key)[:80]}"
            out.append([self.encode(key, f"{where} (a key)", depth), self.encode(item, where, depth)])
        return out

    def elements(self, values: Iterable[Any], path: str, depth: int) -> list[Json]:
        return sorted(self.items(values, path, depth), key=msgspec.json.encode)

    def default_dict(self, value: defaultdict[Any, Any], path: str, depth: int) -> Json:
        factory = value.default_factory
        name = getattr(factory, "__name__", None)
        if factory is not None and _FACTORIES.get(str(name)) is not factory:
            _refuse(path, value, f"makes its defaults by {factory!r}", "use a builtin type, or a plain dict")
        return {"defaultdict": [name, self.pairs(value, path, depth)]}


_CONTAINERS: dict[type, Callable[[_Encoder, Any, str, int], Json]] = {
    list: lambda e, v, p, d: e.items(v, p, d),
    tuple: lambda e, v, p, d: {"tuple": e.items(v, p, d)},
    dict: lambda e, v, p, d: {"dict": e.pairs(v, p, d)},
    OrderedDict: lambda e, v, p, d: {"OrderedDict": e.pairs(v, p, d)},
    Counter: lambda e, v, p, d: {"Counter": e.pairs(v, p, d)},
    defaultdict: _Encoder.default_dict,
    deque: lambda e, v, p, d: {"deque": [v.maxlen, e.items(v, p, d)]},
    set: lambda e, v, p, d: {"set": e.elements(v, p, d)},
    frozenset: lambda e, v, p, d: {"frozenset": e.elements(v, p, d)},
    slice: lambda e, v, p, d: {"slice": e.items((v.start, v.stop, v.step), p, d)},
}
_PLAIN = frozenset({type(None), bool, int, float, str, complex})


def _scalar(value: Any, kind: type) -> Json:
    if kind is int and abs(value) >= PLAIN_INT_LIMIT:
        return {"int": hex(value)}
    if kind is float and (value == 0.0 or value - value != 0.0):
        return 0.0 if value == 0.0 and struct.pack(">d", value)[0] == 0 else {"float": _hex(value)}
    if kind is complex:
        return {"complex": [_hex(value.real), _hex(value.imag)]}
    if kind is str and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:  # lone surrogates, which JSON in UTF-8 cannot hold
            return {"str": base64.b64encode(value.encode("utf-8", "surrogatepass")).decode()}
    return value


def _encode_other(value: Any) -> Json:
    kind = type(value)
    if kind is range:
        return {"range": [_scalar(part, int) for part in (value.start, value.stop, value.step)]}
    if kind is timedelta:
        return {"timedelta": [value.days, value.seconds, value.microseconds]}
    if kind in (date, datetime):
        text = value.isoformat()
        return {kind.__name__: text} if repr(kind.fromisoformat(text)) == repr(value) else None
    return None


class _Decoder:
    def __init__(self, tensors: Mapping[str, torch.Tensor], owned: Mapping[str, torch.Tensor]) -> None:
        self.tensors = tensors
        self.made: leaves.Made = {(name,): tensor for name, tensor in owned.items()}

    def decode(self, tree: Json) -> Any:
        kind = type(tree)
        if kind in _PLAIN and kind is not complex:
            return tree
        if kind is list:
            return self.items(tree)
        if kind is not dict or len(tree) != 1:
            _damaged(tree)
        ((tag, payload),) = tree.items()
        reader = _READERS.get(tag)
        try:
            if reader is not None:
                return reader(self, payload)
            if tag in leaves.READERS:
                return leaves.READERS[tag](payload, self.tensors, self.made)
        except (TypeError, ValueError, KeyError, RuntimeError, OverflowError, struct.error) as error:
            if isinstance(error, RecursionError):
                raise
            _damaged(tree, error)
        return _damaged(tree)

    def items(self, trees: Json) -> list[Any]:
        _expect(type(trees) is list, trees)
        out = []
        for tree in trees:
            out.append(self.decode(tree))  # noqa: PERF401 - a comprehension is one more frame per level
        return out

    def mapping(self, empty: Any, trees: Json) -> Any:
        for key, value in trees:
            empty[self.decode(key)] = self.decode(value)
        _expect(len(empty) == len(trees), "a key that stands there twice")
        return empty

    def default_dict(self, payload: Json) -> Any:
        name, trees = payload
        return self.mapping(defaultdict(None if name is None else _FACTORIES[name]), trees)

    def deque(self, payload: Json) -> Any:
        maxlen, trees = payload
        _expect(maxlen is None or (type(maxlen) is int and len(trees) <= maxlen), maxlen)
        return deque(self.items(trees), maxlen)

    def unpack(self, payload: Json) -> bytes:
        if isinstance(payload, str):
            return base64.b64decode(payload, validate=True)
        (name,) = payload
        return bytes(self.tensors[name].numpy().data)


_READERS: dict[str, Callable[[_Decoder, Any], Any]] = {
    "int": lambda _, v: int(v, 16),
    "float": lambda _, v: _unhex(v),
    "complex": lambda _, v: complex(*map(_unhex, v)),
    "str": lambda _, v: base64.b64decode(v, validate=True).decode("utf-8", "surrogatepass"),
    "bytes": lambda d, v: d.unpack(v),
    "bytearray": lambda d, v: bytearray(d.unpack(v)),
    "tuple": lambda d, v: tuple(d.items(v)),
    "set": lambda d, v: set(d.items(v)),
    "frozenset": lambda d, v: frozenset(d.items(v)),
    "dict": lambda d, v: d.mapping({}, v),
    "OrderedDict": lambda d, v: d.mapping(OrderedDict(), v),
    "Counter": lambda d, v: d.mapping(Counter(), v),
    "defaultdict": _Decoder.default_dict,
    "deque": _Decoder.deque,
    "slice": lambda d, v: slice(*d.items(v)),
    "range": lambda d, v: range(*d.items(v)),
    "timedelta": lambda _, v: timedelta(*v),
    "date": lambda _, v: date.fromisoformat(v),
    "datetime": lambda _, v: datetime.fromisoformat(v),
    "array": lambda d, v: arrays.decode_array(v, d.unpack),
    "scalar": lambda d, v: arrays.decode_scalar(v, d.unpack),
}


def _hex(value: float) -> str:
    return struct.pack(">d", value).hex()


def _unhex(text: str) -> float:
    value: float = struct.unpack(">d", bytes.fromhex(text))[0]
    return value


def _expect(holds: bool, found: object) -> None:
    if not holds:
        _damaged(found)


def _damaged(found: object, cause: Exception | None = None) -> NoReturn:
    reason = f" ({type(cause).__name__}: {cause})" if cause else ""
    msg = f"the saved tree holds {reprlib.repr(found)}, which this Outlast does not write{reason}"
    raise ObjectDamaged(msg) from cause


def _refuse(path: str, value: object, why: str, advice: str) -> NoReturn:
    raise UnsupportedValue(leaves.refusal(path, value, why, advice))
