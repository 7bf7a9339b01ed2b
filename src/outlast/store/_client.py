"""The object-store clients: how they are set up, how long they are patient, and what their errors mean."""

from __future__ import annotations

import os
import random
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

from obstore.exceptions import BaseError
from obstore.store import S3Store

from outlast._errors import ConfigError, ObjectMissing, StoreDenied, StoreError, StoreFull, StoreUnavailable

if TYPE_CHECKING:  # obstore's types of settings exist in its stubs only
    from obstore.store import ClientConfig, ObjectStore, RetryConfig

PATIENCE_VARIABLE = "OUTLAST_STORE_PATIENCE_S"

Result = TypeVar("Result")

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}\Z")
_NO_PREFIX = re.compile(r'[\x00-\x1f\x7f\\{}^%`\[\]"<>~#|*?]')
"""What the object stores advise against in names, and object_store refuses or escapes."""

_STATUS = re.compile(r"status code: (\d{3})")
_FULL = re.compile(
    r"QuotaExceeded|InsufficientStorage|StorageFull|quota exceeded|no space left", re.IGNORECASE
)
_CREDENTIAL_SOURCES = re.compile(r"169\.254\.|/latest/api/token|security-credentials|/oauth2|sts\.")
_CONNECT_S = 5.0
"""Longest wait for a connection, as in the client's own default."""
_MOST_REPEATS = 30
"""Time bounds the repeats, not this: more than fit between pauses that double up to `backoff_s`."""
_SHOWN_CHARACTERS = 400
"""How much of a server's answer an error shows: the status and the code come first."""


@dataclass(frozen=True)
class Patience:
    """How long a store is asked before it counts as out of reach.

    One request may take a third of `total_s` and is repeated for a sixth of it; what was repeated in vain may be
    asked once more from the start within the rest. The default of a minute outlasts the usual "slow down" of S3, and
    gives 64 MiB in flight 20 s: 26 Mbit/s.
    """

    total_s: float = 60.0

    @classmethod
    def from_environment(cls) -> Patience:
        """Read `$OUTLAST_STORE_PATIENCE_S`, in seconds."""
        text = os.environ.get(PATIENCE_VARIABLE, "")
        if not text:
            return cls()
        try:
            total_s = float(text)
        except ValueError:
            total_s = 0.0
        if not 0 < total_s < float("inf"):
            msg = f"{PATIENCE_VARIABLE}={text!r}: expected a number of seconds above 0, e.g. 60"
            raise ConfigError(msg)
        return cls(total_s)

    @property
    def request_s(self) -> float:
        """Time-out of one request, body included."""
        return self.total_s / 3

    @property
    def repeat_s(self) -> float:
        """No request is repeated by the client once this time has passed since the first."""
        return self.total_s / 6

    @property
    def backoff_s(self) -> float:
        """The longest pause between two requests."""
        return self.total_s / 30


@dataclass(frozen=True)
class Clients:
    """Two clients of one bucket: `bucket` repeats failed requests, `once` does not (a lost answer to a create must be known)."""

    bucket: ObjectStore
    once: ObjectStore
    prefix: str


def connect(url: str, patience: Patience) -> Clients:
    """Set up the clients of `s3://bucket/prefix`; sends nothing.

    Credentials, region and endpoint come from the environment variables that every S3 tool reads. Plain http is
    used only where the endpoint's own variable says `http://`.
    """
    parts = urlsplit(url)
    bucket, prefix = parts.netloc, parts.path.strip("/")
    if "@" in bucket:
        msg = "credentials do not belong into a store's URL: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY instead"
        raise ConfigError(msg)
    if not _BUCKET.match(bucket):
        msg = f"{url!r}: {bucket!r} is no name of a bucket: expected s3://bucket/prefix"
        raise ConfigError(msg)
    names = prefix.split("/") if prefix else []
    if parts.query or parts.fragment or any(not n or n in (".", "..") or _NO_PREFIX.search(n) for n in names):
        msg = f"{url!r}: {prefix!r} is no prefix of a run: expected plain names joined by single '/'"
        raise ConfigError(msg)
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    options: ClientConfig = {
        "allow_http": (endpoint or "").startswith("http://"),
        "connect_timeout": timedelta(seconds=min(_CONNECT_S, patience.request_s / 2)),
        "timeout": timedelta(seconds=patience.request_s),
    }
    repeat: RetryConfig = {
        "max_retries": _MOST_REPEATS,
        "retry_timeout": timedelta(seconds=patience.repeat_s),
        "backoff": {
            "init_backoff": timedelta(seconds=patience.backoff_s / 20),
            "max_backoff": timedelta(seconds=patience.backoff_s),
            "base": 2,
        },
    }
    never: RetryConfig = {"max_retries": 0, "retry_timeout": timedelta(0)}
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
    try:
        repeating, once = (
            S3Store(bucket, endpoint=endpoint, region=region, client_options=options, retry_config=config)
            if endpoint
            else S3Store(bucket, region=region, client_options=options, retry_config=config)
            for config in (repeat, never)
        )
    except (BaseError, ValueError) as error:
        msg = f"{url!r}: the settings of S3 in the environment are not usable: {brief(error)}"
        raise ConfigError(msg) from error
    return Clients(repeating, once, prefix + "/" if prefix else "")


def persist(patience: Patience, name: str, ask: Callable[[], Result], *, tries: int = 1) -> Result:
    """Call `ask`, and again after a transient fault while another whole call still fits into the patience.

    `tries` calls are made in any case: an upload may outlast the patience without a fault.

    Raises:
        StoreError: as `translated` says.
    """
    start = time.monotonic()
    again_until = start + patience.total_s - patience.request_s - patience.repeat_s
    pause_s = patience.backoff_s / 20
    while True:
        tries -= 1
        try:
            return ask()
        except (BaseError, OSError) as error:
            fault = translated(error, name)
            too_late = tries <= 0 and time.monotonic() + pause_s > again_until
            if too_late or not isinstance(fault, StoreUnavailable):
                raise fault from error
        # Full jitter (AWS Architecture Blog, "Exponential Backoff and Jitter"): many ranks must not come back at once.
        time.sleep(random.uniform(0, pause_s))  # noqa: S311 - no secret
        pause_s = min(2 * pause_s, patience.backoff_s)


def translated(error: Exception, name: str) -> StoreError:
    """Return the store's error for a client's. Only `StoreUnavailable` is worth another try."""
    text = str(error)
    status = status_of(error)
    said = f"{name}: {brief(error)}"
    if _CREDENTIAL_SOURCES.search(text.partition("\n")[0]):
        return _without_credentials(status, said)
    if "NoSuchBucket" in text:
        return StoreDenied(
            f"{said}. The bucket does not exist: create it, or correct the URL or the endpoint"
        )
    if status == 507 or _FULL.search(text):
        return StoreFull(f"{said}. Free space in the bucket, or raise its quota")
    if isinstance(error, FileNotFoundError) and not _transient(status, text):
        return ObjectMissing(f"{name} does not exist")
    if "without LOCATION" in text or status in (301, 307, 308):
        return StoreDenied(f"{said}. Set AWS_REGION to the region of the bucket")
    if status is not None and 400 <= status < 500 and not _transient(status, text):
        return StoreDenied(f"{said}. Check the credentials, and what they may do in this bucket")
    return StoreUnavailable(said)


def status_of(error: Exception) -> int | None:
    """Return the HTTP status that a client's error tells of; None for time-outs and lost connections."""
    found = _STATUS.search(str(error))
    return int(found.group(1)) if found else None


def brief(error: Exception) -> str:
    """Return the start of an error in one line, without the client's internals and without our secrets."""
    text = " ".join(str(error).partition("\n\nDebug source")[0].split())[:_SHOWN_CHARACTERS]
    return _without_secrets(text, os.environ)


def _transient(status: int | None, text: str) -> bool:
    """Whether S3 asks to repeat: 408, 409 OperationAborted, 425, 429, and a 400 for a body that came too slowly."""
    return status in (408, 409, 425, 429) or "RequestTimeout" in text or "NoSuchUpload" in text


def _without_credentials(status: int | None, said: str) -> StoreError:
    hint = (
        "No AWS_ACCESS_KEY_ID is set, so the machine's own role was asked for credentials. "
        "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give the machine a role"
    )
    if status is not None and 400 <= status < 500:
        return StoreDenied(f"{said}. {hint}")
    return StoreUnavailable(f"{said}. {hint}")


def _without_secrets(text: str, environment: Mapping[str, str]) -> str:
    for variable in ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ACCESS_KEY_ID"):
        if value := environment.get(variable):
            text = text.replace(value, f"${variable}")
    return text
