"""`python -m outlast.agent FD`: the agent of a script that was started without one."""

from __future__ import annotations

import sys

from outlast.agent.server import serve

sys.exit(serve(int(sys.argv[1])))
