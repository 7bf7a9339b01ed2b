"""What the first trainer of a drill does so that its interruption is certain to show something.

It waits for bytes on the store, or takes its time; it asks Outlast for nothing and changes nothing of it.
"""

import sys
import time
from pathlib import Path

SAVED, HELD = 22, 40
"""In the second epoch, of steps 21 to 40: killed before step 40, with a checkpoint of step 22 or later on the store."""
SLOW = 30
_WAIT_S = 60.0
"""Longer than any drill waits for its trainer: nobody waits for this."""


def is_first():
    """Whether this is the run's first trainer: the one that makes the mark."""
    if "--record" not in sys.argv:
        return False
    try:
        (_folder() / "first").open("x").close()
    except FileExistsError:
        return False
    return True


def until_saved_and_killed(module):
    """Before step 40 it waits for a checkpoint from within this epoch, then to be killed."""
    steps = iter(range(1, 1 << 30))

    def after_step(*_):
        step = next(steps)
        if step >= SLOW and not _saved():
            _wait(_saved, 1.0)
        if step == HELD:
            _wait(lambda: False, _WAIT_S)

    _in_first(module, after_step)


def slow_steps(module):
    """From step 30 on a step takes 0.3 s: the run is not over before a notice has come and its time has passed."""
    steps = iter(range(1, 1 << 30))
    _in_first(module, lambda *_: time.sleep(0.3 if next(steps) >= SLOW else 0.0))


def slow_tails(module):
    """A validation takes a second longer."""
    first, original = [], module.Module.eval

    def evaluate(self):
        first[:] = first or [is_first()]
        time.sleep(1.0 if first[0] else 0.0)
        return original(self)

    module.Module.eval = evaluate


def _in_first(module, after_step):
    first = []

    def hook(*_):
        first[:] = first or [is_first()]
        if first[0]:
            after_step()

    module.register_optimizer_step_post_hook(hook)


def _saved():
    names = [path.parent.name for path in (_folder() / "store").glob("*/checkpoints/*/commit.json")]
    return any(int(name.split("-")[2].partition("+")[0]) >= SAVED for name in names)


def _wait(found, timeout_s):
    end = time.monotonic() + timeout_s
    while not found() and time.monotonic() < end:
        time.sleep(0.01)


def _folder():
    return Path(sys.argv[sys.argv.index("--record") + 1]).parent


PATCHES = {
    "until saved and killed": {"torch.optim.optimizer": until_saved_and_killed},
    "slow steps": {"torch.optim.optimizer": slow_steps},
    "slow tails": {"torch.nn.modules.module": slow_tails},
}
