"""A script under `outlast run` whose emergency save ends after the deadline: nobody may kill it meanwhile.

python slow_leaver.py URL
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
"""So long after the deadline it begins to save."""


def main(url: str) -> None:
    trainer = Trainer(url)
    trainer.join()
    page = trainer.link.page
    assert page is not None
    page[Word.PHASE] = Phase.TRAINING
    print("training", flush=True)
    while page[Word.STOP] != Stop.LEAVE:
        time.sleep(0.01)
    deadline_s = page[Word.DEADLINE_NS] / 1e9
    time.sleep(max(deadline_s - time.monotonic(), 0) + AFTER_S)
    number = trainer.save(7, b"late", reason=Reason.EMERGENCY)
    saved = trainer.link.wait_saved(number, lambda: None, "it is saved")
    assert saved is not None
    assert saved.checkpoint is not None
    trainer.close("preempted")
    sys.exit(os.EX_TEMPFAIL)


if __name__ == "__main__":
    main(sys.argv[1])
