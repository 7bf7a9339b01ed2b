"""Starts scripts in processes that have torch imported already: each is forked from this one, before any thread.

A test that starts forty scripts would import torch for two minutes. Reads one JSON request a line; answers with the
pid at once, and with the exit code (as `subprocess` gives it) when that process has ended.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import runpy
import select
import signal
import sys

import torch
import torch._dynamo  # noqa: F401 - the first optimizer imports it, which takes as long again as torch

import outlast

_PR_SET_PDEATHSIG = 1
assert outlast.Run  # imports it
assert len(os.listdir("/proc/self/task")) == 1, "a thread would not be there in what is forked"


def serve() -> dict:
    """Fork a process for each request; returns in that process, with what it shall run."""
    gc.freeze()  # the collections of those that are forked need not look at torch
    running: dict[int, int] = {}
    while True:
        ready, _, _ = select.select([0, *running], [], [])
        for fd in ready:
            if fd == 0:
                line = sys.stdin.readline()
                if not line:
                    sys.exit(0)
                request = json.loads(line)
                parent = os.getpid()
                pid = os.fork()
                if pid == 0:
                    for other in running:
                        os.close(other)
                    _become(request, parent)
                    return request
                running[os.pidfd_open(pid)] = pid
                print(json.dumps({"pid": pid}), flush=True)
            else:
                pid = running.pop(fd)
                os.close(fd)
                _, status = os.waitpid(pid, 0)
                print(json.dumps({"pid": pid, "code": os.waitstatus_to_exitcode(status)}), flush=True)


def _become(request: dict, parent: int) -> None:
    os.setsid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    null = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((null, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    os.close(log)
    os.close(null)


asked = serve()
sys.argv = asked["argv"]
sys.path[0] = os.path.dirname(sys.argv[0])
runpy.run_path(sys.argv[0], run_name="__main__")
