"""How a trainer reaches its node's agent."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

from outlast import _errors
from outlast._errors import AgentLost, OutlastError
from outlast.agent.protocol import Message, Refuse
from outlast.agent.tee import handed_down
from outlast.agent.wire import Wire, peer_is_me


def connect() -> tuple[Wire, subprocess.Popen[bytes] | None]:
    """Connect to the agent that started this script; start one if there is none, or it serves another script."""
    name = os.environ.get("OUTLAST_AGENT")
    if name:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.connect(f"\0{name}")
            if peer_is_me(sock):
                return Wire(sock), None
        except OSError:
            pass  # that agent is gone: this script goes on with one of its own
        sock.close()
    return start_agent()


def start_agent() -> tuple[Wire, subprocess.Popen[bytes]]:
    """Start an agent in a session of its own, connected by a socket pair that has no name."""
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "outlast.agent", str(theirs.fileno())],
            pass_fds=(theirs.fileno(), *handed_down(os.environ)),
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    return Wire(ours), process


def refusal(message: Message) -> OutlastError:
    """What an answer other than the expected one means."""
    if isinstance(message, Refuse):
        kind = getattr(_errors, message.error, None)
        if isinstance(kind, type) and issubclass(kind, OutlastError):
            return kind(message.message)
        return OutlastError(message.message)
    return AgentLost(f"unexpected {type(message).__name__}")
