"""`outlast checkpoints export`: the file that a command makes, and that plain torch goes on from."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import safetensors

from outlast._errors import ConfigError, ObjectDamaged, StoreFull
from outlast.checkpoint import catalog
from outlast.cli import checkpoints
from outlast.store.local import LocalStore
from saving import RUN_ID, UTC, id_of, save, state_of

TREE = {
    "states": {
        "model": {"kind": "module", "entries": [["w", {"tensor": ["w", False, False, "cpu", None]}]]},
        "teacher": {"kind": "module", "entries": [["v", {"tensor": ["v", False, False, "cpu", None]}]]},
    }
}
SIZES = {"w": 3000, "v": 5}

TRAIN = """
import sys, torch
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2)
def step(number):
    model(torch.randn(16, 4, generator=torch.Generator().manual_seed(number))).square().mean().backward()
    optimizer.step(); scheduler.step(); optimizer.zero_grad()
def end():
    print(b"".join(p.detach().numpy().tobytes() for p in model.parameters()).hex())
"""
WITH_OUTLAST = """
import outlast
run = outlast.Run(sys.argv[1], model=model, optimizer=optimizer, scheduler=scheduler)
for number in run.steps(3):
    step(number)
"""
WITHOUT = """
sys.modules["outlast"] = None
if len(sys.argv) > 1:
    saved = torch.load(sys.argv[1], weights_only=True)
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    scheduler.load_state_dict(saved["scheduler"])
for number in range(saved["outlast"]["step"] if len(sys.argv) > 1 else 0, 6):
    step(number)
end()
"""


def python(code, *arguments):
    done = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def call(capsys, *arguments):
    """Run the command here; return what it printed."""
    checkpoints.app(["export", *map(str, arguments)], result_action="return_value")
    return capsys.readouterr().out


def no_file_is_left(folder):
    return [path.name for path in folder.iterdir()] == []


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run `gpt` with two checkpoints of two models."""
    monkeypatch.setenv("OUTLAST_STORE", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "80")
    store = LocalStore(tmp_path / "gpt")
    catalog.create_run(store, RUN_ID, UTC)
    for step in (100, 200):
        save(store, id_of(step), state_of(step, SIZES), tree=TREE)
    return store


@pytest.fixture
def out(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


def bytes_of(path, name):
    with safetensors.safe_open(path, "np") as file:
        return file.get_tensor(name).tobytes()


def test_plain_torch_goes_on_where_outlast_stopped(tmp_path, monkeypatch, capsys):
    """3 steps with Outlast, exported, 3 more in a process that cannot import it: the weights of 6 undisturbed steps."""
    run, file = tmp_path / "run", tmp_path / "all.pt"
    python(TRAIN + WITH_OUTLAST, run)
    call(capsys, run, "--to", file)
    assert python(TRAIN + WITHOUT, file) == python(TRAIN + WITHOUT)


def test_the_newest_or_the_one_that_is_named(run, out, capsys):
    """One line says what the file holds; a file holds one model."""
    said = call(capsys, "gpt", "--to", out / "new.safetensors", "--state", "model")
    assert "step 200, model: 1 tensors, 3.1 KiB" in " ".join(said.split())
    assert bytes_of(out / "new.safetensors", "w") == state_of(200, SIZES)["w"]
    said = call(
        capsys, "gpt", id_of(100).name, "--to", out / "old.safetensors", "--state", "teacher", "--json"
    )
    assert json.loads(said) == {
        "run_id": RUN_ID, "url": run.url, "checkpoint": id_of(100).name, "step": 100,
        "file": str(out / "old.safetensors"), "bytes": (out / "old.safetensors").stat().st_size,
        "states": ["teacher"], "tensors": 1, "left_out": [],
    }  # fmt: skip
    assert bytes_of(out / "old.safetensors", "v") == state_of(100, SIZES)["v"]
    assert sorted(path.name for path in out.iterdir()) == ["new.safetensors", "old.safetensors"]


def test_a_file_that_exists_is_kept(run, out, capsys):
    """Unless --overwrite says otherwise; also one that appears while the export runs."""
    file = out / "x.safetensors"
    file.write_text("mine")
    with pytest.raises(ConfigError, match="exists already.*--overwrite"):
        call(capsys, "gpt", "--to", file, "--state", "model")
    assert file.read_text() == "mine"
    call(capsys, "gpt", "--to", file, "--state", "model", "--overwrite")
    assert bytes_of(file, "w") == state_of(200, SIZES)["w"]
    file.unlink()
    real = LocalStore.read_into

    def meanwhile(self, key, offset, target):
        file.write_text("another's")
        real(self, key, offset, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LocalStore, "read_into", meanwhile)
        with pytest.raises(ConfigError, match="exists already"):
            call(capsys, "gpt", "--to", file, "--state", "model")
    assert file.read_text() == "another's"
    assert [path.name for path in out.iterdir()] == ["x.safetensors"]


@pytest.mark.parametrize("name", ["x.safetensors", "x.pt"])
def test_a_damaged_chunk_leaves_no_file(run, out, capsys, name):
    """The error names checkpoint, segment and tensor, and what to look at; the older one can be exported."""
    for path in run._root.glob("segments/*/*200-*"):
        data = bytearray(path.read_bytes())
        data[100] ^= 1
        path.write_bytes(bytes(data))
    with pytest.raises(ObjectDamaged, match=rf"{id_of(200).name} cannot be exported: segments/.*'w'.*`list`"):
        call(capsys, "gpt", "--to", out / name, "--state", "model")
    assert no_file_is_left(out)
    call(capsys, "gpt", id_of(100).name, "--to", out / name, "--state", "model")
    assert (out / name).exists()


def test_what_cannot_be_written_is_said(run, out, capsys, monkeypatch):
    """An unknown ending, no folder, a full disk, no such checkpoint: one line each, and no file."""
    for to, error in (
        ("x.bin", "the ending says the format"),
        ("no/x.pt", "cannot be written: No such file"),
    ):
        with pytest.raises(ConfigError, match=error):
            call(capsys, "gpt", "--to", out / to, "--state", "model")
    with pytest.raises(ConfigError, match="one model's, and 2 states"):
        call(capsys, "gpt", "--to", out / "x.safetensors", "--state", "model", "--state", "teacher")
    with pytest.raises(ConfigError, match="names no checkpoint"):
        call(capsys, "gpt", "latest", "--to", out / "x.pt")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(StoreFull, match="No space left"):
        call(capsys, "gpt", "--to", out / "x.safetensors", "--state", "model")
    assert no_file_is_left(out)


def test_a_run_without_a_checkpoint_says_so(tmp_path, out, capsys):
    """Nothing to export is an error."""
    catalog.create_run(LocalStore(tmp_path / "new"), RUN_ID, UTC)
    with pytest.raises(ConfigError, match="no checkpoint yet"):
        call(capsys, tmp_path / "new", "--to", out / "x.pt")


def test_safetensors_need_no_torch(run, out):
    """On a machine that has none, or where importing it takes long."""
    python(
        f"import sys; sys.argv = ['outlast', 'checkpoints', 'export', {run.url!r}, '--to', {str(out / 'x.safetensors')!r},"
        " '--state', 'model']\nsys.modules['torch'] = None\nfrom outlast.cli import main\nmain()"
    )
    assert bytes_of(out / "x.safetensors", "w") == state_of(200, SIZES)["w"]
