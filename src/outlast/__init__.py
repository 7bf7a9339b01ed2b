"""Outlast: GPU training that survives spot and preemptible machines.

Names are imported when they are first used, so that the agent, which imports no torch, starts at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from outlast._errors import (
        AgentLost,
        ConfigError,
        DataChanged,
        FormatTooNew,
        NotAStore,
        NothingToResume,
        NotYetAvailable,
        NoWholeCheckpoint,
        ObjectDamaged,
        ObjectMissing,
        OutlastError,
        Preempted,
        RunAlive,
        StateMismatch,
        StoreDenied,
        StoreError,
        StoreFull,
        StoreUnavailable,
        Superseded,
        UnsupportedValue,
    )
    from outlast._types import Guarantee
    from outlast.data.loader import DataLoader
    from outlast.run import Run
    from outlast.state.value import Value

_HOMES = {
    "DataLoader": "outlast.data.loader",
    "Guarantee": "outlast._types",
    "Run": "outlast.run",
    "Value": "outlast.state.value",
}

__all__ = [
    "AgentLost",
    "ConfigError",
    "DataChanged",
    "DataLoader",
    "FormatTooNew",
    "Guarantee",
    "NoWholeCheckpoint",
    "NotAStore",
    "NotYetAvailable",
    "NothingToResume",
    "ObjectDamaged",
    "ObjectMissing",
    "OutlastError",
    "Preempted",
    "Run",
    "RunAlive",
    "StateMismatch",
    "StoreDenied",
    "StoreError",
    "StoreFull",
    "StoreUnavailable",
    "Superseded",
    "UnsupportedValue",
    "Value",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        msg = f"module 'outlast' has no attribute {name!r}"
        raise AttributeError(msg)
    import importlib

    return getattr(importlib.import_module(_HOMES.get(name, "outlast._errors")), name)


def __dir__() -> list[str]:
    return __all__
