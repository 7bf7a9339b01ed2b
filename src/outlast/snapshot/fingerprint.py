"""Fingerprints of tensors where they lie: on a GPU, those of `prints.py` at the speed of its memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from outlast.snapshot.prints import BLOCK_WORDS, CHUNK_BLOCKS, CHUNK_BYTES, WORD_BYTES, Print, factors
from outlast.state.bits import as_integers, plain

_factors: dict[torch.device, tuple[torch.Tensor, torch.Tensor]] = {}
"""The factors on each device: half a megabyte."""


@dataclass(frozen=True)
class Launched:
    """Fingerprints that a device may still be computing."""

    parts: tuple[tuple[torch.Tensor, tuple[tuple[int, int], ...]], ...]
    """For each device a host tensor of fingerprints, and for each of its tensors (number, chunks)."""

    def values(self) -> list[Print]:
        """Return them in the order of the tensors.

        Only once the streams that were current at the launch have come so far: nothing here waits for them.
        """
        found: dict[int, Print] = {}
        for host, members in self.parts:
            chunks = iter(host.tolist())
            for number, count in members:
                found[number] = tuple(next(chunks) for _ in range(count))
        return [found[number] for number in sorted(found)]


def launch(tensors: Sequence[torch.Tensor]) -> Launched:
    """Start the fingerprints of tensors on the current stream of each one's device, after what is queued there.

    Of the bits in row-major order. Takes 32 MiB of a device at a time, and a copy of a tensor that is not contiguous.
    """
    members: dict[torch.device, list[int]] = {}
    for number, tensor in enumerate(tensors):
        members.setdefault(tensor.device, []).append(number)
    parts = []
    with torch.no_grad():
        for device, numbers in members.items():
            sizes = [tensors[number].numel() * tensors[number].element_size() for number in numbers]
            counts = [-(-size // CHUNK_BYTES) for size in sizes]
            on_gpu = device.type == "cuda"
            host = torch.empty(sum(counts), dtype=torch.int64, device="cpu", pin_memory=on_gpu)
            host.copy_(_on_device([tensors[number] for number in numbers], sum(counts)), non_blocking=True)
            parts.append((host, tuple(zip(numbers, counts, strict=True))))
    return Launched(tuple(parts))


def fingerprints(tensors: Sequence[torch.Tensor]) -> list[Print]:
    """Fingerprint tensors, and wait for it."""
    launched = launch(tensors)
    for device in {tensor.device for tensor in tensors if tensor.device.type == "cuda"}:
        torch.cuda.current_stream(device).synchronize()
    return launched.values()


def _on_device(tensors: Sequence[torch.Tensor], chunks: int) -> torch.Tensor:
    """Compute the fingerprints of tensors of one device."""
    device = tensors[0].device
    if device not in _factors:
        words, blocks = factors()
        _factors[device] = (torch.from_numpy(words).to(device), torch.from_numpy(blocks).to(device))
    of_words, of_blocks = _factors[device]
    sums = torch.zeros((chunks, CHUNK_BLOCKS), dtype=torch.int64, device=device)
    row = 0
    for tensor in tensors:
        dense = as_integers(plain(tensor)).contiguous()
        flat = dense.as_strided((dense.numel(),), (1,))  # one element may stand there with any stride
        step = CHUNK_BYTES // flat.element_size()
        for at in range(0, flat.numel(), step):
            _add_up(_words(flat[at : at + step]), of_words, sums[row])
            row += 1
    return (sums * of_blocks).sum(1)


def _add_up(words: torch.Tensor, of_words: torch.Tensor, sums: torch.Tensor) -> None:
    """Put the sum of each block of a chunk into `sums`."""
    whole = words.numel() // BLOCK_WORDS
    rest = words.numel() - whole * BLOCK_WORDS
    if whole:
        torch.sum(words[: whole * BLOCK_WORDS].view(whole, BLOCK_WORDS) * of_words, 1, out=sums[:whole])
    if rest:
        torch.sum(words[whole * BLOCK_WORDS :] * of_words[:rest], 0, out=sums[whole])


def _words(flat: torch.Tensor) -> torch.Tensor:
    """Look at integers of any width as words; what does not begin or end at one is copied and filled up with zeros."""
    per_word = max(WORD_BYTES // flat.element_size(), 1)
    if flat.numel() % per_word or flat.storage_offset() % per_word or flat.data_ptr() % WORD_BYTES:
        filled = flat.new_zeros(-(-flat.numel() // per_word) * per_word)
        filled[: flat.numel()] = flat
        flat = filled
    return flat.view(torch.int32)
