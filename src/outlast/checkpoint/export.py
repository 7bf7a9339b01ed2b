"""The way out: a module's tensors as a safetensors file, which needs no Outlast to be read.

The format (https://huggingface.co/docs/safetensors): eight bytes little-endian with the length of a JSON header, the
header with dtype, shape and place of each tensor, then the bytes of all tensors one after the other, without gaps.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import BinaryIO

import msgspec

from outlast._errors import ConfigError
from outlast._types import Json
from outlast.checkpoint.boxes import DTYPE_BYTES, Dims, split_range
from outlast.checkpoint.catalog import Loaded, tensors
from outlast.checkpoint.manifest import CHUNK_BYTES, Slice, TensorRecord
from outlast.checkpoint.reader import read_wants
from outlast.store.base import Store

WINDOW_BYTES = 4 * CHUNK_BYTES
"""Memory that an export takes: what is read at once before it is written."""
_HEADER_ALIGN_BYTES = 8
"""The header is padded with spaces to this, as the safetensors package does, so that tensors lie aligned."""
_DTYPES = {
    "bool": "BOOL",
    "uint8": "U8",
    "int8": "I8",
    "uint16": "U16",
    "int16": "I16",
    "uint32": "U32",
    "int32": "I32",
    "uint64": "U64",
    "int64": "I64",
    "float16": "F16",
    "bfloat16": "BF16",
    "float32": "F32",
    "float64": "F64",
    "complex64": "C64",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "float8_e4m3fnuz": "F8_E4M3FNUZ",
    "float8_e5m2fnuz": "F8_E5M2FNUZ",
}
"""What the format calls the dtypes that both sides know."""


class Exported(msgspec.Struct, frozen=True):
    """What a file holds."""

    states: tuple[str, ...]
    tensors: int
    left_out: tuple[str, ...]
    """A line for each entry that the format cannot hold."""


@dataclass(frozen=True)
class _Want:
    """A box of a tensor and where in the window it goes."""

    tensor: str
    offset: Dims
    shape: Dims
    at: int
    nbytes: int


def write_safetensors(store: Store, loaded: Loaded, state: str | None, file: BinaryIO) -> Exported:
    """Write the tensors of one module under the names that its `state_dict()` gives them.

    Each byte is compared with its digest on the way, and no more than `WINDOW_BYTES` are held. A weight that has two
    names is written under both, so that `load_state_dict` finds each. Buffers that are not persistent are no part of
    a `state_dict`, and are left out.

    Args:
        store: the run's store.
        loaded: the checkpoint's records.
        state: the name of the module among the states; None where there is only one.
        file: where to; empty, and worth nothing after an error.

    Raises:
        ConfigError: there is no such module, several to choose from, or a dtype that the format does not know.
        ObjectMissing, ObjectDamaged: bytes that two separate reads found missing or wrong.
        StoreUnavailable, StoreDenied: the store cannot be read.
    """
    tree = loaded.manifests[0].tree["states"]
    name = _module(tree, state)
    by_name = {record.name: record for record in tensors(loaded)}
    rows: list[tuple[str, TensorRecord]] = []
    left_out: list[str] = []
    for entry, value in tree[name]["entries"]:
        if isinstance(value, dict) and "tensor" in value:
            rows.append((entry, by_name[value["tensor"][0]]))
        else:
            left_out.append(f"{entry} is no dense tensor")
    rows.sort(
        key=lambda row: -DTYPE_BYTES[row[1].dtype]
    )  # the widest first: each lies at a multiple of its width
    file.write(_header(rows, _facts(loaded)))
    _stream(store, [record for _, record in rows], file)
    return Exported((name,), len(rows), tuple(left_out))


def chosen_states(tree: Mapping[str, Json], wanted: Sequence[str]) -> tuple[str, ...]:
    """Return the states to export: those wanted, or all; a ConfigError names what there is."""
    unknown = [name for name in wanted if name not in tree]
    if unknown:
        msg = f"the checkpoint holds no state {', '.join(unknown)}; it holds {', '.join(tree) or 'none'}"
        raise ConfigError(msg)
    return tuple(dict.fromkeys(wanted)) or tuple(tree)


def _module(tree: Mapping[str, Json], wanted: str | None) -> str:
    modules = [name for name, state in tree.items() if state["kind"] == "module"]
    if wanted is not None:
        (name,) = chosen_states(tree, [wanted])
        if name not in modules:
            msg = (
                f"{name} is no module, and safetensors holds only the tensors of one ({', '.join(modules) or 'none here'}). "
                "Export it to a .pt file."
            )
            raise ConfigError(msg)
        return name
    if len(modules) != 1:
        found = f"{len(modules)} modules ({', '.join(modules)})" if modules else "no module"
        advice = "Choose one with --state" if modules else "Export to a .pt file"
        msg = f"the checkpoint holds {found}, and a safetensors file is one model's. {advice}."
        raise ConfigError(msg)
    return modules[0]


def _facts(loaded: Loaded) -> dict[str, str]:
    """What the header says beside the tensors; `format` is what other readers look for."""
    head = loaded.commit
    return {"format": "pt", "step": str(head.step), "outlast_run_id": head.run_id}


def _header(rows: Iterable[tuple[str, TensorRecord]], facts: dict[str, str]) -> bytes:
    described: dict[str, Json] = {"__metadata__": facts}
    stop = 0
    for name, record in rows:
        dtype = _DTYPES.get(record.dtype)
        if dtype is None:
            msg = f"{name} has dtype {record.dtype}, which safetensors does not know. Export to a .pt file."
            raise ConfigError(msg)
        start, stop = stop, stop + _nbytes(record)
        described[name] = {"dtype": dtype, "shape": list(record.shape), "data_offsets": [start, stop]}
    text = json.dumps(described, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _HEADER_ALIGN_BYTES)
    return len(text).to_bytes(8, "little") + text


def _nbytes(record: TensorRecord) -> int:
    return math.prod(record.shape) * DTYPE_BYTES[record.dtype]


def _stream(store: Store, records: Sequence[TensorRecord], file: BinaryIO) -> None:
    """Write the bytes of the tensors, each in row-major order, one after the other."""
    flat = [_flattened(record) for record in records]
    window = memoryview(bytearray(min(WINDOW_BYTES, sum(map(_nbytes, flat)))))
    for wants in _windows(flat, len(window)):
        needed = {want.tensor for want in wants}
        read_wants(store, [record for record in flat if record.name in needed], wants, window)
        file.write(window[: wants[-1].at + wants[-1].nbytes])


def _flattened(record: TensorRecord) -> TensorRecord:
    """A tensor that was saved in one piece, as a row of bytes: its chunks are read in place, whatever its shape."""
    whole = len(record.slices) == 1 and record.slices[0].shape == record.shape
    if not whole:
        return record
    shape = (_nbytes(record),)
    return TensorRecord(
        record.name, "uint8", shape, record.device, (Slice((0,), shape, record.slices[0].chunks),)
    )


def _windows(records: Iterable[TensorRecord], size_bytes: int) -> Iterator[list[_Want]]:
    """Cut the tensors into windows, large ones between two chunks, so that a chunk is read once."""
    wants: list[_Want] = []
    at = 0
    for record in records:
        width, total = DTYPE_BYTES[record.dtype], _nbytes(record)
        start = 0
        while start < total:
            room = size_bytes - at
            stop = total if total - start <= room else start + room // CHUNK_BYTES * CHUNK_BYTES
            if stop == start:
                yield wants
                wants, at = [], 0
                continue
            for offset, shape in split_range(record.shape, start // width, stop // width):
                nbytes = math.prod(shape) * width
                wants.append(_Want(record.name, offset, shape, at, nbytes))
                at += nbytes
            start = stop
    if wants:
        yield wants
