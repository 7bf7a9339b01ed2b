"""Prune a run on a local disk, and be killed (SIGKILL) at one of its deletes.

    python prune_once.py STORE WHERE NUMBER

WHERE is `store` (before the number-th delete that a prune asks for) or `system` (before the number-th unlink, rmdir or fsync
that these make). Exits 0 if it was not killed.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from outlast._types import Keep
from outlast.checkpoint.manifest import parse_checkpoint_name
from outlast.checkpoint.prune import Pruner, Whose
from outlast.store.local import LocalStore
from saving import RUN_ID

SYSTEM_CALLS = ("unlink", "rmdir", "fsync")


def main(root: str, where: str, number: int) -> None:
    store = LocalStore(Path(root))
    done = 0

    def killed_before(call):
        def wrapped(*args, **kwargs):
            nonlocal done
            done += 1
            if done == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **kwargs)

        return wrapped

    if where == "store":
        store.delete = killed_before(store.delete)
    else:
        for name in SYSTEM_CALLS:
            setattr(os, name, killed_before(getattr(os, name)))
    prune(store, root)


def prune(store: LocalStore, root: str | Path) -> None:
    """Keep two, as somebody who has read every checkpoint that is there."""
    known = (parse_checkpoint_name(path.parent.name) for path in Path(root).glob("checkpoints/*/commit.json"))
    whose = Whose(RUN_ID, None, frozenset(id for id in known if id is not None))
    Pruner(store, Keep(last=2)).prune(whose, now_s=0.0, at_once=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
