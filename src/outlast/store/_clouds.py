"""The clients of one bucket: S3, Google Cloud Storage or Azure, set up from the environment variables of each.

Plain http is used only where the variable that names the endpoint says `http://`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from obstore.exceptions import BaseError
from obstore.store import AzureStore, GCSStore, S3Store

from outlast._errors import ConfigError
from outlast.store._aws_profile import profile_credentials
from outlast.store._client import Patience
from outlast.store._faults import brief

if TYPE_CHECKING:  # obstore's types of settings exist in its stubs only
    from obstore.store import ClientConfig, GCSConfig, ObjectStore, RetryConfig, S3Config

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}\Z")
_NO_PREFIX = re.compile(r'[\x00-\x1f\x7f\\{}^%`\[\]"<>~#|*?]')
"""What the object stores advise against in names, and object_store refuses or escapes."""
_LOOPBACK = re.compile(r"http://(?:localhost|127(?:\.\d+){3}|\[::1\])(?:[:/]|\Z)")
_CONNECT_S = 5.0
"""Longest wait for a connection, as in the client's own default."""
_MOST_REPEATS = 30
"""Time bounds the repeats, not this: more than fit between pauses that double up to `backoff_s`."""
_LONGEST_S = 24 * 3600.0
"""A bound of the size of one whole object for a request that moves on: none that matters."""


@dataclass(frozen=True)
class Clients:
    """Clients of one bucket, which differ in how long a request may stand still, and in who repeats it.

    `once_*` do not repeat a failed request (a lost answer to a create must be known); `whole` reads a large object in
    one request, which may last. `enduring` sends a body over a line that needs nearly all of the patience for it.
    """

    prefix: str
    quick: ObjectStore
    patient: ObjectStore
    once_quick: ObjectStore
    once_patient: ObjectStore
    whole: ObjectStore
    enduring: ObjectStore
    once_enduring: ObjectStore

    def at(self, number: int) -> ObjectStore:
        """The client for try `number` of an operation."""
        return self.patient if number else self.quick

    def once_at(self, number: int) -> ObjectStore:
        """The client for try `number` of an operation that it must not repeat by itself."""
        return self.once_patient if number else self.once_quick

    def sending(self, slowness: int) -> ObjectStore:
        """The client for bodies on a line that is not slow (0), slow (1), or very slow (2)."""
        return (self.quick, self.patient, self.enduring)[slowness]

    def once_sending(self, slowness: int) -> ObjectStore:
        """The same, of those that repeat nothing by themselves."""
        return (self.once_quick, self.once_patient, self.once_enduring)[slowness]


def connect(url: str, patience: Patience) -> Clients:
    """Set up the clients of `s3://bucket/prefix`, `gs://bucket/prefix` or `az://container/prefix`; sends nothing.

    Raises:
        ConfigError: the URL names no bucket or prefix, or the settings in the environment are not usable.
    """
    parts = urlsplit(url)
    bucket, prefix = parts.netloc, parts.path.strip("/")
    if "@" in bucket:
        msg = (
            "credentials do not belong into a store's URL: set the environment variables of the cloud instead, "
            "e.g. AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
        raise ConfigError(msg)
    what = "container" if parts.scheme == "az" else "bucket"
    if not _BUCKET.match(bucket):
        msg = f"{url!r}: {bucket!r} is no name of a {what}: expected {parts.scheme}://{what}/prefix"
        raise ConfigError(msg)
    names = prefix.split("/") if prefix else []
    if parts.query or parts.fragment or any(not n or n in (".", "..") or _NO_PREFIX.search(n) for n in names):
        msg = f"{url!r}: {prefix!r} is no prefix of a run: expected plain names joined by single '/'"
        raise ConfigError(msg)
    cloud = {"s3": _s3, "gs": _gcs, "az": _azure}[parts.scheme.lower()](bucket)
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

    def client(still_s: float, retry: RetryConfig, longest_s: float = patience.total_s) -> ObjectStore:
        options: ClientConfig = {
            "allow_http": cloud.endpoint.startswith("http://"),
            "connect_timeout": timedelta(seconds=min(_CONNECT_S, still_s / 2)),
            # Counts from the start of the request to its answer, and anew at every piece of the answer.
            "read_timeout": timedelta(seconds=still_s),
            "timeout": timedelta(seconds=longest_s),
        }
        return cloud.open(options, retry)

    try:
        return Clients(
            prefix=prefix + "/" if prefix else "",
            quick=client(patience.quick_s, repeat),
            patient=client(patience.request_s, repeat),
            once_quick=client(patience.quick_s, never),
            once_patient=client(patience.request_s, never),
            whole=client(patience.request_s, repeat, _LONGEST_S),
            enduring=client(patience.total_s, repeat),
            once_enduring=client(patience.total_s, never),
        )
    except (BaseError, ValueError) as error:
        msg = f"{url!r}: the settings in the environment are not usable: {brief(error)}{cloud.hint}"
        raise ConfigError(msg) from error


@dataclass(frozen=True)
class _Cloud:
    endpoint: str
    """As the environment says; empty for the cloud's own, which is https."""
    open: Callable[[ClientConfig, RetryConfig], ObjectStore]
    hint: str = ""


def _s3(bucket: str) -> _Cloud:
    endpoint = _first("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
    config: S3Config = {"region": _first("AWS_REGION", "AWS_DEFAULT_REGION") or "us-east-1"}
    if endpoint:
        config["endpoint"] = endpoint
    # Signing a body costs its SHA-256. TLS guards the body as well, and between two processes of one machine is nobody.
    if "AWS_UNSIGNED_PAYLOAD" not in os.environ:
        config["unsigned_payload"] = not endpoint.startswith("http://") or bool(_LOOPBACK.match(endpoint))
    credentials = profile_credentials(os.environ)
    return _Cloud(
        endpoint,
        lambda options, retry: S3Store(
            bucket,
            config=config,
            client_options=options,
            retry_config=retry,
            credential_provider=credentials,
        ),
    )


def _gcs(bucket: str) -> _Cloud:
    endpoint = _first("GOOGLE_BASE_URL", "STORAGE_EMULATOR_HOST")
    config: GCSConfig = {"base_url": endpoint} if endpoint else {}
    return _Cloud(
        endpoint,
        lambda options, retry: GCSStore(bucket, config=config, client_options=options, retry_config=retry),
    )


def _azure(container: str) -> _Cloud:
    return _Cloud(
        _first("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"),
        lambda options, retry: AzureStore(container, client_options=options, retry_config=retry),
        hint=". AZURE_STORAGE_ACCOUNT_NAME has to name the storage account",
    )


def _first(*variables: str) -> str:
    return next((value for name in variables if (value := os.environ.get(name))), "")
