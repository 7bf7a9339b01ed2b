"""Lines for the person who watches: on stderr, one prefix, never buffered."""

from __future__ import annotations

import sys


def say(message: str) -> None:
    """Write a line, or several, to stderr; a closed stderr is no reason to stop training."""
    try:
        for line in message.splitlines():
            sys.stderr.write(f"outlast: {line}\n")
        sys.stderr.flush()
    except (OSError, ValueError):
        pass  # nobody is listening any more
