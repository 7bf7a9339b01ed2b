"""`outlast fit`: the question before launch, answered from figures that are given, or from what a run has measured."""

from __future__ import annotations

import json

import pytest

from field.torchless import Trainer, events
from outlast._errors import ConfigError
from outlast.cli.fit import fit


def asked(capsys, *arguments, **options):
    """The exit status, and what was printed."""
    with pytest.raises(SystemExit) as ended:
        fit(*arguments, **options)
    return ended.value.code, capsys.readouterr().out


def test_the_answer_is_a_sentence_with_its_numbers(capsys):
    """And an exit status that a script can go by."""
    said = asked(capsys, state="14GB", rate="0.9GB/s", notice="30s")
    assert said == (0, "14 GB at 900 MB/s needs 16 s; the notice is 30 s: fits\n")
    code, text = asked(capsys, state="14GB", rate="0.9GB/s", notice="15")
    assert (code, text.split(": ")[-1]) == (1, "does not fit\n")


def test_json_has_the_numbers(capsys):
    """Bytes, seconds and bytes per second."""
    code, text = asked(capsys, state="1GB", rate="100MB/s", notice="2m", json=True)
    assert code == 0
    found = json.loads(text)
    assert {name: found[name] for name in ("fits", "needs_s", "notice_s", "bytes", "bytes_per_s")} == {
        "fits": True,
        "needs_s": 10.0,
        "notice_s": 120.0,
        "bytes": 10**9,
        "bytes_per_s": 10**8,
    }


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"state": "14GB"}, "--rate is not given"),
        ({"rate": "1GB/s"}, "--state is not given"),
        ({"state": "much", "rate": "1GB/s"}, "--state is 'much'"),
        ({"state": "14GB", "rate": "1GB"}, "--rate is '1GB'"),
    ],
)
def test_what_is_missing_or_no_figure_is_named(options, says):
    """With what is expected."""
    with pytest.raises(ConfigError, match=says):
        fit(notice="30s", **options)


def test_a_run_says_what_its_saves_wrote_and_how_fast(tmp_path, capsys, monkeypatch):
    """The slowest of the last ones, as its ledger holds it; what is given goes before."""
    for name in ("OUTLAST_AGENT", "OUTLAST_LAUNCH_ID", "OUTLAST_NOTICE_FILE", "OUTLAST_GRACE_S"):
        monkeypatch.delenv(name, raising=False)
    url = f"file://{tmp_path}/run"
    trainer = Trainer(url)
    trainer.join()
    with pytest.raises(ConfigError, match="no save.*--state and --rate"):
        fit(url, notice="30s")
    for step in (1, 2):
        trainer.save_and_wait(step, bytes([step]) * 200_000)
    trainer.close("finished")
    saves = [record for record in events(tmp_path / "run") if record["kind"] == "save" and record["seconds"]]
    slowest = max(saves, key=lambda save: save["seconds"])
    code, text = asked(capsys, url, notice="1000s", json=True)
    found = json.loads(text)
    assert (code, found["bytes"]) == (0, slowest["bytes_written"])
    assert found["needs_s"] == pytest.approx(slowest["seconds"])
    given = json.loads(asked(capsys, url, notice="30s", state="10GB", rate="1GB/s", json=True)[1])
    assert (given["bytes"], given["needs_s"]) == (10**10, 10.0)
