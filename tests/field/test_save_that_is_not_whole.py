"""The save that is not whole."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import threading

import pytest
from torchless import commits, events, files

from launch import agent_of, eventually
from outlast._errors import NoWholeCheckpoint
from outlast.agent import link as link_module
from outlast.agent.protocol import Saved
from outlast.checkpoint.manifest import CHUNK_BYTES
from servers import Fault

OLD, NEW = random.Random(1).randbytes(100_000), random.Random(2).randbytes(100_000)


@pytest.fixture
def saved_twice(trainer, tmp_path):
    """A run with whole checkpoints of steps 1 and 2; returns its folder."""
    first = trainer()
    first.save_and_wait(1, OLD)
    first.save_and_wait(2, NEW)
    first.close()
    return tmp_path / "run"


def of_step(root, step):
    return next(folder for _, at, folder in commits(root) if at == step)


def segment_of(folder):
    """The first segment that a checkpoint's manifest names."""
    manifest = json.loads((folder / "rank-00000.json").read_bytes())
    return folder.parents[1] / manifest["tensors"][0]["slices"][0]["chunks"][0][0]


@pytest.mark.parametrize(
    "lacks", ["commit and manifest", "manifest", "segment", "end of a segment", "folder"]
)
def test_latest_directory_incomplete(trainer, saved_twice, tmp_path, lacks):
    """latest directory incomplete: resume crashes on it, or every rank hangs on it (transformers 35782, Automodel 3254)"""
    newest = of_step(saved_twice, 2)
    segment = segment_of(newest)
    if lacks == "segment":
        segment.unlink()
    elif lacks == "end of a segment":
        os.truncate(segment, segment.stat().st_size // 2)
    elif lacks == "folder":
        shutil.rmtree(newest)
    else:
        (newest / "rank-00000.json").unlink()
        if lacks == "commit and manifest":
            (newest / "commit.json").unlink()
    left = files(saved_twice)
    resumed = trainer()
    assert (resumed.offered, resumed.state) == (1, OLD)
    if lacks in ("manifest", "segment", "end of a segment"):
        assert newest.name in resumed.notes[0]
    assert left.items() <= files(saved_twice).items()


def test_latest_pointer_uploaded_before_its_files(trainer, bucket, monkeypatch):
    """ "latest" pointer uploaded before the files it points to (composer 3376)"""
    proxy, server, _ = bucket
    use(monkeypatch, server)
    proxy.plan()
    saving = trainer(server.url("pointer"))
    names = [saving.save_and_wait(step, state) for step, state in ((1, OLD), (2, NEW), (3, NEW))]
    puts = puts_of(proxy, "pointer")
    segments = []
    for name in names:
        ours = [key for key in puts if name in key.replace("/", "-")]
        manifest = next(i for i, key in enumerate(ours) if "rank-" in key)
        segments.append(ours[:manifest])
        assert all(key.startswith("segments/") for key in ours[:manifest]), ours
        assert ours[manifest:] == [f"checkpoints/{name}/rank-00000.json", f"checkpoints/{name}/commit.json"]
        assert len(ours) == len(set(ours)), "nothing is written twice: there is no pointer that moves"
    assert not [key for key in puts if "latest" in key]
    assert [bool(each) for each in segments] == [True, True, False], "the third refers to the second one's"
    proxy.plan(Fault(503, 2, r"PUT .*/segments/"))
    saving.save_and_wait(4, OLD[::-1])
    saving.close()
    puts = puts_of(proxy, "pointer")
    assert sum(key.startswith("segments/") for key in puts) == 3, "refused twice"
    manifest = next(i for i, key in enumerate(puts) if "rank-" in key)
    assert not [key for key in puts[manifest:] if key.startswith("segments/")]


@pytest.mark.parametrize("seed", range(3))
def test_a_flipped_bit(trainer, saved_twice, seed):
    """a flipped bit loads silently (torchtitan 4011)"""
    newest = of_step(saved_twice, 2)
    flip(segment_of(newest), random.Random(seed))
    resumed = trainer()
    assert (resumed.offered, resumed.state) == (1, OLD)
    assert newest.name in resumed.notes[0]


def test_a_flipped_bit_in_every_checkpoint(trainer, saved_twice):
    """a flipped bit loads silently: where no checkpoint is whole, each is named and nothing is trained on."""
    for step in (1, 2):
        flip(segment_of(of_step(saved_twice, step)), random.Random(step))
    left = files(saved_twice)
    with pytest.raises(NoWholeCheckpoint) as refused:
        trainer()
    assert all(of_step(saved_twice, step).name in str(refused.value) for step in (1, 2))
    assert left.items() <= files(saved_twice).items()


def test_a_flipped_bit_that_several_checkpoints_share(trainer, tmp_path):
    """a flipped bit loads silently: a chunk that later saves refer to is checked for each of them, and each is named."""
    shared = random.Random(3).randbytes(2 * CHUNK_BYTES)
    first = trainer()
    names = [first.save_and_wait(step, shared + own) for step, own in ((1, OLD), (2, NEW))]
    first.close()
    root = tmp_path / "run"
    assert segment_of(of_step(root, 1)) == segment_of(of_step(root, 2)), (
        "the second save refers to the first one's"
    )
    flip(segment_of(of_step(root, 2)), random.Random(4))
    left = files(root)
    with pytest.raises(NoWholeCheckpoint) as refused:
        trainer()
    assert all(name in str(refused.value) for name in names)
    assert left.items() <= files(root).items()


def test_logged_saved_before_it_was(trainer, bucket, monkeypatch, capfd):
    """123 of 128 shards saved, then a hang; logged "saved" before it was (Megatron-LM 1154, 1763)"""
    proxy, server, folder = bucket
    use(monkeypatch, server, patience_s=1)
    proxy.plan()
    saving = trainer(server.url("logged"))
    proxy.plan(Fault(503, 10**9, r"PUT .*/commit\.json"))
    number = saving.save(5, NEW)
    eventually(
        "two commits were refused", lambda: len([r for r in proxy.requests if "commit.json" in r]) >= 2
    )
    saving.link.add_events([{"kind": "metrics", "utc": "", "attempt": 1, "step": 5, "values": {}}])
    saving.link.flush_events()
    root = folder / "logged"
    assert commits(root) == []
    assert number not in saving.link._saved
    assert [e for e in events(root) if e["kind"] == "save"] == []
    said = capfd.readouterr().err
    assert "saved" not in said.replace("not saved", "")
    assert "durable" not in said.replace("not durable", "")
    proxy.plan()
    answer = saving.link.wait_saved(number, lambda: None, "it is saved")
    assert isinstance(answer, Saved)
    ((_, _, checkpoint),) = commits(root)
    assert answer.checkpoint == checkpoint.name
    saving.close()
    assert [(e["step"], e["checkpoint"]) for e in events(root) if e["kind"] == "save"] == [
        (5, checkpoint.name)
    ]


def test_upload_errors_only_logged(lab, bucket):
    """upload errors only logged: the run ends green with nothing in the bucket (training_hub 145)"""
    proxy, server, folder = bucket
    proxy.plan(Fault(403, 10**9, r"PUT .*/(segments|checkpoints)/"))
    script = lab.script(
        T_EPOCHS=1, OUTLAST_STORE=server.url("green"), OUTLAST_STORE_PATIENCE_S=1, **server.env
    )
    eventually("the last step is done", lambda: len(lab.of("step")) == 6, lab.said)
    refused = len(proxy.requests)
    eventually(
        "uploads are tried again", lambda: len([r for r in proxy.requests[refused:] if "PUT" in r]) > 1
    )
    assert script.pid in lab.processes()
    assert lab.of("end") == []
    assert commits(folder / "green" / "run") == []
    assert "step 6 is not durable" in script.says("not durable")
    proxy.plan()
    assert script.wait() == 0, lab.said()
    ((_, step, checkpoint),) = commits(folder / "green" / "run")
    assert step == 6
    assert json.loads((checkpoint / "commit.json").read_bytes())["finished"]


def test_upload_errors_until_the_machine_goes(lab, bucket):
    """upload errors only logged: what could not be uploaded in the grace time is not called done, and is tried on."""
    proxy, server, folder = bucket
    proxy.plan(Fault(403, 10**9, r"PUT .*/(segments|checkpoints)/"))
    script = lab.script(
        T_EPOCHS=1, T_GATES="step:3", OUTLAST_GRACE_S=0.5,
        OUTLAST_STORE=server.url("gone"), OUTLAST_STORE_PATIENCE_S=1, **server.env,
    )  # fmt: skip
    lab.at("step:3")
    script.kill(signal.SIGTERM)
    lab.open("step:3")
    script.says("step 3 did not become durable in time")
    assert commits(folder / "gone" / "run") == []
    proxy.plan()
    assert script.wait() == os.EX_TEMPFAIL, lab.said()
    assert [step for _, step, _ in commits(folder / "gone" / "run")] == [3]


def test_a_stuck_filesystem_hangs_the_save_and_with_it_the_job(lab):
    """a stuck filesystem hangs the collective save and with it the job (nvidia-resiliency-ext 373)"""
    script = lab.script(T_GATES="step:2", OUTLAST_SAVE_EVERY="1 steps")
    lab.at("step:2")
    agent = agent_of(script.pid)
    os.kill(agent, signal.SIGSTOP)
    lab.open("step:2")
    eventually("training goes on to its end", lambda: len(lab.of("tail-end")) == 3, lab.said)
    assert len(lab.of("step")) == 18
    assert lab.of("end") == []
    os.kill(agent, signal.SIGCONT)
    assert script.wait() == 0, lab.said()
    newest = lab.commits()[-1]
    assert (newest["step"], newest["finished"]) == (18, True)


def test_a_stuck_filesystem_and_a_notice(lab):
    """a stuck filesystem hangs the [...] save and with it the job: a notice's deadline ends every wait for it."""
    script = lab.script(T_GATES="step:18", OUTLAST_SAVE_EVERY="1 steps", OUTLAST_GRACE_S=0.5, T_EPOCHS=3)
    lab.at("step:18")
    agent = agent_of(script.pid)
    os.kill(agent, signal.SIGSTOP)
    lab.open("step:18")
    eventually("the last tail is over", lambda: len(lab.of("tail-end")) == 3, lab.said)
    script.kill(signal.SIGTERM)
    script.says("step 18 did not become durable in time")
    os.kill(agent, signal.SIGCONT)
    assert script.wait() == os.EX_TEMPFAIL, lab.said()


def test_a_stuck_filesystem_is_named_where_it_is_waited_for(trainer, monkeypatch):
    """a stuck filesystem hangs the [...] save and with it the job: whoever waits for it says so, and for what."""
    said: list[str] = []
    monkeypatch.setattr(link_module, "say", said.append)
    monkeypatch.setattr(link_module, "_SAY_WAITING_S", 0.2)
    stuck = trainer()
    stuck.stop_agent()
    stuck.save(1, OLD, index=0)
    stuck.save(2, NEW, index=1)
    waits = {
        "an earlier save is durable": lambda: stuck.link.wait_free((0, 1), lambda: None),
        "number 2 is saved": lambda: stuck.link.wait_saved(2, lambda: None, "number 2 is saved"),
        "the last save is durable": lambda: stuck.link.close("finished"),
    }
    waiting = []
    for what, wait in waits.items():
        waiting.append(threading.Thread(target=wait))
        waiting[-1].start()
        eventually(
            "it says what it waits for", lambda what=what: [s for s in said if f"waiting until {what}" in s]
        )
    assert all(thread.is_alive() for thread in waiting)
    stuck.continue_agent()
    for thread in waiting:
        thread.join()


def puts_of(proxy, prefix):
    """Keys of the objects of a run that were put, in the order in which that began."""
    puts = [request for request in proxy.requests if request.startswith("PUT")]
    return [request.split("?")[0].split(f"/{prefix}/")[1] for request in puts]


def flip(path, rng):
    """Turn round one bit of a file."""
    data = bytearray(path.read_bytes())
    at = rng.randrange(len(data))
    data[at] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def use(monkeypatch, server, patience_s=None):
    """Point the usual environment variables at a server."""
    for name, value in server.env.items():
        monkeypatch.setenv(name, value)
    if patience_s is not None:
        monkeypatch.setenv("OUTLAST_STORE_PATIENCE_S", str(patience_s))
