"""Starts that must not train: each ends with the code that says what to do, names why, and changes nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from launch import TRAIN, Lab, history
from servers import Fault, FaultyProxy, S3Server, faulty_proxy, rclone_s3, unused_endpoint

CONFIG, STORE_AWAY = 78, 74
END = ("digest", "rand", "steps", "epochs_stepped", "best")


def test_a_model_that_does_not_fit_is_refused_naming_every_entry_and_the_run(lab: Lab) -> None:
    """Missing, extra and misshapen entries, all at once; not one byte on the store changes."""
    assert lab.script(T_EPOCHS=1).wait() == 0
    before = lab.bytes_on_store()
    started = lab.script(T_EPOCHS=2, T_MODEL="wide")
    assert started.wait() == CONFIG, lab.said()
    for line in (
        "model/gain: saved float32 [], missing here",
        "model/layers.0.weight: saved float32 [16, 8], here float32 [17, 8]",
        "model/layers.2.weight: saved float32 [1, 16], here float32 [1, 17]",
        "model/extra.weight: here float32 [2, 2], not saved",
        "model/extra.bias: here float32 [2], not saved",
    ):
        assert line in started.text
    assert f"run {lab.commits()[0]['run_id']}" in started.text
    assert f"run file://{lab.folder}/store/run" in started.text
    assert lab.bytes_on_store() == before
    assert len(lab.of("run")) == 1


def test_resume_must_with_nothing_there_is_an_error(lab: Lab) -> None:
    """And no run has begun by it."""
    started = lab.script(OUTLAST_RESUME="must")
    assert started.wait() == CONFIG
    assert 'resume="must"' in started.text
    assert lab.bytes_on_store() == {}


def test_a_limit_of_what_may_be_lost_beside_an_interval_is_refused(lab: Lab) -> None:
    """Before anything is begun: one of the two could not be kept."""
    source = "import torch, outlast\noutlast.Run('run', save_every='1h', max_lost_work='5m', m=torch.nn.Linear(1, 1))\n"
    started = lab.source(source)
    assert started.wait() == CONFIG
    assert "max_lost_work is '5m'" in started.text
    assert lab.bytes_on_store() == {}


def test_the_disk_of_a_preemptible_machine_is_refused_unless_the_script_allows_it(lab: Lab) -> None:
    """Before anything is claimed, and the error names the option; with it the same start trains."""
    lab.env["OUTLAST_PREEMPTIBLE"] = "1"
    source = (
        "import torch, outlast\n"
        "run = outlast.Run('run', {option}m=torch.nn.Linear(1, 1))\n"
        "for _ in run.epochs(1): pass\n"
    )
    started = lab.source(source.format(option=""))
    assert started.wait() == CONFIG, lab.said()
    assert "allow_local_store=True" in started.text
    assert lab.bytes_on_store() == {}
    assert lab.source(source.format(option="allow_local_store=True, ")).wait() == 0, lab.said()
    assert lab.commits()[-1]["finished"]


def test_two_runs_in_one_process_are_refused(lab: Lab) -> None:
    """They would take each other's signals and exit."""
    source = "import torch, outlast\nm = torch.nn.Linear(1, 1)\nouter = outlast.Run('a', m=m)\noutlast.Run('b', m=m)\n"
    started = lab.source(source)
    assert started.wait() == CONFIG
    assert "one run per process" in started.text


def test_a_second_pass_over_batches_in_one_epoch_is_refused(lab: Lab) -> None:
    """What lies between the two would run again after a resume."""
    source = (
        "import torch, outlast\n"
        "run = outlast.Run('run', m=torch.nn.Linear(1, 1))\n"
        "loader = torch.utils.data.DataLoader(list(range(4)))\n"
        "for epoch in run.epochs(1):\n"
        "    for _ in range(2):\n"
        "        for batch in run.batches(loader):\n"
        "            pass\n"
    )
    started = lab.source(source)
    assert started.wait() == CONFIG
    assert "a second run.batches in epoch 0" in started.text


def test_a_finished_run_trains_nothing_and_goes_on_when_asked_for_more(lab: Lab, tmp_path_factory) -> None:
    """It says that it is finished and holds the final state; with more epochs it is as if it had never stopped."""
    assert lab.script().wait() == 0
    before = [commit["folder"] for commit in lab.commits()]
    again = lab.script()
    assert again.wait() == 0, lab.said()
    assert "this run is finished" in again.text
    assert lab.of("step", again.pid) == []
    first, second = lab.of("end")
    assert {name: second[name] for name in END} == {name: first[name] for name in END}
    assert [commit["folder"] for commit in lab.commits()] == before
    more = lab.script(T_EPOCHS=4)
    assert more.wait() == 0, lab.said()
    whole = Lab(tmp_path_factory.mktemp("whole"), lab.zygote)
    assert whole.script(T_EPOCHS=4).wait() == 0
    assert history(lab.records) == history(whole.records)
    assert {name: lab.of("end")[-1][name] for name in END} == {name: whole.of("end")[0][name] for name in END}


def test_what_differs_from_the_last_attempt_is_named_at_the_resume(lab: Lab) -> None:
    """Learning rate, batch size, threads and the script itself; with the promise that is left."""
    first = lab.script("--lr", "0.01", T_EPOCHS=1)
    assert first.wait() == 0
    script = lab.folder / "train.py"
    script.write_text(TRAIN.read_text() + "\n# changed\n")
    second = lab.script("--lr", "0.02", "--batch", "6", path=script, T_EPOCHS=2, T_THREADS="2")
    code = second.wait()
    changed = [line for line in second.text.splitlines() if "changed since the last attempt" in line]
    told = "\n".join(changed)
    assert "0.01 -> 0.02" in told, second.text
    assert "batch" in told, second.text
    assert "4 -> 6" in told, second.text
    assert "threads" in told, second.text
    assert "1 -> 2" in told, second.text
    assert "code" in told or "script" in told, second.text
    assert code == 0, second.text


def flip(path: Path) -> None:
    """Change one bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.chmod(0o600)
    path.write_bytes(data)


def segments(lab: Lab, step: int) -> list[Path]:
    """The segments of the checkpoint of a step."""
    return [
        p
        for p in (lab.folder / "store" / "run" / "segments").rglob("*")
        if p.is_file() and f"{step:012d}" in str(p)
    ]


def test_a_damaged_newest_checkpoint_is_named_and_an_older_one_used(lab: Lab) -> None:
    """Not silently: the fault, the checkpoint and what is used instead are said."""
    first = lab.script(T_GATES="step:3,step:9", T_SAVE="step:2")
    lab.at("step:3")
    lab.committed(2)
    lab.open("step:3")
    lab.at("step:9")
    first.kill(15)
    lab.committed(6)
    lab.open("step:9")
    assert first.wait() == 75
    assert [commit["step"] for commit in lab.commits()] == [2, 6, 9], (
        "6 is what was held when the notice came"
    )
    for segment in segments(lab, 9):
        flip(segment)
    second = lab.script()
    assert second.wait() == 0, lab.said()
    older, newest = [commit["folder"].name for commit in lab.commits()][1:3]
    assert f"damaged, not used: {newest}" in second.text
    assert f"resuming from {older}" in second.text
    assert lab.of("run")[1]["step"] == 6


def test_when_every_checkpoint_is_damaged_each_is_named_and_none_deleted(lab: Lab) -> None:
    """Never a fresh start over what may still be mended."""
    first = lab.script(T_GATES="step:3", T_SAVE="step:2")
    lab.at("step:3")
    lab.committed(2)
    first.kill(15)
    lab.open("step:3")
    assert first.wait() == 75
    for step in (2, 3):
        for segment in segments(lab, step):
            flip(segment)
    before = lab.bytes_on_store()
    second = lab.script()
    assert second.wait() == CONFIG, lab.said()
    for commit in lab.commits():
        assert commit["folder"].name in second.text
    after = lab.bytes_on_store()
    assert {key: after.get(key) for key in before} == before
    assert len(lab.of("run")) == 1


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[FaultyProxy, S3Server, Path]]:
    """A bucket behind a proxy, and the folder that holds its objects as files."""
    folder = tmp_path_factory.mktemp("bucket")
    with rclone_s3(folder) as server, faulty_proxy(server) as (proxy, seen):
        yield proxy, seen, folder / "rclone" / seen.bucket


FAULTS = {
    "503": Fault(503, 10**6),
    "503 while tensors are read": Fault(503, 10**6, r"GET .*segments"),
    "no answer": Fault("hang", 10**6, r"GET .*commit"),
    "no permission": Fault(403, 10**6, r"GET", body="<Error><Code>AccessDenied</Code></Error>"),
}


def test_a_store_that_fails_while_resuming_is_never_a_step_back(
    lab: Lab, bucket: tuple[FaultyProxy, S3Server, Path]
) -> None:
    """Asked again, then 74: no older checkpoint, no fresh start, nothing committed; afterwards the newest is resumed."""
    proxy, server, root = bucket
    lab.env.update({**server.env, "OUTLAST_STORE": f"s3://{server.bucket}/runs"})
    first = lab.script(T_GATES="step:9", T_SAVE="step:2")
    lab.at("step:9")
    first.kill(15)
    lab.open("step:9")
    assert first.wait() == 75, lab.said()
    commits = sorted(root.rglob("commit.json"))
    assert len(commits) >= 2
    for what, fault in FAULTS.items():
        proxy.plan(fault)
        failed = lab.script(OUTLAST_STORE_PATIENCE_S="1.5")
        assert failed.wait() == STORE_AWAY, f"{what}: {failed.text}"
        faulty = [request for request in proxy.requests if re.search(fault.pattern, request)]
        assert len(faulty) > (what != "no permission"), f"{what} was not asked again: {proxy.requests}"
        assert sorted(root.rglob("commit.json")) == commits, what
        assert len(lab.of("run")) == 1, what
    proxy.plan()
    second = lab.script()
    assert second.wait() == 0, lab.said()
    assert lab.of("run")[1]["step"] == 9
    assert len(history(lab.records)) == len(lab.of("step")) == 18


def test_an_endpoint_at_which_nobody_listens_is_74(lab: Lab) -> None:
    """With the address, so that one sees the mistake."""
    endpoint = unused_endpoint()
    started = lab.script(
        OUTLAST_STORE="s3://bucket/runs", AWS_ENDPOINT_URL=endpoint, AWS_ACCESS_KEY_ID="a",
        AWS_SECRET_ACCESS_KEY="b", OUTLAST_STORE_PATIENCE_S="0.6",
    )  # fmt: skip
    assert started.wait() == STORE_AWAY
    assert "s3://bucket/runs" in started.text
    assert lab.of("run") == []
