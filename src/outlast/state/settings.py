"""What a run was started with: named at a resume where it changed."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from outlast._types import Json
from outlast.checkpoint.manifest import digest

GIT_TIMEOUT_S = 2.0
"""A repository too large to answer in this time goes without a code version; a start is not held up for it."""

_BREAKS_BITS = frozenset(
    {
        "device",
        "torch",
        "cuda",
        "cudnn",
        "numpy",
        "python",
        "outlast",
        "world_size",
        "threads",
        "deterministic_algorithms",
        "cudnn.benchmark",
        "cudnn.deterministic",
        "cudnn.tf32",
        "matmul_precision",
    }
)


@dataclass(frozen=True)
class Difference:
    """One setting that is not what it was; None where one side does not have it."""

    name: str
    old: Json
    new: Json
    breaks_bits: bool
    """Whether results may differ in their last bits because of it."""


def describe(states: Mapping[str, object]) -> dict[str, Json]:
    """Return the settings by name: of every optimizer group, of libraries and machine, of the code.

    To be called when the script has built its states and nothing is restored yet, so that a learning rate is the
    script's and not a scheduler's.
    """
    settings = _optimizers(states)
    settings |= _libraries()
    settings |= {
        "device": _device_model(states),
        "world_size": _world_size(),
        "threads": torch.get_num_threads(),
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
        "cudnn.benchmark": torch.backends.cudnn.benchmark,
        "cudnn.deterministic": torch.backends.cudnn.deterministic,
        "cudnn.tf32": _tf32(),
        "matmul_precision": _matmul_precision(),
    }
    return settings | _code()


def differences(old: Mapping[str, Json], new: Mapping[str, Json]) -> list[Difference]:
    """Compare two descriptions; ordered as `new` names them, then what only `old` has."""
    names = [*new, *(name for name in old if name not in new)]
    return [
        Difference(name, old.get(name), new.get(name), name in _BREAKS_BITS)
        for name in names
        if old.get(name) != new.get(name)
    ]


def _optimizers(states: Mapping[str, object]) -> dict[str, Json]:
    settings = {}
    for name, state in states.items():
        groups = getattr(state, "param_groups", None)
        if not isinstance(groups, list):
            continue
        for index, group in enumerate(groups):
            prefix = f"{name}[{index}]" if len(groups) > 1 else name
            for option, value in group.items():
                if option not in ("params", "param_names", "initial_lr"):
                    settings[f"{prefix}.{option}"] = _plain(value)
    return settings


def _plain(value: Any) -> Json:
    if isinstance(value, torch.Tensor):
        value = value.item() if value.numel() == 1 else value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int | float) and abs(value) < 1 << 53:
        return value
    return repr(value)  # also inf and nan, which JSON has no word for


def _libraries() -> dict[str, Json]:
    from importlib.metadata import version

    libraries: dict[str, Json] = {name: version(name) for name in ("outlast", "numpy")}
    libraries |= {"torch": str(torch.__version__), "python": platform.python_version()}
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]  # torch has no annotation there
        cudnn = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]  # as above
        libraries |= {"cuda": torch.version.cuda, "cudnn": cudnn}
    return libraries


def _device_model(states: Mapping[str, object]) -> str:
    """Name the accelerator that modules are on, else the CPU; asks no device that is not in use."""
    for state in states.values():
        if isinstance(state, nn.Module):
            for parameter in state.parameters():
                if parameter.device.type == "cuda":
                    return torch.cuda.get_device_name(parameter.device)
    model = platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [
            line.partition(":")[2].strip()
            for line in cpuinfo.read_text().splitlines()
            if line.startswith("model name")
        ]
        model = names[0] if names else model
    return f"CPU {model} ({torch.backends.cpu.get_cpu_capability()})"


def _world_size() -> int:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_world_size()
    return int(os.environ.get("WORLD_SIZE") or 1)


def _tf32() -> Json:
    try:
        return torch.backends.cudnn.allow_tf32
    except RuntimeError:  # torch >= 2.9: the script used the newer setting, and mixing them is refused
        return str(torch.backends.cudnn.fp32_precision)


def _matmul_precision() -> Json:
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # as above
        return str(torch.backends.cuda.matmul.fp32_precision)


def _code() -> dict[str, Json]:
    """Version of the script: its digest and, inside a git checkout, the commit and whether files differ from it."""
    path = getattr(sys.modules.get("__main__"), "__file__", None)
    if path is None or not Path(path).is_file():
        return {}
    script = Path(path).resolve()
    code: dict[str, Json] = {"script": digest(script.read_bytes())}
    if any((folder / ".git").exists() for folder in script.parents):
        code |= _git(script.parent)
    return code


def _git(folder: Path) -> dict[str, Json]:
    command = ["git", "--no-optional-locks", "status", "--porcelain=v2", "--branch", "--untracked-files=no"]
    try:
        answer = subprocess.run(
            command,
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=GIT_TIMEOUT_S,
            check=True,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.SubprocessError):
        return {}
    lines = answer.stdout.splitlines()
    commits = [line.removeprefix("# branch.oid ") for line in lines if line.startswith("# branch.oid ")]
    return {
        "commit": commits[0] if commits else None,
        "uncommitted_changes": any(not line.startswith("#") for line in lines),
    }
