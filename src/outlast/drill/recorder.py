"""What a drill puts into a user's own script: it writes down what was trained, and changes nothing of it.

A generated `sitecustomize` calls `install`, which costs nothing until the script imports torch or `outlast.run`.
Then it counts optimizer steps by a hook, takes a digest of every batch that is handed to the loop, and writes one
durable line for each step before Outlast is asked for the next batch, in the format of `records.py`. The counter is
handed to the script's `Run` as one more state, so that it is saved and restored exactly as the script's own are.
"""

from __future__ import annotations

import atexit
import builtins
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from types import FrameType, ModuleType
from typing import Any

FOLDER = "OUTLAST_DRILL_RECORD"
"""Environment: the folder that the lines and the final digests go to."""
LIMIT = "OUTLAST_DRILL_STEPS"
"""Environment: end the script after this many optimizer steps; empty for its own end."""
PLACE = "OUTLAST_DRILL_PLACE"
"""Environment: the run's place, whatever the script says: a drill writes to no store of the user's."""
TAIL = "OUTLAST_DRILL_TAIL_S"
"""Environment: seconds that an epoch's tail lasts at least, so that it can be interrupted."""
PACE = "OUTLAST_DRILL_STEP_S"
"""Environment: seconds that an optimizer step takes longer, so that the run is not over before all was announced."""
STATE = "outlast_drill"
"""The name under which the counter is handed to `Run`."""

SITECUSTOMIZE = f'''\
"""Made by `outlast drill`: records what a training script does."""
import importlib.machinery, os, sys

here = os.path.dirname(os.path.abspath(__file__))
others = [path for path in sys.path if os.path.abspath(path) != here]
spec = importlib.machinery.PathFinder.find_spec("sitecustomize", others)
if spec is not None and spec.loader is not None:
    exec(spec.loader.get_code("sitecustomize"), {{"__name__": "sitecustomize", "__file__": spec.origin}})
if os.environ.get("{FOLDER}"):
    try:
        from outlast.drill import recorder
    except ImportError:
        pass  # another Python than the one that has Outlast: the drill will say that nothing was recorded
    else:
        recorder.install()
'''


class Counter:
    """Optimizer steps and tails of the history that the script's state belongs to."""

    def __init__(self) -> None:
        self.step = 0
        self.tails = 0

    def state_dict(self) -> dict[str, int]:
        """Return what a checkpoint holds of it."""
        return {"step": self.step, "tails": self.tails}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue from a checkpoint."""
        self.step, self.tails = state["step"], state["tails"]


class Recorder:
    """Everything that is known of this process."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.pid = os.getpid()
        self.limit = int(os.environ.get(LIMIT) or 0) or None
        self.counter = Counter()
        self.epoch: int | None = None
        self.tail_open = False
        self.stepped = False
        self.inside = False
        self.run_loop = False
        self.safe_points = 0
        self.runs = 0
        self.samples: list[str] = []
        self.optimizers: list[Any] = []
        self.handed: dict[str, Any] = {}
        self.variables: Any = None
        self.bare: list[str] = []
        self.frames: list[FrameType] = []

    @property
    def is_mine(self) -> bool:
        """Whether this is the trainer: not a worker that was forked from it, and not from within Outlast."""
        return os.getpid() == self.pid and not self.inside

    @property
    def ended(self) -> bool:
        """Whether the steps that were asked for are done."""
        return self.limit is not None and self.counter.step >= self.limit

    def optimizer_stepped(self, optimizer: Any, *_: object) -> None:
        """Torch's global hook after each `Optimizer.step`."""
        if os.getpid() == self.pid:
            self.stepped = True
            if not any(optimizer is known for known in self.optimizers):
                self.optimizers.append(optimizer)

    def boundary(self, *, always: bool = False) -> None:
        """The loop asks for more: what was done since the last time is one step, if an optimizer has stepped."""
        if not (self.stepped or always):
            return
        self.stepped = False
        self.counter.step += 1
        samples, self.samples = self.samples, []
        time.sleep(float(os.environ.get(PACE) or 0))
        self.write(samples=samples, lr=self.lr(), weights=self.weights())

    def handed_out(self, item: object) -> None:
        """Note a batch that the loop gets, and which code gets it."""
        from outlast.drill.digests import digest

        self.samples.append(digest(item))
        if not self.frames:
            self.frames = script_frames(sys._getframe(2))  # noqa: SLF001 - the only way to the caller's variables

    def begin_tail(self) -> None:
        """The epoch's batches are used up."""
        if self.epoch is not None and not self.tail_open:
            self.tail_open = True
            self.write(tail="begin")
            time.sleep(float(os.environ.get(TAIL) or 0))

    def end_tail(self) -> None:
        """The next epoch is asked for."""
        if self.tail_open:
            self.tail_open = False
            self.counter.tails += 1
            self.write(tail="end", tails=self.counter.tails, lr=self.lr(), weights=self.weights())

    def watched(self) -> list[Any]:
        """Return the optimizers that were handed to Run, in that order; without a Run those that have stepped."""
        handed = [item for item in self.handed.values() if hasattr(item, "param_groups")]
        return handed or self.optimizers

    def lr(self) -> str:
        """Return the learning rates of all optimizers, exactly."""
        return " ".join(float(group["lr"]).hex() for known in self.watched() for group in known.param_groups)

    def weights(self) -> str:
        """Return a digest of all parameters that are optimized."""
        from outlast.drill.digests import digest_quickly

        return digest_quickly(
            p for known in self.watched() for group in known.param_groups for p in group["params"]
        )

    def write(self, **fields: object) -> None:
        """Append a line, durable before this returns."""
        about = {"pid": self.pid, "time": time.time(), "step": self.counter.step, "epoch": self.epoch}
        self._append("record.jsonl", json.dumps(about | fields) + "\n")

    def finish(self) -> None:
        """At the script's end: digests of all state, and the facts that say whether it is protected."""
        if not self.is_mine or self.folder is None:
            return
        if self.optimizers:
            self.boundary()
        self.end_tail()
        from outlast.drill.digests import describe_end

        self._append(f"final-{self.pid}.json", json.dumps(describe_end(self)))

    def _append(self, name: str, text: str) -> None:
        with open(os.path.join(self.folder, name), "ab", buffering=0) as file:  # noqa: PTH118, PTH123 - no pathlib at start
            file.write(text.encode())
            os.fsync(file.fileno())


class Recorded:
    """An iterable of Outlast's, or a DataLoader's iterator, whose items are noted as they are handed out."""

    def __init__(self, recorder: Recorder, inner: Any, *, is_run: bool, counts: bool = False) -> None:
        self._recorder = recorder
        self._inner = inner
        self._is_run = is_run
        self._counts = counts

    def __len__(self) -> int:
        return len(self._inner)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def __iter__(self) -> Iterator[Any]:
        return _Items(self._recorder, self._inner, is_run=self._is_run, counts=self._counts)


class _Items:
    def __init__(self, recorder: Recorder, inner: Any, *, is_run: bool, counts: bool) -> None:
        self._recorder, self._is_run, self._counts = recorder, is_run, counts
        self._first = True
        if is_run:
            recorder.run_loop = True
            recorder.samples = []
        with _Inside(recorder):
            self._iterator = iter(inner)

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        recorder = self._recorder
        recorder.boundary(always=self._counts and not self._first)
        self._first = False
        if recorder.ended:
            raise StopIteration
        try:
            with _Inside(recorder):
                item = next(self._iterator)
        except StopIteration:
            if self._is_run:
                recorder.begin_tail()
            raise
        recorder.handed_out(item)
        return item


class _Inside:
    """Within Outlast's own code: what happens there is not the script's doing."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    def __enter__(self) -> None:
        self._before, self._recorder.inside = self._recorder.inside, True

    def __exit__(self, *_: object) -> None:
        self._recorder.inside = self._before


def install() -> None:
    """Record this process if it turns out to be a trainer."""
    recorder = Recorder(os.environ[FOLDER])
    patches: dict[str, Callable[[ModuleType], None]] = {
        "torch.optim.optimizer": lambda module: _patch_optimizers(module, recorder),
        "torch.utils.data.dataloader": lambda module: _patch_loaders(module, recorder),
        "outlast.run": lambda module: _patch_run(module, recorder),
    }
    after_import(patches)


def after_import(patches: dict[str, Callable[[ModuleType], None]]) -> None:
    """Call `patches[name]` with the module once a module of that name has been imported, once each."""
    sys.meta_path.insert(0, _AfterImport(dict(patches)))


def script_frames(frame: FrameType | None) -> list[FrameType]:
    """Return the frames of the script's own code, innermost first: neither ours nor an installed library's."""
    found = []
    while frame is not None:
        name = frame.f_code.co_filename
        ours = name.startswith(os.path.dirname(os.path.dirname(__file__)))  # noqa: PTH120 - no pathlib at start
        library = "site-packages" in name or name.startswith(("<frozen", sys.prefix + "/lib"))
        if not ours and not library:
            found.append(frame)
        frame = frame.f_back
    return found


def _patch_optimizers(module: ModuleType, recorder: Recorder) -> None:
    module.register_optimizer_step_post_hook(recorder.optimizer_stepped)
    atexit.register(recorder.finish)


def _patch_loaders(module: ModuleType, recorder: Recorder) -> None:
    original = module.DataLoader.__iter__

    def iterate(self: Any) -> Any:
        inner = original(self)
        if not recorder.is_mine or recorder.run_loop:
            return inner
        return iter(Recorded(recorder, inner, is_run=False))

    module.DataLoader.__iter__ = iterate


def _patch_run(module: ModuleType, recorder: Recorder) -> None:
    run = module.Run
    init, epochs, safe_point = run.__init__, run.epochs, run.safe_point

    def start(self: Any, name_or_url: str | None = None, **options: Any) -> None:
        del name_or_url
        recorder.runs += 1
        recorder.handed = {name: value for name, value in options.items() if hasattr(value, "state_dict")}
        with _Inside(recorder):
            init(self, os.environ[PLACE], **options, **{STATE: recorder.counter})
        recorder.variables = self.vars
        atexit.unregister(recorder.finish)
        atexit.register(recorder.finish)  # before the run's own farewell
        main = vars(sys.modules["__main__"])
        main.setdefault("enumerate", lambda iterable, start=0: _enumerate(recorder, iterable, start))

    def each_epoch(self: Any, n: int) -> Iterator[int]:
        inner = epochs(self, n)
        recorder.run_loop = True
        while True:
            recorder.boundary()
            recorder.end_tail()
            if recorder.ended:
                return
            with _Inside(recorder):
                epoch = next(inner, None)
            if epoch is None:
                recorder.epoch = None
                return
            recorder.epoch = epoch
            yield epoch

    def point(self: Any) -> None:
        recorder.safe_points += 1
        recorder.boundary()
        with _Inside(recorder):
            safe_point(self)

    def recorded(original: Callable[..., Any], *, counts: bool) -> Callable[..., Any]:
        def call(self: Any, *args: Any, **options: Any) -> Recorded:
            recorder.safe_points += 1
            with _Inside(recorder):
                return Recorded(recorder, original(self, *args, **options), is_run=True, counts=counts)

        return call

    run.__init__ = start
    run.epochs = each_epoch
    run.safe_point = point
    run.batches = recorded(run.batches, counts=False)
    run.enumerate = recorded(run.enumerate, counts=False)
    run.steps = recorded(run.steps, counts=True)


def _enumerate(recorder: Recorder, iterable: Any, start: int) -> Any:
    """Stands in for the script's own `enumerate`: around `run.batches` its index restarts at every resume."""
    if isinstance(iterable, Recorded):
        frame = sys._getframe(2)  # noqa: SLF001 - past the lambda: the script's line
        place = f"{os.path.basename(frame.f_code.co_filename)} line {frame.f_lineno}"  # noqa: PTH119
        if place not in recorder.bare:
            recorder.bare.append(place)
    return builtins.enumerate(iterable, start)


class _AfterImport(importlib.abc.MetaPathFinder):
    """Calls a function once a module of a certain name has been imported."""

    def __init__(self, patches: dict[str, Callable[[ModuleType], None]]) -> None:
        self._patches = patches

    def find_spec(
        self,
        name: str,
        path: Sequence[str] | None,  # noqa: ARG002 - the protocol of importlib
        target: ModuleType | None = None,  # noqa: ARG002 - the protocol of importlib
    ) -> importlib.machinery.ModuleSpec | None:
        if name not in self._patches:
            return None
        patch = self._patches.pop(name)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return None
        load = spec.loader.exec_module

        def load_and_patch(module: ModuleType) -> None:
            load(module)
            patch(module)

        spec.loader.exec_module = load_and_patch  # type: ignore[method-assign]  # this one loader, for this one module
        return spec
