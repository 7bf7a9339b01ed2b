"""The other clouds on loopback: Azurite, which is Microsoft's own emulator, and moto's S3 spoken to in Google's dialect."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import http.client
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path
from urllib.parse import urlsplit

from servers import BUCKET, S3Server, _serving, faulty_proxy

_ACCOUNT = "devstoreaccount1"
ACCOUNT_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""Azurite's account and key are the same everywhere, and public (its README)."""
BEARER_TOKEN = "not-a-secret-9876543210"
_API_VERSION = "2021-08-06"
_GENERATION_MATCH = {"x-goog-if-generation-match": ("If-None-Match", "*")}
"""How a create says "only if absent" to Google Cloud Storage (its value is then 0), and how to S3."""


@dataclass(frozen=True)
class AzureServer:
    """A running Azurite with one container."""

    endpoint: str
    bucket: str = BUCKET
    honours_create: bool = True

    @property
    def env(self) -> dict[str, str]:
        """The environment variables with which Outlast reaches it."""
        return {
            "AZURE_STORAGE_ACCOUNT_NAME": _ACCOUNT,
            "AZURE_STORAGE_ACCOUNT_KEY": ACCOUNT_KEY,
            "AZURE_STORAGE_ENDPOINT": f"{self.endpoint}/{_ACCOUNT}",
        }

    def url(self, prefix: str) -> str:
        """The URL of a run in its container."""
        return f"az://{self.bucket}/{prefix}"


@dataclass(frozen=True)
class GoogleServer:
    """A server that speaks Google's XML API, which but for a few headers is that of S3."""

    endpoint: str
    bucket: str = BUCKET
    honours_create: bool = True

    @property
    def env(self) -> dict[str, str]:
        """The environment variables with which Outlast reaches it."""
        return {"GOOGLE_BASE_URL": self.endpoint, "GOOGLE_BEARER_TOKEN": BEARER_TOKEN}

    def url(self, prefix: str) -> str:
        """The URL of a run in its bucket."""
        return f"gs://{self.bucket}/{prefix}"


@contextlib.contextmanager
def azurite(folder: Path) -> Iterator[AzureServer]:
    """Azurite: checks signatures, honours create-if-absent, keeps objects in memory."""
    program = Path(sys.executable).parent.parent / "node_modules" / ".bin" / "azurite-blob"
    if not program.exists():
        msg = f"{program} is not there: run `make test`, which installs what the tests need (for this, npm has to be there)"
        raise RuntimeError(msg)
    command = [
        str(program), "--blobHost", "127.0.0.1", "--blobPort", "0", "--inMemoryPersistence", "--disableTelemetry", "--silent",
        "--skipApiVersionCheck",
    ]  # fmt: skip
    with _serving(command, folder / "azurite.log") as endpoint:
        _make_container(endpoint, BUCKET)
        yield AzureServer(endpoint)


@contextlib.contextmanager
def google_dialect(moto: S3Server) -> Iterator[GoogleServer]:
    """A proxy in front of moto that turns Google's condition of a create into that of S3.

    It shows that requests and answers of Google's XML API are understood; of Google's own service it shows nothing.
    """
    with faulty_proxy(GoogleServer(moto.endpoint, moto.bucket), renamed=_GENERATION_MATCH) as (_, server):
        yield server


def _make_container(endpoint: str, name: str) -> None:
    """Create Container, signed by Shared Key (REST reference, "Authorize with Shared Key")."""
    date = formatdate(usegmt=True)
    to_sign = (
        "PUT" + "\n" * 12 + f"x-ms-date:{date}\nx-ms-version:{_API_VERSION}\n"
        f"/{_ACCOUNT}/{_ACCOUNT}/{name}\nrestype:container"
    )
    digest = hmac.new(base64.b64decode(ACCOUNT_KEY), to_sign.encode(), hashlib.sha256).digest()
    headers = {
        "x-ms-date": date,
        "x-ms-version": _API_VERSION,
        "Content-Length": "0",
        "Authorization": f"SharedKey {_ACCOUNT}:{base64.b64encode(digest).decode()}",
    }
    connection = http.client.HTTPConnection(urlsplit(endpoint).netloc, timeout=10)
    try:
        connection.request("PUT", f"/{_ACCOUNT}/{name}?restype=container", headers=headers)
        response = connection.getresponse()
        if response.status != 201:
            msg = f"the container was not made: {response.status} {response.read()!r}"
            raise RuntimeError(msg)
    finally:
        connection.close()
