"""Each folder imports only what stands below it, and what the agent needs imports no torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "outlast"

LAYERS = (
    ("__main__",),
    ("cli",),
    ("integrations",),
    ("drill",),
    ("report",),
    ("fleet",),
    ("run",),
    ("trainer",),
    ("agent",),
    ("snapshot",),
    ("data",),
    ("state",),
    ("notice",),
    ("_process", "_memory"),
    ("checkpoint",),
    ("store",),
    ("sim",),
    ("policy",),
    ("_config", "_say"),
    ("_errors", "_types"),
)
"""From the top; docs/architecture.md says what each is for."""

RANK = {part: len(LAYERS) - depth for depth, parts in enumerate(LAYERS) for part in parts}

PROTOCOL = "outlast.agent.protocol"
"""The records that trainer and agent exchange: snapshot/ lays them out, so it may name them. They import no agent."""

NO_TORCH = {
    "agent",
    "notice",
    "policy",
    "sim",
    "store",
    "checkpoint",
    "fleet",
    "cli",
    "_config",
    "_process",
    "_memory",
    "_errors",
}

LIGHT = [
    "outlast",
    "outlast.cli",
    "outlast.agent.supervise",
    "outlast.agent.server",
    "outlast.snapshot.arena",
]
"""What a torch-free process imports; the agent, and what the command line shows of a run."""

WAY_OUT = ("outlast.state.torch_file", "torch.save")
"""`outlast checkpoints export --to FILE.pt`, which a person asks for to leave."""

FILES = sorted(PACKAGE.rglob("*.py"))


def part_of(module: str) -> str:
    """The layer's name of `outlast.x.y`."""
    return module.split(".")[1]


def name_of(path: Path) -> str:
    """The module's dotted name."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path) -> set[str]:
    """Every module that a file imports, at its top or inside a function; type-only ones too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module)
            if node.module == "outlast" or is_folder(node.module):
                found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def is_folder(module: str) -> bool:
    """Whether `from module import x` may name a file x."""
    return module.startswith("outlast.") and (PACKAGE.parent / module.replace(".", "/")).is_dir()


@pytest.mark.parametrize("path", [p for p in FILES if name_of(p) != "outlast"], ids=name_of)
def test_a_file_imports_only_what_stands_below_it(path):
    """Its own folder, and layers further down."""
    own = part_of(name_of(path))
    assert own in RANK, f"{own} has no place in LAYERS: give it one, here and in docs/architecture.md"
    for module in imports_of(path):
        if not module.startswith("outlast.") or module.split(".")[1] == own:
            continue
        if own == "snapshot" and (module == PROTOCOL or module.startswith(PROTOCOL + ".")):
            continue
        if own == "snapshot" and module == "outlast.agent":
            continue
        below = part_of(module)
        assert below in RANK, f"{name_of(path)} imports {module}, which has no place in LAYERS"
        assert RANK[below] < RANK[own], f"{name_of(path)} imports {module}, which stands above it"


def test_the_protocol_is_records_only():
    """What snapshot/ may import of agent/ pulls nothing of agent/ in."""
    allowed = {"outlast._types"} | {f"outlast.checkpoint{part}" for part in ("", ".manifest", ".plan")}
    ours = {m for m in imports_of(PACKAGE / "agent" / "protocol.py") if m.startswith("outlast")}
    assert {
        m for m in ours if not m.startswith(("outlast.checkpoint.manifest.", "outlast.checkpoint.plan."))
    } <= allowed
    assert imports_of(PACKAGE / "agent" / "__init__.py") <= {"__future__"}


@pytest.mark.parametrize(
    "path", [p for p in FILES if name_of(p).split(".")[1:2] and part_of(name_of(p)) in NO_TORCH]
)
def test_what_the_agent_needs_names_no_torch(path):
    """Not even inside a function: an agent that imports torch takes seconds and gigabytes."""
    roots = {module.split(".")[0] for module in imports_of(path)}
    assert "torch" not in roots


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_nothing_reads_pickles_or_runs_text(path):
    """No pickle, no torch.load, no eval: what comes from a store is data. Only an export writes torch's own format."""
    roots = {module.split(".")[0] for module in imports_of(path)}
    assert not roots & {"pickle", "dill", "cloudpickle", "marshal", "shelve"}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if (name_of(path), called) == WAY_OUT:
                continue
            assert called not in {"torch.load", "torch.save", "eval", "exec", "os.system", "os.fork"}, called


def test_the_agent_runs_without_torch():
    """Imported for real, with everything that they import: torch is not there, nor what starts slowly."""
    modules = [
        m for m in LIGHT if m == "outlast" or (PACKAGE.parent / (m.replace(".", "/") + ".py")).exists()
    ]
    script = (
        "import sys, importlib\n"
        f"for name in {[*modules, 'outlast.cli']!r}: importlib.import_module(name)\n"
        "from outlast.cli import command_line\n"
        "command_line(['run'])\n"
        "heavy = {'torch', 'rich', 'asyncio'} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
