"""A script without torch under `outlast run`.

python quick.py URL finished             ends at once, and says how
python quick.py URL preempted | ...      was told to leave, and swallows it: exit code 0
python quick.py URL after                its loop has ended, and it goes on
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from field.torchless import Trainer
from outlast import _process
from outlast.agent.control import Phase, Word

FOR_EVER_S = 100.0


def main(url: str, what: str) -> None:
    trainer = Trainer(url, process=_process.process_id())
    trainer.join()
    page = trainer.link.page
    assert page is not None
    page[Word.PHASE] = Phase.ENDED
    print(what, flush=True)
    if what == "after":
        time.sleep(FOR_EVER_S)
    trainer.close(what)  # type: ignore[arg-type]  # one of the endings


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
