"""What a file that leaves Outlast holds: read by the packages of others, compared with the state it came from."""

from __future__ import annotations

import collections
import datetime as dt
import io
import json
import tracemalloc

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import outlast
from outlast._errors import ConfigError, ObjectDamaged
from outlast.checkpoint import export, writer
from outlast.checkpoint.catalog import load
from outlast.checkpoint.export import write_safetensors
from outlast.checkpoint.writer import commit, write_rank
from outlast.state.bits import DTYPES, dtype_name
from outlast.state.capture import capture_states
from outlast.state.table import TensorTable
from outlast.state.torch_file import write_torch
from outlast.state.tree import encode
from saving import RUN_ID, UTC, MemoryStore, header, id_of, lay_out
from staging import bits, fingerprint

KIB = 1024


class Net(nn.Module):
    """Tied weights, a buffer of each kind, bf16 beside fp32, a scalar and an empty one."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(300, 64)
        self.body = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64))
        self.head = nn.Linear(64, 300, bias=False)
        self.head.weight = self.embed.weight
        self.short = nn.Parameter(torch.randn(7, 3).bfloat16())
        self.gain = nn.Parameter(torch.tensor(2.0))
        self.register_buffer("nothing", torch.empty(0, 5))
        self.register_buffer("mask", torch.ones(4), persistent=False)

    def forward(self, x):
        return self.head(self.body(self.embed(x))) * self.gain


def save(store, states, ranks=1, variables=None, split=None):
    """Save states over ranks, every tensor cut along `split(name, shape)` (a dimension, or None), and load it."""
    id, table = id_of(9), TensorTable()
    tree = {"states": capture_states(states, table), "vars": encode(variables or {}, "vars", table)}
    for rank in range(ranks):
        parts = []
        for name, tensor in table.entries.items():
            shape, dim = tuple(tensor.shape), split(name, tensor.shape) if split else None
            offset, part = [0] * len(shape), tensor
            if dim is not None:
                parts_of = list(torch.tensor_split(tensor, ranks, dim))
                offset[dim] = sum(one.shape[dim] for one in parts_of[:rank])
                part = parts_of[rank]
            elif rank:
                continue
            if part.numel() or not rank:
                parts.append(
                    (name, dtype_name(tensor.dtype), shape, tuple(offset), tuple(part.shape), bits(part))
                )
        boxes, arena = lay_out(parts)
        changes = {"rank": rank, "world_size": ranks, "tree": tree, "position": {"epoch": 2, "step": 9}}
        write_rank(store, header(id, **changes), boxes, arena, saved_utc=UTC)
    assert commit(store, id, RUN_ID, ranks)
    return load(store, id)


def exported(store, loaded, state=None):
    file = io.BytesIO()
    done = write_safetensors(store, loaded, state, file)
    return done, file.getvalue()


def torch_file(store, loaded, *states):
    file = io.BytesIO()
    done = write_torch(store, loaded, id_of(9).name, states, file)
    assert torch.serialization.get_unsafe_globals_in_checkpoint(io.BytesIO(file.getvalue())) == []
    return done, torch.load(io.BytesIO(file.getvalue()), weights_only=True)


def scheduler_of(optimizer):
    return torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 5])


@pytest.fixture
def trained():
    """A model and AdamW after two steps."""
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, amsgrad=True)
    scheduler = scheduler_of(optimizer)
    for _ in range(2):
        model(torch.randint(300, (8,))).square().mean().backward()
        optimizer.step()
        scheduler.step()
    return {"model": model, "optimizer": optimizer, "scheduler": scheduler}


class TestSafetensors:
    """The weights of a model."""

    def test_holds_the_state_dict_of_the_model(self, trained):
        """The same names, shapes, dtypes and bits, a tied weight under each of its names; a new model takes it."""
        store = MemoryStore()
        done, data = exported(store, save(store, trained))
        found = safetensors.torch.load(data)
        assert found.keys() == trained["model"].state_dict().keys()
        assert fingerprint(dict(found)) == fingerprint(dict(trained["model"].state_dict()))
        assert (done.states, done.tensors, done.left_out) == (("model",), len(found), ())
        Net().load_state_dict(found)

    def test_a_wrapper_leaves_no_trace_in_the_names(self, trained):
        """A model that stands in a wrapper is exported by the names that it has without."""
        store = MemoryStore()
        _, data = exported(store, save(store, {"model": nn.DataParallel(trained["model"])}))
        assert safetensors.torch.load(data).keys() == trained["model"].state_dict().keys()

    def test_says_where_it_comes_from(self, trained, tmp_path):
        """The step and the run stand in the header, and `format` as other readers want it."""
        store = MemoryStore()
        _, data = exported(store, save(store, trained))
        (tmp_path / "x.safetensors").write_bytes(data)
        with safetensors.safe_open(tmp_path / "x.safetensors", "pt") as file:
            assert file.metadata() == {"format": "pt", "step": "9", "outlast_run_id": RUN_ID}

    @pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
    @pytest.mark.parametrize("name", sorted(DTYPES))
    def test_every_dtype_comes_out_as_it_was_or_is_refused_by_name(self, name):
        """What the package itself cannot read is an error that names the tensor and the way out."""
        store, model = MemoryStore(), nn.Module()
        raw = torch.arange(48, dtype=torch.uint8).reshape(3, 16)
        value = raw.bool() if name == "bool" else raw.view(DTYPES[name])
        model.register_buffer("odd", torch.ones(3, dtype=torch.uint8))
        model.register_buffer("it", value)
        loaded = save(store, {"model": model})
        if name in ("complex32", "complex128", "float8_e8m0fnu"):
            with pytest.raises(ConfigError, match=rf"^it has dtype {name}.*\.pt"):
                exported(store, loaded)
        else:
            found = safetensors.torch.load(exported(store, loaded)[1])["it"]
            assert (found.dtype, found.shape, bits(found)) == (value.dtype, value.shape, bits(value))
        assert bits(torch_file(store, loaded)[1]["model"]["it"]) == bits(value)

    def test_several_models_are_a_choice(self, trained):
        """A file is one model's: with two, the error names them; what is no module, or is not there, is refused."""
        store = MemoryStore()
        loaded = save(store, {**trained, "teacher": nn.Linear(2, 2)})
        with pytest.raises(ConfigError, match=r"2 modules \(model, teacher\).*--state"):
            exported(store, loaded)
        assert safetensors.torch.load(exported(store, loaded, "teacher")[1]).keys() == {"weight", "bias"}
        with pytest.raises(ConfigError, match=r"optimizer is no module.*\.pt"):
            exported(store, loaded, "optimizer")
        with pytest.raises(ConfigError, match=r"no state ema; it holds model, optimizer"):
            exported(store, loaded, "ema")
        with pytest.raises(ConfigError, match="no module"):
            exported(store, save(MemoryStore(), {"optimizer": trained["optimizer"]}))

    def test_what_is_no_tensor_is_left_out_and_named(self):
        """Extra state, and a lazy layer that has seen no input."""

        class Extra(nn.Linear):
            def get_extra_state(self):
                return {"calls": 3}

            def set_extra_state(self, state):
                pass

        store = MemoryStore()
        loaded = save(store, {"model": nn.ModuleList([Extra(2, 2), nn.LazyLinear(2)])})
        done, data = exported(store, loaded)
        assert safetensors.torch.load(data).keys() == {"0.weight", "0.bias"}
        assert [line.split()[0] for line in done.left_out] == ["0._extra_state", "1.weight", "1.bias"]

    @settings(max_examples=60, deadline=None)
    @given(
        shapes=st.lists(
            st.lists(st.integers(0, 23), min_size=0, max_size=3).map(tuple), min_size=1, max_size=5
        ),
        ranks=st.integers(1, 3),
        dims=st.lists(st.integers(-1, 2), min_size=5, max_size=5),
        chunk_bytes=st.sampled_from([64, 256, 1024]),
        chunks=st.integers(1, 4),
    )
    def test_shards_are_put_together_whatever_the_window(self, shapes, ranks, dims, chunk_bytes, chunks):
        """Cut over ranks along any dimension, in chunks and windows of any size: the bytes are those of the whole."""
        store, model = MemoryStore(), nn.Module()
        for number, shape in enumerate(shapes):
            model.register_buffer(f"b{number}", torch.randn(shape))
        with pytest.MonkeyPatch.context() as patch:
            for module in (writer, export):
                patch.setattr(module, "CHUNK_BYTES", chunk_bytes)
            patch.setattr(export, "WINDOW_BYTES", chunks * chunk_bytes)

            def split(name, shape):
                dim = dims[int(name[-1])]
                return dim if ranks > 1 and 0 <= dim < len(shape) else None

            _, data = exported(store, save(store, {"model": model}, ranks, split=split))
        assert fingerprint(dict(safetensors.torch.load(data))) == fingerprint(dict(model.state_dict()))

    def test_memory_is_a_window_and_each_chunk_is_read_once(self, monkeypatch, tmp_path):
        """8 MiB of weights through windows of 256 KiB: no more memory than a few of them, and no byte read twice."""
        for module in (writer, export):
            monkeypatch.setattr(module, "CHUNK_BYTES", 64 * KIB)
        monkeypatch.setattr(export, "WINDOW_BYTES", 256 * KIB)
        store, model = MemoryStore(), nn.Linear(1027, 2041)
        loaded = save(store, {"model": model})
        read = []
        monkeypatch.setattr(
            MemoryStore,
            "read_into",
            lambda self, key, at, target: (
                read.append(len(target)),
                target.__setitem__(slice(None), memoryview(self.objects[key])[at : at + len(target)]),
            ),
        )
        with (tmp_path / "model").open("wb") as file:
            tracemalloc.start()
            write_safetensors(store, loaded, None, file)
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert peak < 1024 * KIB
        assert sum(read) == 4 * (1027 * 2041 + 2041)
        found = safetensors.torch.load((tmp_path / "model").read_bytes())
        assert torch.equal(found["weight"], model.weight)


class TestTorch:
    """All states, for plain torch."""

    def test_holds_what_every_state_dict_returned(self, trained):
        """`weights_only=True` loads it; each state has the types and bits that it had."""
        store = MemoryStore()
        loaded = save(store, trained, variables={"best": 0.5, "seen": [1, 2]})
        done, found = torch_file(store, loaded)
        for name, state in trained.items():
            assert fingerprint(dict(found[name])) == fingerprint(dict(state.state_dict())), name
        assert found["outlast"] == {
            "run_id": RUN_ID,
            "checkpoint": id_of(9).name,
            "step": 9,
            "epoch": 2,
            "vars": {"best": 0.5, "seen": [1, 2]},
        }
        assert (done.states, done.left_out) == (("model", "optimizer", "scheduler"), ())

    def test_tied_weights_are_one_memory_in_the_file(self, trained):
        """Written once, and tied when they come back."""
        store = MemoryStore()
        _, found = torch_file(store, save(store, trained), "model")
        assert found["model"]["embed.weight"].data_ptr() == found["model"]["head.weight"].data_ptr()
        assert found.keys() == {"outlast", "model"}

    def test_no_tensor_drags_another_ones_memory_along(self, trained):
        """The file is as large as the tensors: none is a look at a larger memory."""
        store, file = MemoryStore(), io.BytesIO()
        write_torch(store, save(store, trained), id_of(9).name, ["model"], file)
        nbytes = sum(t.numel() * t.element_size() for t in trained["model"].parameters())
        assert len(file.getvalue()) < nbytes + 16 * KIB

    def test_windows_of_any_size_read_the_same(self, trained, monkeypatch):
        """One tensor at a time, or all at once."""
        monkeypatch.setattr("outlast.state.torch_file.WINDOW_BYTES", 100)
        store = MemoryStore()
        _, found = torch_file(store, save(store, trained))
        assert fingerprint(dict(found["model"])) == fingerprint(dict(trained["model"].state_dict()))
        assert fingerprint(found["optimizer"]) == fingerprint(trained["optimizer"].state_dict())

    def test_what_plain_torch_refuses_is_named(self, trained):
        """Types that `weights_only=True` does not know: the path, and how to export the rest. In `run.vars`: left out."""

        for value, said in (
            (collections.deque([1]), "deque"),
            (collections.defaultdict(int), "defaultdict"),
            (frozenset({1}), "frozenset"),
            (range(3), "range"),
            (slice(3), "slice"),
            (dt.timedelta(1), "timedelta"),
            (dt.date(2020, 1, 1), "date"),
            (dt.datetime(2020, 1, 1), "datetime"),
            (np.ones(3), "NumPy array"),
            (np.float64(3), "NumPy scalar"),
        ):
            store = MemoryStore()
            states = {"model": nn.Linear(1, 1), "window": outlast.Value({"a": [(value,)]})}
            loaded = save(store, states, variables={"last": value})
            with pytest.raises(ConfigError, match=rf"window/value/a/0/0 is a {said}, .*--state model"):
                torch_file(store, loaded)
            done, found = torch_file(store, loaded, "model")
            assert "vars" not in found["outlast"]
            assert [line.startswith("run.vars/last is a") for line in done.left_out] == [True]

    def test_every_other_type_loads(self):
        """Each comes back through `torch.load(weights_only=True)` as it was."""

        value = {
            "plain": [
                None,
                True,
                2**80,
                float("-inf"),
                -0.0,
                1j,
                "ä",
                "\ud800",
                b"x" * 9000,
                bytearray(b"y"),
            ],
            "kept": ((1,), {2, 3}, collections.Counter("aab"), collections.OrderedDict(a=1), {4: 5, (6,): 7}),
            "torch": [torch.float16, torch.device("cpu"), torch.Size([1, 2]), torch.ones(3).double()],
            "column": torch.arange(12.0).reshape(3, 4).t(),
            "parameter": nn.Parameter(torch.ones(2)),
        }
        store = MemoryStore()
        _, found = torch_file(store, save(store, {"it": outlast.Value(value)}))
        found = found["it"]["value"]
        assert fingerprint(found) == fingerprint(value)
        assert found["column"].stride() == (1, 4)
        assert type(found["parameter"]) is nn.Parameter


@pytest.mark.parametrize("write", [exported, torch_file])
def test_bytes_that_are_wrong_are_never_handed_out(trained, write):
    """One flipped bit in a segment: an error that names the segment, and no result."""
    store = MemoryStore()
    loaded = save(store, trained)
    keys = [key for key in store.objects if key.startswith("segments/")]
    for key in keys:
        good = store.objects[key]
        store.objects[key] = good[:1] + bytes([good[1] ^ 4]) + good[2:]
        if any(
            chunk.segment == key and chunk.at <= 1 < chunk.at + chunk.nbytes
            for record in loaded.manifests[0].tensors
            for held in record.slices
            for chunk in held.chunks
            if write is torch_file or record.name.startswith("model/")
        ):
            with pytest.raises(ObjectDamaged, match=key):
                write(store, loaded)
        store.objects[key] = good
    write(store, loaded)


def test_the_header_is_what_the_format_says(trained):
    """Eight bytes of length, JSON, padded so that the tensors lie aligned, and each at a multiple of its width."""
    store = MemoryStore()
    _, data = exported(store, save(store, trained))
    length = int.from_bytes(data[:8], "little")
    head = json.loads(data[8 : 8 + length])
    assert length % 8 == 0
    places = [row["data_offsets"] for name, row in head.items() if name != "__metadata__"]
    assert [start for start, _ in places] == [0, *(stop for _, stop in places[:-1])]
    assert places[-1][1] == len(data) - 8 - length
    widths = {"I64": 8, "F32": 4, "BF16": 2}
    assert all(row["data_offsets"][0] % widths[row["dtype"]] == 0 for row in head.values() if "dtype" in row)
