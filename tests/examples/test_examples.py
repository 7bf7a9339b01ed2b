"""Each example runs as its first lines say, in a short form."""

import json
import os
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(tmp_path, name, *arguments):
    command = [sys.executable, "-m", "outlast", "run", "--store", str(tmp_path / "store"), "--"]
    env = {key: value for key, value in os.environ.items() if not key.startswith("OUTLAST_")}
    done = subprocess.run(
        [*command, sys.executable, str(EXAMPLES / name), *arguments],
        env=env,
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done


def test_gpt_trains_and_writes_down_what_it_trained(tmp_path):
    """Two short epochs: one line for each optimizer step with its samples, each sample once an epoch, and digests."""
    sizes = ["--epochs", "2", "--samples", "64", "--batch-size", "8", "--context", "16", "--width", "16"]
    more = ["--layers", "1", "--validation", "2", "--workers", "1"]
    files = ["--record", str(tmp_path / "record"), "--final", str(tmp_path / "final")]
    done = run(tmp_path, "gpt.py", *sizes, *more, *files)
    assert done.stdout.count("validation loss") == 2
    lines = [json.loads(line) for line in (tmp_path / "record").read_text().splitlines()]
    trained = [line for line in lines if "tail" not in line]
    assert [line["step"] for line in trained] == list(range(1, 9))
    for epoch in range(2):
        used = [sample for line in trained if line["epoch"] == epoch for sample in line["samples"]]
        assert sorted(used) == list(range(64))
    assert "model.head.weight" in json.loads((tmp_path / "final").read_text())


def test_digits_learns_to_read(tmp_path):
    """Four epochs of the classifier read nine digits in ten, and a second start trains nothing more."""
    done = run(tmp_path, "digits.py", "--epochs", "4")
    assert float(done.stdout.splitlines()[-1].split()[2].rstrip("%")) > 85
    assert "epoch" not in run(tmp_path, "digits.py", "--epochs", "4").stdout
