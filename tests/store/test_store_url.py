"""Which store a URL opens, and what opening does not do."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from outlast._errors import ConfigError
from outlast.store import open_store
from outlast.store.local import LocalStore
from outlast.store.remote import RemoteStore


@pytest.mark.parametrize(
    ("url", "opened"),
    [
        ("/data/run", "file:///data/run"),
        ("/data/../x//run/", "file:///x/run"),
        ("file:///data/my%20run", "file:///data/my%20run"),
        ("file://localhost/data/run", "file:///data/run"),
        ("/data/my run", "file:///data/my%20run"),
        ("s3://bucket/some/run", "s3://bucket/some/run"),
        ("s3://bucket/some/run/", "s3://bucket/some/run"),
        ("s3://bucket", "s3://bucket"),
        ("gs://bucket/some/run/", "gs://bucket/some/run"),
        ("az://container/some/run", "az://container/some/run"),
    ],
)
def test_a_url_opens_its_store(url, opened, monkeypatch):
    """Paths and `file://` are folders, the other schemes buckets; `url` is one spelling of each."""
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    store = open_store(url)
    assert isinstance(store, RemoteStore if url.startswith(("s3", "gs", "az")) else LocalStore)
    assert store.url == opened
    assert open_store(store.url).url == opened


def test_a_relative_path_is_made_absolute_at_once(tmp_path, monkeypatch):
    """A script that changes its folder later must not change its store, and `~` is the home folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    store, home = open_store("runs/a"), open_store("~/runs/a")
    monkeypatch.chdir("/")
    store.put("run.json", b"x")
    home.put("run.json", b"y")
    assert (tmp_path / "runs/a/run.json").read_bytes() == b"x"
    assert (tmp_path / "home/runs/a/run.json").read_bytes() == b"y"


@pytest.mark.parametrize(
    "url",
    ["", "/", "gs:bucket/run", "az://", "gs://b/a//b", "azure://c/run", "http://host/x", "hdfs://x/y", "file://host/run", "file://", "file:///",
     "file:///a?b", "s3://", "s3:///run", "s3://b/a//b", "s3://b/../c", "s3://b/a?x=1", "s3://b/a#x", "s3://b/a*",
     "s3:/bucket/run", "a\0b"],
)  # fmt: skip
def test_what_is_no_store_is_refused_with_what_is(url):
    """The error says what was found and which kinds of URL there are."""
    with pytest.raises(ConfigError, match=r"expected .*://"):
        open_store(url)


def test_opening_touches_nothing(tmp_path, monkeypatch):
    """No folder is made, and no server needs to be there."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("GOOGLE_BASE_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AZURE_STORAGE_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    for url in (str(tmp_path / "x"), "s3://bucket/x", "gs://bucket/x", "az://container/x"):
        store = open_store(url)
        assert isinstance(store.is_local_disk, bool)
    assert os.listdir(tmp_path) == []
    assert not Path("s3:").exists()
