"""The way out: a checkpoint as a file that plain torch loads.

This is the one place that writes torch's own format, a pickle, since that is what leaving means. Outlast reads none.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import torch

from outlast._errors import ConfigError
from outlast._types import Json
from outlast.checkpoint.boxes import DTYPE_BYTES
from outlast.checkpoint.catalog import Loaded, tensors
from outlast.checkpoint.export import Exported, chosen_states
from outlast.checkpoint.manifest import TensorRecord
from outlast.checkpoint.reader import read_wants
from outlast.state.bits import DTYPES
from outlast.state.module import UNINITIALIZED
from outlast.state.tree import decode
from outlast.store.base import Store

FACTS = "outlast"
"""Key of what belongs to the run and to no state: run_id, checkpoint, step, epoch, vars."""
WINDOW_BYTES = 256 << 20
"""Tensors that are read together, so that small ones need few requests."""
_ALIGN_BYTES = 64
_REFUSED = frozenset({"frozenset", "deque", "defaultdict", "slice", "range", "timedelta", "date", "datetime"})
"""Tags of types that `torch.load(weights_only=True)` refuses; so it does NumPy's, `array` and `scalar`."""
_NUMPY = frozenset({"array", "scalar"})
_PAIRS = frozenset({"dict", "OrderedDict", "Counter"})


@dataclass(frozen=True)
class _Want:
    tensor: str
    offset: tuple[int, ...]
    shape: tuple[int, ...]
    at: int
    nbytes: int


def write_torch(
    store: Store, loaded: Loaded, checkpoint: str, states: Sequence[str], file: BinaryIO
) -> Exported:
    """Write `{"model": model.state_dict(), "optimizer": optimizer.state_dict(), ..., "outlast": {...}}`.

    All tensors are on the CPU, with the dtypes and bits that they were saved with; `torch.load(weights_only=True)`
    takes the file. Each byte is compared with its digest. Memory: the states once, and `WINDOW_BYTES`.

    Args:
        store: the run's store.
        loaded: the checkpoint's records.
        checkpoint: its name.
        states: those to write; all if empty.
        file: where to; empty, and worth nothing after an error.

    Raises:
        ConfigError: there is no such state, or one holds a value that `weights_only=True` refuses.
        ObjectMissing, ObjectDamaged: bytes that two separate reads found missing or wrong.
        StoreUnavailable, StoreDenied: the store cannot be read.
    """
    first = loaded.manifests[0]
    tree = first.tree["states"]
    names = chosen_states(tree, states)
    values = {name: _on_cpu(_value(tree[name])) for name in names}
    for name, value in values.items():
        refused = _refused(value, name)
        if refused is not None:
            others = " ".join(f"--state {other}" for other in names if other != name)
            msg = f"{refused}, which torch.load(weights_only=True) refuses. " + (
                f"Export the others: {others}" if others else "Nothing was written."
            )
            raise ConfigError(msg)
    variables = _on_cpu(first.tree.get("vars", {"dict": []}))
    refused = _refused(variables, "run.vars")
    records = {record.name: record for record in tensors(loaded)}
    out: dict[str, Any] = {
        FACTS: {
            "run_id": first.run_id,
            "checkpoint": checkpoint,
            "step": first.step,
            "epoch": first.position.get("epoch"),
        }
    }
    if refused is None:
        out[FACTS]["vars"] = decode(variables, _Windows(store, records, _tensor_names(variables)))
    for name, value in values.items():
        out[name] = decode(value, _Windows(store, records, _tensor_names(value)))
    torch.save(out, file)
    used = {tensor for value in values.values() for tensor in _tensor_names(value)}
    return Exported(names, len(used), (f"{refused}",) if refused else ())


class _Windows(Mapping[str, torch.Tensor]):
    """Tensors by name, read from the store some at a time in the order in which they are asked for."""

    def __init__(self, store: Store, records: Mapping[str, TensorRecord], order: Iterator[str]) -> None:
        self._store = store
        self._records = records
        self._order = list(dict.fromkeys(order))
        self._place = {name: at for at, name in enumerate(self._order)}
        self._held: dict[str, torch.Tensor] = {}

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self._held:
            self._held = self._read(self._place[name])
        return self._held[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._order)

    def __len__(self) -> int:
        return len(self._order)

    def _read(self, first: int) -> dict[str, torch.Tensor]:
        """Read the tensor at `first` and as many after it as fit a window."""
        wants: list[_Want] = []
        size = 0
        for name in self._order[first:]:
            record = self._records[name]
            nbytes = math.prod(record.shape) * DTYPE_BYTES[record.dtype]
            if wants and size + nbytes > WINDOW_BYTES:
                break
            wants.append(_Want(name, (0,) * len(record.shape), record.shape, size, nbytes))
            size += -(-nbytes // _ALIGN_BYTES) * _ALIGN_BYTES
        window = torch.empty(size, dtype=torch.uint8)
        read_wants(self._store, [self._records[want.tensor] for want in wants], wants, window.numpy().data)
        return {
            want.tensor: window[want.at : want.at + want.nbytes]
            .view(DTYPES[self._records[want.tensor].dtype])
            .reshape(want.shape)
            for want in wants
        }


def _value(state: Json) -> Json:
    """The tree of what the state's `state_dict()` returns."""
    if state["kind"] != "module":
        return state["state"]
    return {"OrderedDict": [[key, value] for key, value in state["entries"] if value != UNINITIALIZED]}


def _on_cpu(tree: Json) -> Json:
    """The same tree, every tensor on the CPU: whoever loads the file decides where they go."""
    if isinstance(tree, list):
        return [_on_cpu(item) for item in tree]
    if isinstance(tree, dict):
        if "tensor" in tree:
            name, is_parameter, requires_grad, _, strides = tree["tensor"]
            return {"tensor": [name, is_parameter, requires_grad, "cpu", strides]}
        return {tag: _on_cpu(payload) for tag, payload in tree.items()}
    return tree


def _tensor_names(tree: Json) -> Iterator[str]:
    """Names of the tensors in a tree, in the order in which they stand there."""
    if isinstance(tree, list):
        for item in tree:
            yield from _tensor_names(item)
    elif isinstance(tree, dict):
        for tag, payload in tree.items():
            if tag == "tensor":
                yield payload[0]
            elif tag in ("bytes", "bytearray"):
                yield from payload if isinstance(payload, list) else ()
            else:
                yield from _tensor_names(payload)


def _refused(tree: Json, path: str) -> str | None:
    """Name the first value that plain torch would not load, if there is one."""
    if isinstance(tree, list):
        for index, item in enumerate(tree):
            found = _refused(item, f"{path}/{index}")
            if found is not None:
                return found
    elif isinstance(tree, dict):
        ((tag, payload),) = tree.items()
        if tag in _REFUSED or tag in _NUMPY:
            return f"{path} is a {'NumPy ' if tag in _NUMPY else ''}{tag}"
        if tag in _PAIRS:
            for key, item in payload:
                found = _refused(key, f"{path}/(a key)") or _refused(item, f"{path}/{key}")
                if found is not None:
                    return found
        elif tag in ("list", "tuple", "set"):
            return _refused(payload, path)
    return None
