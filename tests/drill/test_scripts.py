"""`outlast drill -- python SCRIPT`: scripts as people write them come through, and one with a bug is told why it does not."""

import difflib
import sys
from pathlib import Path

import pytest

from outlast.drill.script import ScriptOptions, drill_script

SCRIPTS = Path(__file__).parent / "scripts"
NAMES = ("cnn", "gan", "ema", "lm")
SEEDS = {"cnn": 13, "gan": 1, "ema": 2, "lm": 20}
"""Of two interruptions each, so that all four together meet kills in and out of tails, pairs and notices."""


def drill(path, **options):
    return drill_script([sys.executable, str(path)], ScriptOptions(stall_s=60.0, **options))


def planted(tmp_path, name, *changes):
    """Write a script of ours with a bug in it."""
    text = (SCRIPTS / f"{name}.py").read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path = tmp_path / f"{name}.py"
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", NAMES)
def test_a_script_differs_from_the_one_without_outlast_by_a_few_lines(name):
    """What a user adds to a script is the README's few lines: at most ten changed, counted as a diff counts."""
    plain, ours = ((SCRIPTS / folder / f"{name}.py").read_text().splitlines() for folder in ("plain", "."))
    changed = [line for line in difflib.ndiff(plain, ours) if line.startswith("+ ") and line.strip("+ ")]
    assert 0 < len(changed) <= 10, changed


@pytest.mark.parametrize("name", NAMES)
def test_a_script_that_is_protected_comes_through(name):
    """A CNN with augmentation, a GAN, an EMA trainer and a loop without a DataLoader: bit-identical, nothing repeated."""
    report = drill(SCRIPTS / f"{name}.py", interruptions=2, seed=SEEDS[name])
    assert report.passed, report.failures
    assert report.bit_identical
    assert (report.samples_repeated, report.samples_skipped) == (0, 0)
    assert len(report.interruptions) >= 2  # more where a kill came too late and was tried again
    assert not any("was not carried out" in note for note in report.notes)


def test_each_bug_of_a_script_is_named(tmp_path):
    """A state that was not handed in, a plain counter that drives the learning rate, and a bare enumerate: all three."""
    path = planted(
        tmp_path,
        "ema",
        ("model=self.model, ema=self.ema,", "model=self.model,"),
        (" scheduler=self.scheduler\n", "\n"),
        ("        for epoch in", "        seen = 0\n        for epoch in"),
        (
            "for batch, target in self.run.batches(self.train_loader):",
            "for _, (batch, target) in enumerate(self.run.batches(self.train_loader)):",
        ),
        (
            "                self.scheduler.step()\n",
            "                seen += 1\n                self.optimizer.param_groups[0]['lr'] = 1e-2 / (1 + seen)\n",
        ),
    )
    report = drill(path, interruptions=1, seed=1, steps=40)
    assert not report.passed and report.steps == 40
    assert any("learning rate" in text for text in report.failures)
    whys = [text for text in report.failures if text.startswith("why:")]
    assert any("ema (AveragedModel)" in text for text in whys), whys
    assert any("the variable seen ends as" in text for text in whys), whys
    assert any("enumerate(run.batches(...)) counts from 0" in text for text in whys), whys


@pytest.mark.parametrize(
    ("name", "says"),
    [("plain", "no outlast.Run was made"), ("no-loop", "no safe point was reached")],
)
def test_a_script_that_is_not_protected_is_told_why_at_once(name, says, tmp_path):
    """Without a Run, or without a loop of Run's, nothing is interrupted: the first undisturbed run says why."""
    path = SCRIPTS / "plain" / "lm.py"
    if name == "no-loop":
        path = planted(tmp_path, "lm", ("in run.steps(STEPS)", "in range(STEPS)"))
    report = drill(path, interruptions=1)
    assert not report.passed and not report.interruptions
    assert any(says in text for text in report.failures)


def test_a_script_that_is_not_reproducible_is_judged_on_its_order(tmp_path):
    """Weights that nobody seeds differ from run to run: said so, and held to order, position and steps lost."""
    path = planted(tmp_path, "ema", ("    Trainer().fit()", SEEDLESS))
    report = drill(path, interruptions=1, seed=1, steps=40)
    assert report.passed, report.failures
    assert report.bit_identical is None
    assert any("not reproducible by itself" in note for note in report.notes)


SEEDLESS = """\
    trainer = Trainer()
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(__import__("os").getpid())), alpha=0.01)
    trainer.fit()"""
