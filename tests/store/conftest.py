"""The places that the contract is held to: a folder, two real S3 servers, Azurite, and Google's dialect of S3."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from clouds import AzureServer, GoogleServer, azurite, google_dialect
from outlast.store import Store, open_store
from servers import S3Server, moto_s3, rclone_s3


@dataclass(frozen=True)
class Place:
    """One run's empty place. `folder` is where its objects are files, None where they are not."""

    kind: str
    url: str
    folder: Path | None

    def open(self) -> Store:
        return open_store(self.url)


@pytest.fixture(scope="session")
def rclone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[S3Server, Path]]:
    """A store that ignores create-if-absent, and the folder that it serves."""
    folder = tmp_path_factory.mktemp("rclone")
    with rclone_s3(folder) as server:
        yield server, folder / "rclone" / server.bucket


@pytest.fixture(scope="session")
def moto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A store that honours create-if-absent."""
    with moto_s3(tmp_path_factory.mktemp("moto")) as server:
        yield server


@pytest.fixture(scope="session")
def azure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AzureServer]:
    """Azurite."""
    with azurite(tmp_path_factory.mktemp("azure")) as server:
        yield server


@pytest.fixture(scope="session")
def google(moto: S3Server) -> Iterator[GoogleServer]:
    """Moto in Google's dialect."""
    with google_dialect(moto) as server:
        yield server


@pytest.fixture
def prefix(tmp_path: Path) -> str:
    """A prefix that no other test uses."""
    return f"{tmp_path.parent.name}/{tmp_path.name}"


@pytest.fixture(params=["local", "rclone", "moto", "azure", "google"])
def place(
    request: pytest.FixtureRequest, tmp_path: Path, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> Place:
    """Each kind of store in turn."""
    if request.param == "local":
        return Place("local", str(tmp_path / "run"), tmp_path / "run")
    if request.param == "rclone":
        server, folder = request.getfixturevalue("rclone")
        use(monkeypatch, server)
        return Place("rclone", server.url(prefix), folder / prefix)
    server = request.getfixturevalue(request.param)
    use(monkeypatch, server)
    return Place(request.param, server.url(prefix), None)


def use(monkeypatch: pytest.MonkeyPatch, server: S3Server | AzureServer | GoogleServer) -> None:
    """Point the usual environment variables at a server."""
    for name, value in server.env.items():
        monkeypatch.setenv(name, value)
