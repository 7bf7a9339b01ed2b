"""Numbers that a script logs."""

from __future__ import annotations

from typing import Any

import torch

from outlast._errors import ConfigError

_LARGEST_INT = 2**63
"""What JSON readers take for an integer; beyond it a metric is a float."""


def as_number(name: str, value: Any) -> float:
    """Return a metric's value as a plain number.

    Raises:
        ConfigError: it is none; names the metric.
    """
    if isinstance(value, torch.Tensor) and value.numel() == 1:
        value = value.item()
    if isinstance(value, (bool, float)) or (isinstance(value, int) and abs(value) < _LARGEST_INT):
        return value
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        msg = f"run.log({name}={value!r}): expected a number, such as loss.item()"
        raise ConfigError(msg) from None
