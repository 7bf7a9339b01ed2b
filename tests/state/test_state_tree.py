"""Nested values go out and come back exactly."""

from __future__ import annotations

import datetime as dt
import math
import struct
from collections import Counter, OrderedDict, defaultdict, deque
from typing import NamedTuple

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from outlast._errors import ObjectDamaged, UnsupportedValue
from outlast.state.table import TensorTable
from outlast.state.tree import MAX_DEPTH, decode, encode
from staging import bits, looks, round_trip, through_arena


def exactly(left, right) -> bool:
    """Same types, same bits, same order; an oracle apart from the code under test."""
    if type(left) is not type(right):
        return False
    if isinstance(left, torch.Tensor):
        return (
            left.dtype is right.dtype
            and left.shape == right.shape
            and left.requires_grad == right.requires_grad
            and bits(left) == bits(right)
        )
    if isinstance(left, np.ndarray):
        return (
            left.dtype.str == right.dtype.str
            and left.shape == right.shape
            and left.tobytes() == right.tobytes()
        )
    if isinstance(left, np.generic):
        return left.dtype.str == right.dtype.str and left.tobytes() == right.tobytes()
    if isinstance(left, float):
        return struct.pack(">d", left) == struct.pack(">d", right)
    if isinstance(left, complex):
        return exactly(left.real, right.real) and exactly(left.imag, right.imag)
    if isinstance(left, dict):
        factory = getattr(left, "default_factory", None), getattr(right, "default_factory", None)
        return factory[0] is factory[1] and exactly(list(left.items()), list(right.items()))
    if isinstance(left, deque) and left.maxlen != right.maxlen:
        return False
    if isinstance(left, (list, tuple, deque)):
        return len(left) == len(right) and all(map(exactly, left, right))
    if isinstance(left, (set, frozenset)):
        return sorted(map(repr, left)) == sorted(map(repr, right))
    return left == right and repr(left) == repr(right)


FLOATS = st.integers(0, 2**64 - 1).map(lambda n: struct.unpack(">d", n.to_bytes(8, "big"))[0])
"""Every bit pattern, so every nan."""
KEYS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    FLOATS,
    st.text(st.characters(exclude_categories=())),
    st.binary(max_size=20),
    st.tuples(st.integers(), st.text()),
)
LEAVES = st.one_of(
    KEYS,
    st.complex_numbers(),
    st.integers(-(2**70), 2**70),
    st.sampled_from(
        [
            torch.bfloat16,
            torch.device("cpu"),
            torch.Size([2, 0]),
            range(3, 90, 7),
            slice(None, 3),
            bytearray(b"x"),
        ]
    ),
    st.sampled_from([np.float32(-0.0), np.int8(-3), np.bool_(True), np.arange(6).reshape(2, 3)]),
    st.lists(FLOATS, max_size=5).map(lambda xs: torch.tensor(xs, dtype=torch.float64)),
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.lists(inner, max_size=4).map(lambda xs: deque(xs, maxlen=7)),
        st.dictionaries(KEYS, inner, max_size=4),
        st.dictionaries(KEYS, inner, max_size=4).map(OrderedDict),
        st.dictionaries(KEYS, inner, max_size=4).map(lambda d: defaultdict(list, d)),
        st.sets(KEYS, max_size=4),
        st.frozensets(KEYS, max_size=4),
    ),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(VALUES)
def test_any_nested_value_comes_back_exactly(value):
    """Types, bits, key types and order of whatever can be nested."""
    assert exactly(value, round_trip(value))


@pytest.mark.parametrize(
    "value",
    [
        {True: "a", 2: "b", 1.5: "c", (1, "x"): "d"},
        {1: "int"},
        {1.0: "float"},
        {-0.0: "minus"},
        Counter(b=2, a=1),
        defaultdict(None, {"a": 1}),
        deque([1, 2], maxlen=None),
        10**300,
        -(2**63),
        2**64,
        "\ud800 alone",
        {"tensor": ["not", "a", "tag"], "tuple": [1]},
        b"long" * 5000,
        dt.datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=dt.UTC),
        dt.date(2026, 1, 2),
        dt.timedelta(days=-1, microseconds=7),
        np.array(["ab", "c"]),
        np.array([], dtype=">f4"),
        np.array(3.5),
        np.array(["2026-01-01", "NaT"], dtype="datetime64[D]"),
        np.asfortranarray(np.arange(5000.0).reshape(50, 100)),
        np.arange(20)[::3],
        np.float16("nan"),
        np.str_("text"),
        math.nan,
        -math.inf,
    ],
    ids=lambda value: repr(value)[:30],
)
def test_a_value_that_is_easily_lost_comes_back_exactly(value):
    """One by one, the values that other formats change."""
    assert exactly(value, round_trip(value))


def test_layout_and_kind_of_a_tensor_come_back():
    """Strides of a dense tensor, requires_grad, and being a parameter."""
    last = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    parameter = nn.Parameter(torch.randn(3), requires_grad=False)
    leaf = torch.randn(2, requires_grad=True)
    back = round_trip([last, parameter, leaf, torch.randn(1, 4).expand(3, 4)])
    assert back[0].stride() == last.stride()
    assert type(back[1]) is nn.Parameter and not back[1].requires_grad
    assert back[2].requires_grad and back[2].is_leaf
    assert back[3].shape == (3, 4) and back[3].is_contiguous()


def test_two_looks_at_one_memory_come_back_as_one_memory():
    """A change through one of them shows in the other; a different tensor of the same values stays apart."""
    base = torch.randn(4)
    back = round_trip({"a": base, "b": [base.view(4)], "other": base.clone()})
    back["a"].fill_(7)
    assert back["b"][0].tolist() == [7.0] * 4
    assert back["other"].tolist() != [7.0] * 4


def test_a_sparse_tensor_comes_back_as_it_was():
    """Also one that is not coalesced: its duplicates stay apart."""
    twice = torch.sparse_coo_tensor([[0, 0, 2]], [1.0, 2.0, 3.0], (4,), check_invariants=True)
    back = round_trip(twice)
    assert back._nnz() == 3 and not back.is_coalesced()
    assert torch.equal(back.to_dense(), twice.to_dense())
    assert round_trip(twice.coalesce()).is_coalesced()


class Sub(dict):
    """A subclass would come back as its base."""


class Point(NamedTuple):
    """Would come back as a plain tuple."""

    x: int


CYCLE: list = []
CYCLE.append([CYCLE])


def deep(levels):
    value = 0
    for _ in range(levels):
        value = {"in": value}
    return value


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: round_trip, "function"),
        (lambda: Sub(), "Sub"),
        (lambda: Point(1), "Point"),
        (lambda: object(), "object"),
        (lambda: CYCLE, "contains itself"),
        (lambda: deep(MAX_DEPTH + 1), "nested deeper"),
        (lambda: defaultdict(lambda: 0), "defaults"),
        (lambda: np.array([object()]), "dtype object"),
        (lambda: np.zeros(2, dtype=[("a", "i4")]), "dtype"),
        (lambda: np.ma.masked_array([1]), "subclass"),
        (lambda: torch.empty(2, device="meta"), "meta"),
        (lambda: torch.ones(2, requires_grad=True) * 2, "graph"),
        (lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8), "qint8"),
        (lambda: torch.eye(2).to_sparse_csr(), "layout"),
        (lambda: nn.UninitializedParameter(), "not initialised"),
        (lambda: {torch.ones(1): 1}, "identity"),
        (lambda: torch.Generator(), "Generator"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.filterwarnings("ignore:.*(quantize|Sparse CSR|matrix).*")
def test_what_cannot_be_stored_is_named_with_its_path(make, words):
    """The message says where it stands, what it is, and what to do."""
    with pytest.raises(UnsupportedValue, match="value/list/1/here") as caught:
        round_trip_at({"list": [0, {"here": make()}]})
    assert words in str(caught.value) and "What to do" in str(caught.value)


def round_trip_at(value):
    encode(value, "value", TensorTable())


def test_the_deepest_value_allowed_comes_back():
    """No recursion limit is met before MAX_DEPTH, in Python or in JSON."""
    assert round_trip(deep(MAX_DEPTH)) == deep(MAX_DEPTH)


@pytest.mark.parametrize(
    "tree",
    [
        {"module": "os"},
        {"tuple": [1], "list": []},
        {},
        {"tuple": 3},
        {"dict": [[1]]},
        {"dict": [[1, 1], [1, 2]]},
        {"dict": [[[], 1]]},
        {"defaultdict": ["system", []]},
        {"float": "7f"},
        {"dtype": "onnx"},
        {"dtype": "save"},
        {"tensor": ["absent", False, False, "cpu", None]},
        {"tensor": ["here", False, False, "cpu", [0]]},
        {"tensor": ["here"]},
        {"coo": [1, 2, 3, 4]},
        {"array": ["|O8", [1], False, "AAAAAAAAAAA="]},
        {"array": ["<f8", [2], False, "AAAAAAAAAAA="]},
        {"bytes": "no base64!"},
        {"deque": [1, [1, 2]]},
        {"range": [0, 1, 0]},
        [[[{"int": "zz"}]]],
    ],
    ids=repr,
)
def test_a_tree_that_we_did_not_write_is_refused(tree):
    """Whatever stands in it, decoding ends in one error, and imports and calls nothing by name."""
    with pytest.raises(ObjectDamaged):
        decode(tree, {"here": torch.ones(2)})


def test_a_tree_nested_without_end_is_refused():
    """Not a crash of the interpreter."""
    tree: list = []
    for _ in range(5000):
        tree = [tree]
    with pytest.raises(ObjectDamaged):
        decode(tree, {})


def test_decoded_tensors_are_copies():
    """Writing to the arena afterwards changes nothing that was decoded."""
    table = TensorTable()
    tree = encode([torch.ones(3), np.ones(2000), b"a" * 5000], "value", table)
    saved = through_arena({"value": tree, "states": {}}, table)
    tensors = looks(saved)
    back = decode(saved.tree["value"], tensors)
    for tensor in tensors.values():
        tensor.view(torch.uint8).fill_(9)
    assert back[0].tolist() == [1.0] * 3 and back[1].sum() == 2000 and back[2] == b"a" * 5000


def test_names_that_clash_stay_apart():
    """A key with a slash in it and a nested key may spell the same path."""
    value = {"a/b": torch.ones(1), "a": {"b": torch.zeros(1)}}
    assert exactly(value, round_trip(value))


def test_a_tree_is_the_same_for_equal_sets():
    """The order in which a set iterates differs between processes; what is stored does not."""
    left = encode({"b", "a", "c"}, "s", TensorTable())
    right = encode({"c", "b", "a"}, "s", TensorTable())
    assert msgspec.json.encode(left) == msgspec.json.encode(right)
