"""The three generators a data set may draw from without saying so: torch's, numpy's legacy one and python's.

Reading one through its public interface costs up to 25 us (numpy), more than a small batch costs to fetch. So the raw
states of numpy's and python's are read where they lie in memory. Where that is, is found on generators made for the
purpose, and tried out, when this file is imported; where that fails, the public interface is used.
"""

# ruff: noqa: D102, NPY002  # `Generator` documents the methods; numpy's legacy generator is what this is about

from __future__ import annotations

import _random
import ctypes
import random
import struct
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch

Saved: TypeAlias = tuple[Any, Any, Any]
"""States of torch's, numpy's and python's generator: opaque, and good in the same process only."""

TORCH, NUMPY, PYTHON = 1, 2, 4
"""Bits of the masks that say which generators moved; `seeds.triples` holds their seeds in this order."""

_WORDS = 624
_KEY_BYTES = 4 * _WORDS
"""MT19937 holds 624 words of 32 bits and the number of the next (Matsumoto and Nishimura, ACM TOMACS 8, 1998)."""

_INT = struct.Struct("=i")
_GAUSS = struct.Struct("=iid")
"""numpy's and torch's normal numbers come in pairs; the second is kept: a flag, padding, the number."""


class Generator(Protocol):
    """One of the three, whichever way it is reached.

    `save` copies its state, `restore` brings it back, `moved` tells whether it is another one by now, and `seed` starts the
    stream of a 32-bit seed, without a half of a pair of normal numbers left over.
    """

    def save(self) -> Any: ...
    def restore(self, saved: Any) -> Any: ...
    def moved(self, saved: Any) -> bool: ...
    def seed(self, seed: int) -> Any: ...


class TorchGenerator:
    """torch's default CPU generator; its own interface is quick."""

    def __init__(self) -> None:
        generator = torch.default_generator
        self.save = generator.get_state
        self.restore = generator.set_state
        self.seed = generator.manual_seed
        self._size = self.save().numel()
        self._differ = ctypes.CDLL(None).memcmp
        self._differ.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]

    def moved(self, saved: torch.Tensor) -> bool:
        now = self.save()
        return bool(self._differ(saved.data_ptr(), now.data_ptr(), self._size))


class NumpyInPlace:
    """numpy's legacy generator (`np.random.rand`, ...), read where it lies."""

    def __init__(self, gauss_offset: int, state: np.random.RandomState) -> None:
        self.bits = state._bit_generator  # noqa: SLF001  # the public get_bit_generator costs a dozen times as much
        self._key = _memory(self.bits.ctypes.state_address, _KEY_BYTES + _INT.size)
        self._gauss = _memory(id(state) + gauss_offset, _GAUSS.size)
        self.seed = state.seed

    def save(self) -> tuple[bytes, bytes]:
        return bytes(self._key), bytes(self._gauss)

    def restore(self, saved: tuple[bytes, bytes]) -> None:
        self._key[:], self._gauss[:] = saved

    def moved(self, saved: tuple[bytes, bytes]) -> bool:
        return bytes(self._key) != saved[0] or bytes(self._gauss) != saved[1]


class NumpySlowly:
    """numpy's legacy generator through its public interface, whatever bit generator it runs on."""

    def save(self) -> Any:
        return np.random.get_state(legacy=False)

    def restore(self, saved: Any) -> None:
        np.random.set_state(saved)

    def moved(self, saved: Any) -> bool:
        return _text(self.save()) != _text(saved)

    def seed(self, seed: int) -> None:
        bits = _bits_of(_global_numpy())
        if isinstance(bits, np.random.MT19937):
            np.random.seed(seed)
        else:
            np.random.set_state({**type(bits)(seed).state, "has_gauss": 0, "gauss": 0.0})


class PythonInPlace:
    """python's generator (`random.random`, ...), read where it lies; seeded as numpy's is, which costs a third."""

    def __init__(self, words_offset: int, instance: Any) -> None:
        self._instance = instance
        self._state = _memory(id(instance) + words_offset - _INT.size, _INT.size + _KEY_BYTES)
        self._scratch = np.random.RandomState(0)
        self._words = _memory(_bits_of(self._scratch).ctypes.state_address, _KEY_BYTES)
        self._end = _INT.pack(_WORDS)

    def save(self) -> tuple[bytes, float | None]:
        return bytes(self._state), self._instance.gauss_next

    def restore(self, saved: tuple[bytes, float | None]) -> None:
        self._state[:], self._instance.gauss_next = saved

    def moved(self, saved: tuple[bytes, float | None]) -> bool:
        return bytes(self._state) != saved[0] or self._instance.gauss_next is not saved[1]

    def seed(self, seed: int) -> None:
        self._scratch.seed(seed)
        self._state[: _INT.size] = self._end
        self._state[_INT.size :] = self._words
        self._instance.gauss_next = None


class PythonSlowly:
    """python's generator through its public interface; gives the same streams as `PythonInPlace`."""

    def save(self) -> Any:
        return random.getstate()

    def restore(self, saved: Any) -> None:
        random.setstate(saved)

    def moved(self, saved: Any) -> bool:
        return bool(random.getstate() != saved)

    def seed(self, seed: int) -> None:
        words = np.random.RandomState(seed).get_state(legacy=False)["state"]["key"]
        random.setstate((3, (*words.tolist(), _WORDS), None))


class Generators:
    """All three of this process."""

    def __init__(self) -> None:
        self._torch = TorchGenerator()
        self._numpy = _numpy()
        self._python = _python()
        self.all: tuple[Generator, Generator, Generator] = (self._torch, self._numpy, self._python)

    def save(self) -> Saved:
        """Copy the three states (about 1 us)."""
        if isinstance(self._numpy, NumpyInPlace) and _global_numpy()._bit_generator is not self._numpy.bits:  # noqa: SLF001  # see NumpyInPlace
            # `np.random.set_bit_generator` was called.
            self._numpy = NumpySlowly()
            self.all = (self._torch, self._numpy, self._python)
        return self._torch.save(), self._numpy.save(), self._python.save()

    def restore(self, saved: Saved) -> None:
        """Bring the three states back (about 1 us)."""
        self._torch.restore(saved[0])
        self._numpy.restore(saved[1])
        self._python.restore(saved[2])

    def moved(self, saved: Saved, known: int = 0) -> int:
        """Return the mask of the generators whose state is no longer the saved one (about 1.5 us).

        Those in the mask `known` are not looked at.
        """
        return (
            (TORCH if not known & TORCH and self._torch.moved(saved[0]) else 0)
            | (NUMPY if not known & NUMPY and self._numpy.moved(saved[1]) else 0)
            | (PYTHON if not known & PYTHON and self._python.moved(saved[2]) else 0)
        )

    def seed(self, seeds: list[int]) -> None:
        """Start all three streams, from three seeds of 32 bits."""
        for generator, seed in zip(self.all, seeds, strict=True):
            generator.seed(seed)


class Stream:
    """Random numbers of one purpose's own, drawn from the three generators while nobody else does.

    `with stream:` puts its states in place of the trainer's; afterwards the trainer's are back.
    """

    def __init__(self, generators: Generators, seeds: list[int]) -> None:
        self._generators = generators
        trainers = generators.save()
        generators.seed(seeds)
        self._own = generators.save()
        generators.restore(trainers)
        self._trainers: Saved | None = None

    def __enter__(self) -> None:
        self._trainers = self._generators.save()
        self._generators.restore(self._own)

    def __exit__(self, *_: object) -> None:
        self._own = self._generators.save()
        if self._trainers is not None:
            self._generators.restore(self._trainers)
            self._trainers = None

    def state(self) -> dict[str, Any]:
        """Return where the stream stands, as values that can be stored."""
        with self:
            return {
                "torch": torch.get_rng_state(),
                "numpy": _plain(np.random.get_state(legacy=False)),
                "python": _plain(random.getstate()),
            }

    def load(self, state: dict[str, Any]) -> None:
        """Go on where `state()` was taken."""
        version, words, gauss_next = state["python"]
        with self:
            torch.set_rng_state(state["torch"])
            np.random.set_state(state["numpy"])
            random.setstate((version, tuple(words), gauss_next))


def _global_numpy() -> np.random.RandomState:
    state: np.random.RandomState = np.random.mtrand._rand  # noqa: SLF001  # what np.random's functions are bound to
    return state


def _bits_of(state: np.random.RandomState) -> Any:
    return state._bit_generator  # noqa: SLF001  # no public name


def _memory(address: int, size_bytes: int) -> memoryview:
    return memoryview((ctypes.c_char * size_bytes).from_address(address)).cast("B")


def _numpy() -> NumpyInPlace | NumpySlowly:
    try:
        if not isinstance(_bits_of(_global_numpy()), np.random.MT19937):
            return NumpySlowly()
        trial = np.random.RandomState(1)
        mark = 1.2345678901e-77
        trial.set_state({**trial.get_state(legacy=False), "has_gauss": 1, "gauss": mark})
        around = ctypes.string_at(id(trial), np.random.RandomState.__basicsize__)
        offset = around.index(_INT.pack(1), around.index(struct.pack("=d", mark)) - 8) if mark else 0
        in_place = NumpyInPlace(offset, trial)
        if not _works(
            in_place, lambda: trial.standard_normal(3).tolist(), lambda: _text(trial.get_state(legacy=False))
        ):
            return NumpySlowly()
        return NumpyInPlace(offset, _global_numpy())
    except Exception:  # whatever another numpy's layout makes of this, the public interface is right
        return NumpySlowly()


def _python() -> PythonInPlace | PythonSlowly:
    try:
        trial = random.Random(1)  # noqa: S311  # no secret
        _, words, _ = trial.getstate()
        around = ctypes.string_at(id(trial), _random.Random.__basicsize__)
        offset = around.index(struct.pack("=624I", *words[:_WORDS]))
        in_place = PythonInPlace(offset, trial)
        if not _works(in_place, lambda: [trial.gauss() for _ in range(3)], trial.getstate):
            return PythonSlowly()
        return PythonInPlace(offset, random._inst)  # noqa: SLF001  # what random's functions are bound to
    except Exception:  # as above
        return PythonSlowly()


def _works(generator: Generator, draw: Any, public: Any) -> bool:
    """Try a generator that is read in place: save, notice a draw, restore, and get the same draws and state."""
    before, saved = public(), generator.save()
    if generator.moved(saved):
        return False
    first = draw()
    noticed = generator.moved(saved)
    generator.restore(saved)
    same = public() == before and not generator.moved(saved) and draw() == first
    generator.seed(3)
    seeded = draw()
    generator.seed(3)
    return noticed and same and draw() == seeded != first


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, np.ndarray)):
        return list(value) if isinstance(value, tuple) else value.tolist()
    return value


def _text(state: Any) -> str:
    return repr(_plain(state))
