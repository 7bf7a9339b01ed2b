"""Credentials that expire and come back: a run must not need a restart for that."""

from __future__ import annotations

import http.server
import json
import os
import threading
from datetime import UTC, datetime, timedelta

import pytest

from outlast import _errors as errors
from outlast.store import _aws_profile
from outlast.store._client import Patience
from outlast.store.remote import RemoteStore
from servers import ACCESS_KEY, SECRET_KEY

PATIENCE = Patience(total_s=60)
WRONG = "wrong-wrong-wrong"


@pytest.fixture
def url(rclone, monkeypatch, prefix, tmp_path):
    """A run on a server that checks signatures; the environment names no keys, and home is empty."""
    for name, value in rclone[0].env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("HOME", str(tmp_path))
    return rclone[0].url(prefix)


@pytest.fixture
def role(monkeypatch, tmp_path):
    """A machine's role: an endpoint that hands out credentials, whose secret the test changes."""
    answers = {"secret": SECRET_KEY}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            # As a role's last minutes: the client asks again before every request.
            expires = (datetime.now(UTC) + timedelta(seconds=60)).strftime("%Y-%m-%dT%H:%M:%SZ")
            body = json.dumps({
                "AccessKeyId": ACCESS_KEY, "SecretAccessKey": answers["secret"], "Token": "", "Expiration": expires,
            }).encode()  # fmt: skip
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    (tmp_path / "token").write_text("token")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        monkeypatch.setenv(
            "AWS_CONTAINER_CREDENTIALS_FULL_URI", f"http://127.0.0.1:{server.server_address[1]}/role"
        )
        monkeypatch.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", str(tmp_path / "token"))
        yield answers
        server.shutdown()
        thread.join()


def eventually(store: RemoteStore) -> bytes:
    """Read until the new credentials are asked for: the client waits 0.1 s between two questions."""
    for _ in range(1000):
        try:
            return store.get("run.json")
        except errors.StoreDenied:
            threading.Event().wait(0.01)
    pytest.fail("the new credentials are never asked for")


def profile(home, secret: str, name: str = "default") -> None:
    folder = home / ".aws"
    folder.mkdir(exist_ok=True)
    text = f"[{name}]\naws_access_key_id = {ACCESS_KEY}\naws_secret_access_key = {secret}\n"
    (folder / "credentials").write_text(text)


def test_a_role_whose_credentials_expire_and_come_back(url, role):
    """While they are refused the error says so; when the role hands out good ones, the same store goes on."""
    store = RemoteStore(url, patience=PATIENCE)
    store.put("run.json", b"x")
    role["secret"] = WRONG
    with pytest.raises(errors.StoreDenied) as caught:
        for _ in range(1000):
            store.get("run.json")
            threading.Event().wait(0.01)
    assert WRONG not in str(caught.value)
    role["secret"] = SECRET_KEY
    assert eventually(store) == b"x"


@pytest.mark.parametrize("name", ["default", "training"])
def test_a_profile_is_read_and_read_again(url, tmp_path, monkeypatch, name):
    """`~/.aws/credentials` is found, also under `AWS_PROFILE`; when somebody renews it, the same store goes on."""
    monkeypatch.setattr(_aws_profile, "_ASKED_AGAIN", timedelta(seconds=10))
    profile(tmp_path, WRONG, name)
    if name != "default":
        monkeypatch.setenv("AWS_PROFILE", name)
    store = RemoteStore(url, patience=PATIENCE)
    with pytest.raises(errors.StoreDenied, match="Check the credentials") as caught:
        store.list()
    assert WRONG not in str(caught.value)
    profile(tmp_path, SECRET_KEY, name)
    os.utime(tmp_path / ".aws" / "credentials", ns=(1, 1))
    with pytest.raises(errors.ObjectMissing):
        eventually(store)


def test_a_profile_without_credentials_says_so(url, tmp_path, monkeypatch):
    """A profile that is not there is named, with what to set instead."""
    profile(tmp_path, SECRET_KEY)
    monkeypatch.setenv("AWS_PROFILE", "no-such-profile")
    with pytest.raises(errors.StoreError, match="AWS_ACCESS_KEY_ID"):
        RemoteStore(url, patience=Patience(total_s=0.6)).list()


def test_keys_in_the_environment_go_before_a_profile(url, tmp_path, monkeypatch):
    """As in every AWS tool."""
    profile(tmp_path, WRONG)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    assert RemoteStore(url, patience=PATIENCE).list() == []


def test_a_profile_without_botocore_is_an_error_at_the_start(url, tmp_path, monkeypatch):
    """`AWS_PROFILE` cannot be honoured then, and the error says what to install."""
    profile(tmp_path, SECRET_KEY)
    monkeypatch.setitem(__import__("sys").modules, "botocore", None)
    monkeypatch.setitem(__import__("sys").modules, "botocore.session", None)
    RemoteStore(url, patience=PATIENCE)
    monkeypatch.setenv("AWS_PROFILE", "default")
    with pytest.raises(errors.ConfigError, match="pip install botocore"):
        RemoteStore(url, patience=PATIENCE)
