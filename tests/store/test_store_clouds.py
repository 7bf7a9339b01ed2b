"""Azure and Google Cloud Storage: what their refusals mean, and whose secrets no error repeats."""

from __future__ import annotations

import re

import pytest

from clouds import ACCOUNT_KEY, BEARER_TOKEN
from outlast import _errors as errors
from outlast.store import open_store
from outlast.store._client import Patience
from outlast.store._faults import SECRET_VARIABLES, brief
from outlast.store.remote import RemoteStore
from servers import Fault, faulty_proxy

MIB = 1 << 20
FOR_EVER = 10_000
SHORT = Patience(total_s=0.6)
LONG = Patience(total_s=60)
LARGE = bytes(9 * MIB)

CALLS = {
    "create": lambda store: store.create("new/1", b"x"),
    "write small": lambda store: store.write("new/1", [memoryview(b"x")]),
    "write large": lambda store: store.write("new/1", [memoryview(LARGE)]),
    "get": lambda store: store.get("a/1"),
    "read_into": lambda store: store.read_into("a/1", 0, memoryview(bytearray(1))),
    "list": lambda store: store.list(),
}


@pytest.fixture(params=["azure", "google"])
def cloud(request, monkeypatch):
    """A server of each of the two, its variables set."""
    server = request.getfixturevalue(request.param)
    for name, value in server.env.items():
        monkeypatch.setenv(name, value)
    return server


@pytest.fixture
def proxied(cloud, prefix, monkeypatch):
    """A proxy in front of it, and the URL of a run that holds one object."""
    RemoteStore(cloud.url(prefix)).put("a/1", b"x")
    with faulty_proxy(cloud) as (proxy, server):
        for name, value in server.env.items():
            monkeypatch.setenv(name, value)
        yield proxy, server.url(prefix)


@pytest.mark.parametrize("call", ["create", "write large", "read_into"])
@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Fault(403, FOR_EVER, body="<Code>AuthorizationPermissionMismatch</Code>"), errors.StoreDenied),
        (Fault(401, FOR_EVER, body="<Code>AuthenticationRequired</Code>"), errors.StoreDenied),
        (Fault(403, FOR_EVER, body="<Code>QuotaExceeded</Code>"), errors.StoreFull),
        (Fault(507, FOR_EVER), errors.StoreFull),
        (Fault(429, FOR_EVER, body="Quota exceeded for requests per minute"), errors.StoreUnavailable),
        (Fault(503, FOR_EVER, body="<Code>ServerBusy</Code>"), errors.StoreUnavailable),
        (Fault("hang", FOR_EVER), errors.StoreUnavailable),
    ],
    ids=lambda value: f"{value.kind}" if isinstance(value, Fault) else value.__name__,
)
def test_a_refusal_is_told_apart(proxied, call, fault, error):
    """Too many requests are worth another try, a full account is not; all name the object and no secret."""
    proxy, url = proxied
    proxy.plan(Fault(fault.kind, fault.times, body=fault.body))
    with pytest.raises(error, match=re.escape(url)) as caught:
        CALLS[call](RemoteStore(url, patience=SHORT))
    assert ACCOUNT_KEY not in str(caught.value)
    assert BEARER_TOKEN not in str(caught.value)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("kind", ["drop", 429])
def test_a_fault_that_passes_is_ridden_out(proxied, call, kind):
    """Two failed answers in a row, and the operation still does what it should."""
    proxy, url = proxied
    store = RemoteStore(url, patience=LONG)
    assert store.honours_create
    proxy.plan(Fault(kind, 2))
    assert CALLS[call](store) is not False
    assert proxy.faults_left == 0


def test_a_create_whose_answer_was_lost_is_ours(proxied):
    """The object that refuses the second try holds our own bytes: the claim is True."""
    proxy, url = proxied
    store = RemoteStore(url, patience=LONG)
    assert store.honours_create
    proxy.plan(Fault("lost", 1))
    assert store.create("attempts/00001.json", b"mine") is True
    assert proxy.faults_left == 0
    assert store.create("attempts/00001.json", b"theirs") is False


@pytest.mark.parametrize("call", CALLS)
def test_a_bucket_that_is_not_there_is_no_empty_store(cloud, call):
    """A typo in its name must stop a run, not start it afresh."""
    scheme = cloud.url("x").partition(":")[0]
    with pytest.raises(
        errors.StoreDenied, match=r"The (bucket|container) does not exist: create it"
    ) as caught:
        CALLS[call](RemoteStore(f"{scheme}://no-such-bucket/run", patience=LONG))
    assert ("container" in str(caught.value)) is (scheme == "az")


@pytest.mark.parametrize("call", CALLS)
def test_a_wrong_account_key_is_refused_by_name(azure, monkeypatch, prefix, call):
    """A server that checks the signature says no, and the error does not repeat the key."""
    for name, value in azure.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "d3Jvbmctd3Jvbmctd3Jvbmc=")
    with pytest.raises(errors.StoreDenied, match="Check the credentials") as caught:
        CALLS[call](RemoteStore(azure.url(prefix), patience=LONG))
    assert "d3Jvbmct" not in str(caught.value)


def test_a_shared_access_signature_is_never_said(azure, monkeypatch, prefix):
    """It is part of every request's address, which the client's errors show."""
    for name, value in azure.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_KEY")
    monkeypatch.setenv(
        "AZURE_STORAGE_SAS_TOKEN", "sv=2021-08-06&ss=b&srt=co&sp=rwdl&sig=c2VjcmV0LXNpZ25hdHVyZQ%3D%3D"
    )
    for call in CALLS.values():
        with pytest.raises(errors.StoreError) as caught:
            call(RemoteStore(azure.url(prefix), patience=SHORT))
        assert "c2VjcmV0" not in str(caught.value)


def test_an_error_repeats_no_secret_of_any_cloud(monkeypatch):
    """Whatever a client's message holds: the values of the variables, signatures and tokens are left out."""
    secrets = {name: f"hunter-{number}-{'x' * number}-end" for number, name in enumerate(SECRET_VARIABLES)}
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    said = brief(
        Exception(
            f"GET ?sp=r&sig=abc%2Bdef&x=1 Authorization: Bearer ya29.abc-def {' '.join(secrets.values())}"
        )
    )
    assert "hunter" not in said
    assert "abc" not in said
    assert "&x=1" in said


@pytest.mark.parametrize(
    ("url", "variable"),
    [
        ("gs://bucket/run", "GOOGLE_APPLICATION_CREDENTIALS"),
        ("az://container/run", "AZURE_STORAGE_ACCOUNT_KEY"),
        ("s3://bucket/run", "AWS_ACCESS_KEY_ID"),
    ],
)
def test_without_credentials_the_error_says_where_they_come_from(url, variable, monkeypatch, tmp_path):
    """With none in the environment the machine's own role is asked; that there is none is said with what to set."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    with pytest.raises((errors.StoreDenied, errors.StoreUnavailable), match=variable):
        RemoteStore(url, patience=SHORT).list()


def test_azure_needs_the_name_of_the_account(monkeypatch):
    """It is said at the start which variable is missing."""
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)
    with pytest.raises(errors.ConfigError, match="AZURE_STORAGE_ACCOUNT_NAME"):
        open_store("az://container/run")


@pytest.mark.parametrize("variable", ["GOOGLE_BASE_URL", "STORAGE_EMULATOR_HOST"])
def test_google_is_reached_through_either_variable(google, monkeypatch, prefix, variable):
    """The client's own variable, and the one that Google's SDKs read."""
    monkeypatch.setenv("GOOGLE_BEARER_TOKEN", BEARER_TOKEN)
    monkeypatch.setenv(variable, google.endpoint)
    store = RemoteStore(google.url(prefix), patience=LONG)
    store.put("run.json", b"x")
    assert store.get("run.json") == b"x"
