"""A script whose snapshots are copied late on the CPU, as a GPU does it, and which once clips its weights under a copy.

It writes down what its state was at the end of each step.
"""

import hashlib
import json
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

import outlast
import outlast.trainer.loop
import planted
from late import Late, LateCopier

STEPS = 12


class Device(LateCopier):
    """Its copies are complete when they are looked at, and not before a step waits for them."""

    def begin(self, moves):
        self.copies.append(Asked(moves))
        return self.copies[-1]


class Asked(Late):
    def is_done(self):
        self.copy()
        return True


def main():
    states = planted.foreach_step("cpu").states
    device = Device()
    outlast.trainer.loop.DeviceCopier = lambda: device
    available, torch.cuda.is_available = torch.cuda.is_available, lambda: True
    run = outlast.Run("run", snapshot="overlap", **states)
    torch.cuda.is_available = available
    clipped = False
    with (Path(os.environ["T_LAB"]) / "record").open("a") as record:
        for step in run.steps(STEPS):
            if not clipped and device.copies and not device.copies[-1].done.is_set():
                clipped = True
                for parameter in states["model"].parameters():
                    parameter.data.clamp_(-0.001, 0.001)
            planted._step(states)
            found = {
                f"model/{name}": hashlib.sha256(value.numpy().tobytes()).hexdigest()
                for name, value in states["model"].state_dict().items()
            }
            line = {
                "kind": "step",
                "pid": os.getpid(),
                "step": step + 1,
                "digests": found,
                "late": len(device.copies),
            }
            record.write(json.dumps(line) + "\n")
            record.flush()
            while run._keeper._link._told.unsaved:  # a store that keeps up, so that each step is saved
                time.sleep(0.01)


if __name__ == "__main__":
    main()
