"""A plain value as a state."""

from __future__ import annotations

from typing import Any


class Value:
    """Hold one value that is saved and comes back: `Run("name", best=outlast.Value(0.0))`.

    What has no `state_dict()` of its own, such as a number, a list or a tensor, is a state inside this box, because a
    resume must be able to put the saved one in its place.

    Attributes:
        value: the value now; assign to it.
    """

    def __init__(self, value: Any) -> None:
        self.value = value

    def state_dict(self) -> dict[str, Any]:
        """Return what is saved."""
        return {"value": self.value}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what was saved."""
        self.value = state_dict["value"]

    def __repr__(self) -> str:
        return f"Value({self.value!r})"
