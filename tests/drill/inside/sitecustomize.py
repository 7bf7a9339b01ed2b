"""In every process that a drill of these tests starts: torch comes up sooner, and what the environment asks for.

`$SABOTAGE` breaks Outlast in one way. `$HOLD` is for the bundled example: what its first process does from a certain
step on, so that the interruption finds what the test is about, however busy the machine is.
"""

import os
import sys
import types

from outlast.drill.recorder import after_import


def without_the_compiler(torch):
    """Have an optimizer's first step not import the compiler: it takes as long as torch, and these scripts do not compile."""
    torch._dynamo = types.ModuleType("torch._dynamo")
    torch._dynamo.disable = lambda fn, *_, **__: fn
    torch._dynamo.graph_break = lambda *_: None
    sys.modules["torch._dynamo"] = torch._dynamo


after_import({"torch": without_the_compiler})
if os.environ.get("SABOTAGE"):
    import sabotage

    after_import(sabotage.PATCHES[os.environ["SABOTAGE"]])
if os.environ.get("HOLD"):
    import hold

    after_import(hold.PATCHES[os.environ["HOLD"]])
