"""Every command of the README is run as it stands there, in its order, and what it promises is looked at."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

import servers

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()

BY_MAKE = {"make drill", "make test"}
"""Too long, or itself: the test holds that CI runs them on a fresh clone."""
INSTALL = "pip install ."


def blocks(language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


COMMANDS = [
    line for block in blocks("bash") for line in block.splitlines() if line and not line.startswith("#")
]
SESSION = [command for command in COMMANDS if command not in {*BY_MAKE, INSTALL}]


@pytest.fixture(scope="module")
def user(tmp_path_factory):
    """A user's folder with the README's script, a bucket, and an environment without settings of ours."""
    folder = tmp_path_factory.mktemp("user")
    (script,) = blocks("python")
    (folder / "train.py").write_text(script)
    env = {k: v for k, v in os.environ.items() if not k.startswith(("OUTLAST_", "AWS_", "SLURM_"))}
    env["PYTHONPATH"] = str(ROOT / "tests" / "drill" / "inside")  # torch comes up sooner
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"
    with servers.moto_s3(tmp_path_factory.mktemp("moto")) as s3:
        request = urllib.request.Request(f"{s3.endpoint}/my-bucket", method="PUT")
        urllib.request.urlopen(request, timeout=60).close()
        yield folder, {**env, **s3.env}


def test_the_readme_opens_with_the_two_commands():
    """They come first, and nothing has to be installed before."""
    assert COMMANDS[:2] == ["make drill", "make test"]


@pytest.mark.parametrize("command", sorted(BY_MAKE))
def test_make_targets_are_there_and_run_by_ci(command):
    """CI runs the very command on a fresh clone."""
    target = command.split()[1]
    assert re.search(rf"^{target}: \$\(READY\)( |$)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    ci = ROOT / ".ci" / "run"
    assert command in ci.read_text().splitlines()
    assert os.access(ci, os.X_OK)


@pytest.mark.parametrize("command", SESSION)
def test_a_command_works_as_written(user, command):
    """In the order of the README, in one folder: each ends well."""
    folder, env = user
    done = subprocess.run(
        ["bash", "-euc", command],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=240,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, f"$ {command}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr


def test_the_script_trained_and_was_saved(user):
    """After the commands above there is a committed checkpoint on the disk, and one in the bucket."""
    folder, env = user
    assert list((folder / "outlast-runs" / "mlp" / "checkpoints").glob("*/commit.json"))
    listing = (
        urllib.request.urlopen(f"{env['AWS_ENDPOINT_URL']}/my-bucket?list-type=2", timeout=60).read().decode()
    )
    assert re.search(r"<Key>runs/mlp/checkpoints/[^<]+/commit.json</Key>", listing)


def test_the_package_installs_and_runs_from_a_wheel(tmp_path):
    """`pip install .` needs nothing of this folder afterwards."""
    where = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(where), "."]
    subprocess.run(pip, cwd=ROOT, check=True, timeout=240)
    script = "import outlast.cli as c; assert c.__file__.startswith(sys.argv[1]), c.__file__; c.command_line(['run'])"
    env = {**os.environ, "PYTHONPATH": str(where)}
    subprocess.run(
        [sys.executable, "-c", f"import sys; {script}", str(where)], cwd=tmp_path, env=env, check=True
    )
    assert (where / "outlast" / "py.typed").exists()


def test_every_environment_variable_is_documented():
    """Each OUTLAST_ variable that the code names is in docs/settings.md, and no other; a drill's own are one entry."""
    pattern = r"\bOUTLAST_(?!DRILL_)[A-Z_]*[A-Z]\b"
    code = "\n".join(p.read_text() for p in (ROOT / "src").rglob("*.py"))
    assert set(re.findall(pattern, code)) == set(
        re.findall(pattern, (ROOT / "docs" / "settings.md").read_text())
    )


def test_links_of_the_readme_lead_somewhere():
    """Each relative link is a file of the repository."""
    for link in re.findall(r"\]\(([^)]+)\)", README):
        assert "://" in link or (ROOT / link).exists(), link
