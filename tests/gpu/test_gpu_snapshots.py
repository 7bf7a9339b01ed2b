"""What lies on a GPU is fingerprinted, copied and left uncopied as what lies on the CPU is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from outlast.agent.protocol import UNCOPIED
from outlast.snapshot import stager
from outlast.snapshot.arena import PAGE_BYTES, Arena
from outlast.snapshot.fingerprint import fingerprints, launch
from outlast.snapshot.moves import Move
from outlast.snapshot.pinned import DeviceCopier, Pin
from outlast.snapshot.prints import BLOCK_WORDS, CHUNK_BYTES, fingerprint
from outlast.state.bits import DTYPES
from staging import bits

pytestmark = pytest.mark.gpu


def random(size: int) -> torch.Tensor:
    """Random bytes on the GPU."""
    return torch.randint(0, 256, (size,), dtype=torch.uint8, device="cuda")


@pytest.mark.filterwarnings("ignore:ComplexHalf")
@pytest.mark.parametrize("name", DTYPES)
def test_a_fingerprint_on_the_gpu_is_that_of_the_copied_bytes(name):
    """Of every dtype, in row-major order, aligned to a word or not."""
    dtype = DTYPES[name]
    base = random(6 * 100 * dtype.itemsize)
    base = (base % 2 if dtype is torch.bool else base).view(dtype).view(6, 100)
    for tensor in (base, base.t(), base[1:, 3:], base[::2, 1::3], base[0, :1], base[:0], base[2, 3]):
        expected = bits(tensor)
        assert fingerprints([tensor]) == [fingerprint(np.frombuffer(expected, np.uint8))]


@pytest.mark.parametrize("size", [4 * BLOCK_WORDS, CHUNK_BYTES - 3, 3 * CHUNK_BYTES + 12345])
def test_large_tensors_are_fingerprinted_by_chunk(size):
    """As the arena's half does it."""
    tensor = random(size)
    assert fingerprints([tensor]) == [fingerprint(np.frombuffer(bits(tensor), np.uint8))]


def test_a_fingerprint_is_of_what_is_queued_before_and_not_of_what_comes_after():
    """It stands in the stream where it was launched, between two changes."""
    x = torch.zeros(1 << 22, device="cuda")
    torch.cuda._sleep(100_000_000)
    x.add_(1.0)
    launched = launch([x])
    x.add_(1.0)
    torch.cuda.synchronize()
    expected = np.full(1 << 22, 1.0, np.float32).view(np.uint8)
    assert launched.values() == [fingerprint(expected)]


def test_small_large_and_strided_tensors_of_many_dtypes_are_staged_exactly():
    """Gathered or one by one, beside tensors of the CPU."""
    torch.manual_seed(0)
    entries = {}
    for number, dtype in enumerate((torch.float32, torch.bfloat16, torch.int64, torch.uint8, torch.bool)):
        for size in (0, 1, 3, 1000, 100_001):
            tensor = torch.randint(0, 2, (size,), device="cuda").to(dtype)
            entries[f"{number}/{size}"] = tensor
            entries[f"{number}/{size}/cpu"] = tensor.cpu()
    entries["strided"] = torch.randn(700, 900, device="cuda").t()
    entries["small and strided"] = torch.randn(20, 30, device="cuda").t()
    entries["scalar"] = torch.tensor(3.5, device="cuda")
    entries["conj"] = torch.randn(50_000, dtype=torch.complex64, device="cuda").conj()
    staged(entries)


def staged(entries):
    """Stage, and compare every byte."""
    planned = stager.layout(entries)
    arena = Arena.create(planned.size_bytes)
    stager.stage(entries, planned, arena)
    for box in planned.placed:
        found = bytes(arena.view[box.at : box.at + box.nbytes])
        assert found == bits(entries[box.name].cpu().reshape(-1)), box.name
    return arena


def test_thousands_of_small_tensors_are_staged_exactly():
    """More than one batch of them."""
    base = torch.randn(3000, 3001, device="cuda")
    staged({str(row): base[row, :row] for row in range(3000)})


def test_a_copy_waits_for_what_the_current_stream_computes():
    """Also where that is not the default stream."""
    stream = torch.cuda.Stream()
    x = torch.zeros(1 << 22, device="cuda")
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(200_000_000)
        x.add_(1.0)
        arena = staged({"x": x})
    assert np.frombuffer(arena.view, np.float32)[: 1 << 22].min() == 1.0


@pytest.mark.parametrize("pinned", [True, False])
def test_copies_into_pinned_and_unpinned_arenas_are_exact(pinned):
    """A pinned one is what torch takes for pinned; afterwards it is ordinary memory again."""
    x = torch.randn(5_000_000, device="cuda")
    arena = Arena.create(x.numel() * 4)
    target = torch.from_numpy(np.frombuffer(arena.view, np.float32))[: x.numel()]
    pin = Pin(arena, arena.size_bytes) if pinned else None
    if pin is not None:
        assert pin.is_pinned and target.is_pinned()
    DeviceCopier().begin([Move("x", x, target)]).wait()
    assert torch.equal(target, x.cpu())
    if pin is not None:
        pin.release()
        assert not target.is_pinned()
    arena.close()


def test_memory_that_cannot_be_pinned_disturbs_nobody():
    """The error stays in the thread that met it."""
    arena = Arena.create(PAGE_BYTES)
    first = Pin(arena, PAGE_BYTES)
    assert first.is_pinned
    second = Pin(arena, PAGE_BYTES)
    assert not second.is_pinned, "it is pinned already"
    assert torch.ones(3, device="cuda").sum().item() == 3
    torch.cuda.synchronize()
    second.release()
    first.release()


def test_memory_that_training_frees_under_a_copy_is_not_used_for_anything_else():
    """The copy holds what it reads."""
    copier = DeviceCopier()
    x = torch.full((1 << 24,), 1.0, device="cuda")
    arena = Arena.create(x.numel() * 4)
    target = torch.from_numpy(np.frombuffer(arena.view, np.float32))[: x.numel()]
    with torch.cuda.stream(copier.stream(x.device)):
        torch.cuda._sleep(200_000_000)
    copying = copier.begin([Move("x", x, target)])
    del x
    for _ in range(8):
        torch.full((1 << 24,), 7.0, device="cuda")
    copying.wait()
    assert (target == 1.0).all()


def test_frozen_weights_stay_uncopied_until_they_change(inside):
    """By their fingerprint; a merge copies them again, and every checkpoint is what the state was."""
    torch.manual_seed(0)
    base, lora = nn.Linear(2000, 2000).cuda().requires_grad_(False), nn.Linear(20, 20).cuda()
    run = inside({"base": base, "lora": lora})
    sent = []
    submit = run.link.submit
    run.link.submit = lambda snapshot: (sent.append(snapshot), submit(snapshot))

    def copied():
        return {box.name for box in sent[-1].tensors if box.at != UNCOPIED}

    for _ in range(3):
        with torch.no_grad():
            lora.weight.add_(1.0)
        assert run.on_store(run.save()) == run.live()
        run.saver.settle()
    assert not copied() & {"base/weight", "base/bias"}
    with torch.no_grad():
        base.weight[7, 7] += 1.0
    assert run.on_store(run.save()) == run.live()
    assert "base/weight" in copied()
    run.saver.settle()
    assert run.on_store(run.save()) == run.live()
    assert "base/weight" not in copied()
