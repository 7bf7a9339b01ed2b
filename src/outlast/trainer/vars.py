"""`run.vars`: plain values of a script that belong to its state."""

from __future__ import annotations

from typing import Any

from outlast._say import say


class Vars:
    """Attributes that are saved with every checkpoint, and come back.

    A script sets its initial values on every start (`run.vars.best = 0.0`); on a resume, what was saved must win over
    that. So until the loop begins, an assignment to a name that was restored changes nothing.
    """

    def __init__(self) -> None:
        object.__setattr__(self, "_values", {})
        object.__setattr__(self, "_restored", frozenset())
        object.__setattr__(self, "_kept", [])

    def __getattr__(self, name: str) -> Any:
        try:
            return self._values[name]
        except KeyError:
            msg = f"run.vars has no {name!r}; it holds {sorted(self._values) or 'nothing'}"
            raise AttributeError(msg) from None

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self._restored:
            self._kept.append(name)
            return
        self._values[name] = value

    def __delattr__(self, name: str) -> None:
        self._values.pop(name, None)

    def __contains__(self, name: str) -> bool:
        return name in self._values


def values_of(variables: Vars) -> dict[str, Any]:
    """All values by name."""
    values: dict[str, Any] = variables._values  # noqa: SLF001 - a method would take a name from the user
    return values


def restore_vars(variables: Vars, values: dict[str, Any]) -> None:
    """Put saved values in, and guard them until `release_vars`."""
    variables._values.update(values)  # noqa: SLF001 - as above
    object.__setattr__(variables, "_restored", frozenset(values))


def release_vars(variables: Vars) -> None:
    """The loop begins: every assignment counts from now on."""
    kept: list[str] = variables._kept  # noqa: SLF001 - as above
    if kept:
        say(
            "as saved, not as set at the start: "
            + ", ".join(f"run.vars.{name}" for name in dict.fromkeys(kept))
        )
        kept.clear()
    object.__setattr__(variables, "_restored", frozenset())
