"""A script without torch that joins its run and then does what its second argument says.

python printing.py URL CODE      CODE sees `trainer`, `wait_for(name)` (until the file is there), os, sys and time
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from field.torchless import Trainer
from outlast import _process
from outlast.agent.control import Phase, Word
from outlast.agent.tee import print_by_lines


def wait_for(name: str) -> None:
    """Wait until the test has put a file of that name into this folder."""
    while not Path(name).exists():
        time.sleep(0.01)


if __name__ == "__main__":
    print_by_lines(os.environ)
    trainer = Trainer(sys.argv[1], process=_process.process_id())
    trainer.join()
    assert trainer.link.page is not None
    trainer.link.page[Word.PHASE] = Phase.ENDED
    exec(sys.argv[2])
