"""Small tensors of a device are gathered many at a time; what needs a device is in tests/gpu."""

from __future__ import annotations

import torch

from outlast.snapshot import pinned
from outlast.snapshot.moves import Move
from staging import bits


def test_gathered_copies_arrive_where_they_belong(monkeypatch):
    """Of several dtypes and strides, in batches of a bound; nothing else is written."""
    monkeypatch.setattr(pinned, "_BATCH_BYTES", 3000)
    torch.manual_seed(0)
    sources = [torch.randint(-99, 99, (n, 7), dtype=torch.int32).t() for n in range(40)]
    sources += [torch.randint(0, 99, (n,), dtype=torch.uint8) for n in range(40)]
    targets = [torch.full(source.shape, 77, dtype=source.dtype) for source in sources]
    moves = [Move(str(n), *pair) for n, pair in enumerate(zip(sources, targets, strict=True))]
    batches = list(pinned._batches(moves))
    assert sorted(int(move.name) for batch in batches for move in batch) == list(range(80))
    for batch in batches:
        assert len({move.source.dtype for move in batch}) == 1
        assert sum(move.nbytes for move in batch[:-1]) < 3000
        pinned._copy_gathered(batch)
    assert len(batches) > 4
    assert [bits(target) for target in targets] == [bits(source) for source in sources]
