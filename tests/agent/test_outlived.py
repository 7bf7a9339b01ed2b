"""With `outlast run` a script that was killed is restored from the memory that its agent still holds.

The script itself takes the segments off the store, or writes into its arenas, and writes down what came back.
"""

from __future__ import annotations

import json
import sys

SCRIPT = """
import gc, json, os, signal, sys
from pathlib import Path
import torch, outlast
from outlast.snapshot.arena import Arena

PLAN = sys.argv[1].split(",")
torch.manual_seed(1)
model = torch.nn.Linear(2048, 2304)
again = Path("killed").exists()
store = Path("store/run")
if again:
    with torch.no_grad():
        model.weight.zero_()
    if "gone" in PLAN:
        os.rename(store / "segments", "taken away")
run = outlast.Run("run", model=model)
state = {"resumed": run.resumed, "step": run.step, "sum": model.weight.view(torch.int32).sum().item()}
with open("came-back", "a") as file:
    file.write(json.dumps(state) + "\\n")
if again:
    if "gone" in PLAN:
        os.rename("taken away", store / "segments")
    os._exit(0)
for step in run.steps(10):
    with torch.no_grad():
        model.weight.add_(1)
    if step == 5:
        run.save()
    if step == 6:
        break
while not list(store.glob("checkpoints/*/commit.json")):
    pass
if "spoilt" in PLAN:
    for arena in gc.get_objects():
        if isinstance(arena, Arena) and arena.size_bytes > 1 << 20:
            arena.view[: 1 << 20] = bytes(1 << 20)
Path("killed").touch()
os.kill(os.getpid(), signal.SIGKILL)
"""


def run(lab, plan):
    """Run it under `outlast run`; what came back at the first and the second start, and the exit code."""
    path = lab.folder / "script.py"
    path.write_text(SCRIPT)
    started = lab.supervised(command=[sys.executable, str(path), plan])
    code = started.wait()
    lines = (lab.folder / "came-back").read_text().splitlines()
    return [json.loads(line) for line in lines], code, started.text


def test_it_is_restored_without_a_read_of_the_segments(lab):
    """They are not there at all while it resumes; every bit comes back."""
    (_, back), code, _ = run(lab, "gone")
    assert (code, back["resumed"]) == (0, True)
    assert back["step"] == 6
    assert back["sum"] == on_store(lab)


def test_memory_that_was_written_to_since_is_not_used(lab):
    """Each chunk is checked: what is not as it was saved comes from the store."""
    (_, back), code, _ = run(lab, "spoilt")
    assert (code, back["step"]) == (0, 6)
    assert back["sum"] == on_store(lab)


def test_without_segments_and_memory_it_does_not_start_afresh(lab):
    """Neither has the bytes: exit 78, as for any run whose checkpoints are all damaged."""
    found, code, said = run(lab, "gone,spoilt")
    assert len(found) == 1
    assert code == 78
    assert "none is whole" in said


def on_store(lab):
    """Sum of the saved weight's bits as 32-bit integers, read by the format alone."""
    import numpy as np

    from field.torchless import commits, read_tensors

    data = read_tensors(commits(lab.folder / "store" / "run")[-1][2])["model/weight"]
    return int(np.frombuffer(data, np.int32).sum(dtype=np.int64))
