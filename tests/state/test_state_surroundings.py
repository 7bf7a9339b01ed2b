"""Generators come back; settings that differ are named."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
import torch
from torch import nn, optim

from outlast.state import settings
from outlast.state.rng import capture_rng, restore_rng
from outlast.state.table import TensorTable
from staging import looks, through_arena


def draws():
    return random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), float(torch.randn(()))


def test_every_generator_continues_where_it_was():
    """With its half of a pair of normal numbers: python's and numpy's keep one back."""
    random.gauss(0, 1)
    np.random.randn()
    table = TensorTable()
    saved = through_arena(capture_rng(table), table)
    expected = [draws() for _ in range(3)]
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    assert restore_rng(saved.tree, looks(saved)) == []
    assert [draws() for _ in range(3)] == expected


def test_capturing_draws_nothing():
    """And starts no CUDA."""
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = draws()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    capture_rng(TensorTable())
    assert draws() == expected
    assert not torch.cuda.is_initialized()


def test_a_cuda_generator_that_has_no_device_here_is_named():
    """The guarantee drops, and the reason is said."""
    table = TensorTable()
    tree = capture_rng(table)
    tree["cuda"] = [tree["torch"]] * 9
    saved = through_arena(tree, table)
    (note,) = restore_rng(saved.tree, looks(saved))
    assert "saved for 9 CUDA devices" in note


@pytest.mark.gpu
def test_cuda_generators_continue_where_they_were():
    """Every device's."""
    torch.randn(3, device="cuda")
    table = TensorTable()
    saved = through_arena(capture_rng(table), table)
    expected = torch.randn(3, device="cuda").tolist()
    torch.cuda.manual_seed_all(5)
    assert restore_rng(saved.tree, looks(saved)) == []
    assert torch.randn(3, device="cuda").tolist() == expected


def states(lr=0.1, **options):
    model = nn.Linear(2, 2)
    groups = [{"params": [model.weight]}, {"params": [model.bias], "lr": 5.0}]
    return {"model": model, "opt": optim.AdamW(groups, lr=lr, **options)}


def test_settings_are_plain_and_the_same_when_asked_again():
    """They travel as JSON and compare equal afterwards."""
    described = settings.describe(states())
    assert described == msgspec.json.decode(msgspec.json.encode(described))
    assert settings.differences(described, settings.describe(states())) == []
    assert described["opt[0].lr"] == 0.1 and described["opt[1].lr"] == 5.0
    assert described["opt[0].betas"] == [0.9, 0.999]
    assert described["torch"] == torch.__version__ and described["world_size"] == 1


def test_what_changed_is_named_and_told_apart_by_what_it_breaks():
    """A learning rate is the user's wish; another torch or thread count may change bits."""
    old = settings.describe(states(0.1))
    new = settings.describe(states(torch.tensor(0.25), weight_decay=float("inf")))
    threads = torch.get_num_threads()
    new |= {"torch": "9.9", "threads": threads + 1, "device": "other"}
    del new["opt[1].amsgrad"]
    found = {d.name: (d.old, d.new, d.breaks_bits) for d in settings.differences(old, new)}
    assert found == {
        "opt[0].lr": (0.1, 0.25, False),
        "opt[0].weight_decay": (0.01, "inf", False),
        "opt[1].weight_decay": (0.01, "inf", False),
        "opt[1].amsgrad": (False, None, False),
        "torch": (torch.__version__, "9.9", True),
        "threads": (threads, threads + 1, True),
        "device": (old["device"], "other", True),
    }


def test_determinism_and_world_size_break_bits(monkeypatch):
    """Each is read where torch and the launcher keep it."""
    old = settings.describe({})
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", not torch.backends.cudnn.benchmark)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    torch.use_deterministic_algorithms(True)
    try:
        found = settings.differences(old, settings.describe({}))
    finally:
        torch.use_deterministic_algorithms(False)
    assert {d.name for d in found if d.breaks_bits} == {
        "world_size",
        "threads",
        "cudnn.benchmark",
        "deterministic_algorithms",
    }


def test_the_code_version_names_commit_and_changes(tmp_path: Path, monkeypatch):
    """Of the checkout that the script lies in; outside of one, the script's digest alone."""
    script = tmp_path / "train.py"
    script.write_text("pass")
    monkeypatch.setitem(sys.modules, "__main__", SimpleNamespace(__file__=str(script)))

    def code():
        described = settings.describe({})
        return {
            name: described[name] for name in ("script", "commit", "uncommitted_changes") if name in described
        }

    def git(*words):
        name = ["-c", "user.name=a", "-c", "user.email=a@b"]
        return subprocess.run(
            ["git", *name, *words], cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout

    bare = code()
    assert bare.keys() == {"script"}
    git("init", "-q"), git("add", "train.py"), git("commit", "-qm", "one")
    (tmp_path / "untracked").write_text("")
    clean = code()
    assert clean == {**bare, "commit": git("rev-parse", "HEAD").strip(), "uncommitted_changes": False}
    script.write_text(script.read_text() + "\n# changed\n")
    changed = code()
    assert changed["uncommitted_changes"] and changed["script"] != clean["script"]
