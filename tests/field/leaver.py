"""A script under `outlast run` that leaves on a notice, and ends at once when it is started again.

    python leaver.py URL now | late

`late`: its emergency save ends after the deadline, and nobody may kill it meanwhile.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

from torchless import Trainer

from outlast._types import Reason
from outlast.agent.control import Phase, Stop, Word

AFTER_S = 0.5
"""So long after the deadline it begins to save, if it is late."""
STEP = 7


def main(url: str, when: str) -> None:
    trainer = Trainer(url)
    trainer.join()
    if trainer.offered == STEP:
        print("resumed", flush=True)
        trainer.close("finished")
        return
    page = trainer.link.page
    assert page is not None
    page[Word.PHASE] = Phase.TRAINING
    print("training", flush=True)
    while page[Word.STOP] != Stop.LEAVE:
        time.sleep(0.01)
    if when == "late":
        time.sleep(max(page[Word.DEADLINE_NS] / 1e9 - time.monotonic(), 0) + AFTER_S)
    number = trainer.save(STEP, b"on leaving", reason=Reason.EMERGENCY)
    saved = trainer.link.wait_saved(number, lambda: None, "it is saved")
    assert saved is not None
    assert saved.checkpoint is not None
    trainer.close("preempted")
    sys.exit(os.EX_TEMPFAIL)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
