"""Traces are read as they are meant, and a line that is wrong is named."""

from __future__ import annotations

import gzip

import numpy as np
import pytest

from outlast._errors import ConfigError
from outlast.sim.traces import evenly_spaced, read_traces, together

HEAD = "time_utc,zone,nodes_available\n"


def rows(*found):
    """Minutes after midnight, zone, nodes."""
    return HEAD + "".join(f"2026-01-31T{m // 60:02}:{m % 60:02}:00Z,{zone},{n}\n" for m, zone, n in found)


def written(tmp_path, text, name="trace.csv"):
    path = tmp_path / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return path


@pytest.mark.parametrize("name", ["trace.csv", "trace.csv.gz"])
def test_a_tick_shows_what_was_seen_last_at_its_beginning(tmp_path, name):
    """Seen every 4 minutes; ticks begin at 0, 10 and 20."""
    text = rows(*((m, "a", m) for m in range(0, 24, 4)))
    (piece,) = read_traces([written(tmp_path, text, name)])
    assert piece.nodes.tolist() == [0, 8, 20]


def test_a_gap_splits_a_trace_and_each_part_has_ticks_of_its_own(tmp_path):
    """Nothing for 35 minutes: what was there is not made up."""
    first, second = read_traces(
        [written(tmp_path, rows((0, "a", 1), (10, "a", 1), (45, "a", 0), (55, "a", 2)))]
    )
    assert (first.nodes.tolist(), second.nodes.tolist()) == ([1, 1], [0, 2])
    assert second.start_s - first.start_s == 45 * 60


def test_zones_are_seen_together_where_all_of_them_were_seen(tmp_path):
    """One begins later, the other one has a gap."""
    a = [(m, "a", m) for m in range(0, 100, 10)]
    b = [(m, "b", 1) for m in (20, 30, 40, 80, 90)]
    pieces = read_traces([written(tmp_path, rows(*sorted(a + b)))])
    first, second = together(pieces, ["a", "b"])
    assert first.tolist() == [[20, 1], [30, 1], [40, 1]]
    assert second.tolist() == [[80, 1], [90, 1]]


def test_windows_are_evenly_spaced_and_none_crosses_a_gap():
    """From the first to the last that there is; fewer where there are fewer."""
    assert evenly_spaced([10], 4, 3) == [(0, 0), (0, 3), (0, 6)]
    assert evenly_spaced([5, 3, 5], 4, 16) == [(0, 0), (0, 1), (2, 0), (2, 1)]
    assert evenly_spaced([3], 4, 16) == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty"),
        (HEAD, "is empty"),
        ("time,zone,nodes\n", "line 1: found 'time,zone,nodes'"),
        (
            rows((10, "a", 1), (0, "a", 1)),
            "line 3: time_utc 2026-01-31T00:00:00Z of zone a comes after a later one",
        ),
        (rows((10, "a", 1), (10, "b", 1), (10, "a", 1)), "line 4: time_utc .* of zone a is there twice"),
        (rows((0, "a", -1)), "line 2: nodes_available is '-1'"),
        (rows((0, "a", "nan")), "line 2: nodes_available is 'nan'"),
        (rows((0, "", 1)), "line 2: zone is empty"),
        (rows((0, "  ", 1)), "line 2: zone is empty"),
        (rows((10, "a", 1), (10, " a ", 1)), "line 3: time_utc .* of zone a is there twice"),
        (HEAD + "yesterday,a,1\n", "line 2: time_utc is 'yesterday'"),
        (HEAD + "2026-01-31T00:00:00Z,a\n", "line 2: found 2 columns"),
    ],
)
def test_a_line_that_is_wrong_is_named(tmp_path, text, said):
    """With the file, what was found and what was expected."""
    with pytest.raises(ConfigError, match=said):
        read_traces([written(tmp_path, text)])


def test_a_file_that_is_not_there_or_not_what_its_name_says_is_named(tmp_path):
    """No traceback for a typo, nor for text that is called gzip."""
    with pytest.raises(ConfigError, match=r"none\.csv cannot be read"):
        read_traces([tmp_path / "none.csv"])
    (tmp_path / "text.csv.gz").write_text(HEAD)
    with pytest.raises(ConfigError, match=r"text\.csv\.gz cannot be read"):
        read_traces([tmp_path / "text.csv.gz"])


def test_a_zone_in_two_files_is_refused(tmp_path):
    """Which of them is right is not known."""
    paths = [written(tmp_path, rows((0, "a", 1)), name) for name in ("one.csv", "two.csv")]
    with pytest.raises(ConfigError, match=r"two\.csv: zone a is in .*one\.csv as well"):
        read_traces(paths)


def test_times_without_an_offset_are_utc(tmp_path):
    """As the column says."""
    (bare,) = read_traces([written(tmp_path, HEAD + "2026-01-31T00:00:00,a,1\n")])
    (marked,) = read_traces([written(tmp_path, rows((0, "a", 1)))])
    assert bare.start_s == marked.start_s
    assert np.array_equal(bare.nodes, marked.nodes)
