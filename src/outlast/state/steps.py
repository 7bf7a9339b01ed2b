"""Whether an optimizer has stepped, and which gradients are pending.

A safe point is the boundary of a batch at which an optimizer has stepped since the last one. Gradients that another
optimizer has gathered by then, or that the loop will add to, belong to the snapshot.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils.weak import TensorWeakRef

from outlast._types import Json
from outlast.state.module import canonical_names
from outlast.state.table import TensorTable
from outlast.state.tree import decode, encode

_HOOKED_STEPS = frozenset(
    code for code in torch.optim.Optimizer.profile_hook_step.__code__.co_consts if hasattr(code, "co_code")
)
"""Code of the wrapper by which torch calls the step hooks. A step that runs without it calls none."""


class StepWatch:
    """Tell at each boundary whether an optimizer stepped since the last mark.

    An optimizer is observed through its step hook. One that has none (another class, a step that was replaced,
    unwrapped or captured in a CUDA graph) is unobservable: every boundary counts as its step, and all its gradients are pending, which is always
    a consistent state. So it is where no optimizer was handed in at all.

    Attributes:
        is_due: asked at each step whether the next boundary may save. Only then a step remembers its gradients, so that
            those that the loop will drop unread need not be saved; without it, all that are there are.
        notes: lines for the user, about optimizers whose steps cannot be observed.
        before_step: called in front of each step that calls its hooks, once `hook_before` was.
    """

    def __init__(self, states: Mapping[str, object]) -> None:
        self.is_due: Callable[[], bool] = lambda: False
        self.before_step: Callable[[], None] | None = None
        self._optimizers = [
            _Watched(name, state, weakref.ref(self)) for name, state in states.items() if _is_optimizer(state)
        ]
        self._modules = {name: state for name, state in states.items() if isinstance(state, nn.Module)}

    @property
    def notes(self) -> list[str]:
        """Lines for the user, as things stand now."""
        if not self._optimizers:
            return ["no optimizer was handed in: every batch counts as a step, and all gradients are saved"]
        return [
            f"{watched.name}: the steps of {type(watched.optimizer).__name__} cannot be observed: every batch counts "
            "as a step, and all its gradients are saved"
            for watched in self._optimizers
            if not watched.observable()
        ]

    def hook_before(self) -> None:
        """Hook in front of the steps of every optimizer that can be."""
        for watched in self._optimizers:
            watched.hook_before()

    def can_hold(self) -> bool:
        """Whether each step of each optimizer, as it would run now, calls `before_step` first.

        Not one that is compiled: it runs without what the hook does.
        """
        return bool(self._optimizers) and all(
            watched.observable() and not watched.compiled for watched in self._optimizers
        )

    def stepped(self) -> bool:
        """Whether a step was, or may have been, taken since the last mark."""
        for watched in self._optimizers:
            if watched.stepped or not watched.observable():
                return True
        return not self._optimizers

    def mark(self) -> None:
        """Begin a new interval."""
        for watched in self._optimizers:
            watched.stepped = False
            watched.after_step = None

    def capture(self, table: TensorTable) -> Json:
        """Encode pending gradients: `{owner: [[index or name of the parameter, tensor], ...]}`."""
        return {
            owner: [[key, encode(p.grad, f"grad/{owner}/{key}", table)] for key, p in pending]
            for owner, pending in self._pending()
        }

    def restore(self, tree: Json, tensors: Mapping[str, torch.Tensor]) -> None:
        """Set saved gradients, which become part of the state; every other parameter gets none."""
        gradients = {
            (owner, key): decode(value, tensors, tensors)
            for owner, saved in tree.items()
            for key, value in saved
        }
        seen: set[int] = set()
        for owner, key, parameter in self._parameters():
            gradient = gradients.get((owner, key))
            if gradient is None and id(parameter) in seen:
                continue
            seen.add(id(parameter))
            parameter.grad = None if gradient is None else gradient.to(parameter.device)
        self.mark()

    def _pending(self) -> Iterator[tuple[str, list[tuple[Any, nn.Parameter]]]]:
        stale = {(watched.name, id(p)) for watched in self._optimizers for p in watched.stale()}
        taken: set[int] = set()
        found: dict[str, list[tuple[Any, nn.Parameter]]] = {}
        for owner, key, parameter in self._parameters():
            if (
                parameter.grad is not None
                and (owner, id(parameter)) not in stale
                and id(parameter) not in taken
            ):
                taken.add(id(parameter))
                found.setdefault(owner, []).append((key, parameter))
        yield from found.items()

    def _parameters(self) -> Iterator[tuple[str, Any, nn.Parameter]]:
        """Go through the parameters of optimizers, then through those that only modules have."""
        owned = set()
        for watched in self._optimizers:
            for index, parameter in enumerate(watched.parameters()):
                owned.add(id(parameter))
                yield watched.name, index, parameter
        for name, module in self._modules.items():
            canonical = canonical_names(module)
            for key, parameter in module.named_parameters():
                if id(parameter) not in owned:
                    owned.add(id(parameter))
                    yield name, canonical(key), parameter


class _Watched:
    """One optimizer, and what its hook saw."""

    def __init__(self, name: str, optimizer: Any, watch: weakref.ref[StepWatch]) -> None:
        self.name = name
        self.optimizer = optimizer
        self.stepped = False
        self.compiled = self.captured = False
        self.after_step: list[tuple[Any, TensorWeakRef, float]] | None = None
        self._watch = watch
        self._sample: tuple[Any, TensorWeakRef] | None = None
        self._drops_gradients: bool | None = None
        self._step: tuple[object, object] = (None, None)
        self._observable = False
        if _has_hooks(optimizer):
            optimizer.register_step_post_hook(self._after_step)

    def hook_before(self) -> None:
        if _has_hooks(self.optimizer):
            self.optimizer.register_step_pre_hook(self._before_step)

    def observable(self) -> bool:
        """Whether the step that would run now calls the hook; looked up again when it was replaced.

        One that a CUDA graph has captured is replayed without it.
        """
        step = (type(self.optimizer).step, vars(self.optimizer).get("step"))
        if step[0] is not self._step[0] or step[1] is not self._step[1]:
            self._step = step
            self._observable = _has_hooks(self.optimizer) and _calls_hooks(
                step[0] if step[1] is None else step[1]
            )
        return self._observable and not self.captured

    def parameters(self) -> Iterator[nn.Parameter]:
        for group in self.optimizer.param_groups:
            yield from group["params"]

    def stale(self) -> Iterator[nn.Parameter]:
        """Go through parameters whose gradient was used by the last step and will be dropped by the loop."""
        if self.after_step is None or not self._drops_gradients or not self.observable():
            return
        for parameter, gradient, version in self.after_step:
            if (
                parameter.grad is not None
                and parameter.grad is gradient()
                and _version(parameter.grad) == version
            ):
                yield parameter

    def _before_step(self, *_: Any) -> None:
        if torch.compiler.is_compiling():
            self.compiled = True  # what is compiled now runs without what follows
            return
        watch = self._watch()
        if watch is not None and watch.before_step is not None:
            watch.before_step()

    def _after_step(self, *_: Any) -> None:
        self.stepped = True
        if torch.compiler.is_compiling():
            return  # a compiled step must not break its graph over what follows
        if torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing():  # type: ignore[no-untyped-call]  # torch has no annotation there
            self.captured = True
        self._watch_drops()
        watch = self._watch()
        if watch is not None and watch.is_due():
            self.after_step = [
                (p, TensorWeakRef(p.grad), _version(p.grad)) for p in self.parameters() if p.grad is not None
            ]
        else:
            self.after_step = None

    def _watch_drops(self) -> None:
        """Learn from one parameter whether its gradient is a new tensor at every step."""
        if self._sample is not None and self._sample[0].grad is not None:
            parameter, last = self._sample
            dropped = parameter.grad is not last()
            self._drops_gradients = dropped and self._drops_gradients is not False
        else:
            parameter = next((p for p in self.parameters() if p.grad is not None), None)
        self._sample = None if parameter is None else (parameter, TensorWeakRef(parameter.grad))


def _is_optimizer(state: object) -> bool:
    if isinstance(state, torch.optim.Optimizer):
        return True
    return callable(getattr(state, "step", None)) and isinstance(getattr(state, "param_groups", None), list)


def _has_hooks(optimizer: object) -> bool:
    return hasattr(optimizer, "_optimizer_step_post_hooks")


def _calls_hooks(step: Any) -> bool:
    """Follow a step through what wraps it (schedulers, compilers, methods) to torch's hook-calling wrapper."""
    layer: Any = step
    for _ in range(_MAX_LAYERS):
        layer = getattr(layer, "__func__", layer)
        if getattr(layer, "__code__", None) in _HOOKED_STEPS:
            return True
        layer = getattr(layer, "__wrapped__", None) or getattr(layer, "_torchdynamo_orig_callable", None)
        if layer is None:
            return False
    return False


_MAX_LAYERS = 32
"""Wrappers around one function; more is a cycle."""


def _version(gradient: torch.Tensor) -> float:
    try:
        return gradient._version  # noqa: SLF001 - torch has no public name for it
    except RuntimeError:  # an inference tensor has none: equal to nothing, so it is never taken for unchanged
        return math.nan
