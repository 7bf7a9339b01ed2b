"""Which pool a machine comes from: what each cloud's metadata service answers to those who ask as it wants to be asked."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread

import pytest

from outlast.notice.detect import AZURE_TAG
from outlast.notice.machine import Machine, machine
from outlast.notice.preemptible import ASK_S

DMI = {
    "aws": {"sys_vendor": "Amazon EC2"},
    "gcp": {"sys_vendor": "Google", "product_name": "Google Compute Engine"},
    "azure": {"sys_vendor": "Microsoft Corporation", "chassis_asset_tag": AZURE_TAG},
}
ENDPOINT = {
    "aws": "AWS_EC2_METADATA_SERVICE_ENDPOINT",
    "gcp": "GCE_METADATA_HOST",
    "azure": "OUTLAST_AZURE_METADATA",
}
TOKEN = "AQAE-token=="
HEADER = {
    "aws": ("X-aws-ec2-metadata-token", TOKEN),
    "gcp": ("Metadata-Flavor", "Google"),
    "azure": ("Metadata", "true"),
}
AZURE = "/metadata/instance/compute/{}?api-version=2021-02-01&format=text"
ANSWERS = {
    "aws": {
        "/latest/meta-data/placement/availability-zone": "us-east-1a",
        "/latest/meta-data/instance-type": "p4d.24xlarge",
        "/latest/meta-data/instance-life-cycle": "spot",
    },
    "gcp": {
        "/computeMetadata/v1/instance/zone": "projects/12345/zones/us-central1-b",
        "/computeMetadata/v1/instance/machine-type": "projects/12345/machineTypes/a2-highgpu-1g",
        "/computeMetadata/v1/instance/scheduling/preemptible": "FALSE",
    },
    "azure": {
        AZURE.format("location"): "westeurope",
        AZURE.format("vmSize"): "Standard_NC24ads_A100_v4",
        AZURE.format("priority"): "Spot",
    },
}
POOL = {
    "aws": Machine("aws-us-east-1a-p4d.24xlarge-spot", "p4d.24xlarge"),
    "gcp": Machine("gcp-us-central1-b-a2-highgpu-1g", "a2-highgpu-1g"),
    "azure": Machine("azure-westeurope-Standard_NC24ads_A100_v4-spot", "Standard_NC24ads_A100_v4"),
}


@contextmanager
def metadata(cloud: str, answers: dict[str, str], *, hangs: bool = False) -> Iterator[str]:
    """A metadata service that wants its cloud's header; its address."""
    end = Event()

    class Service(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            self.give(TOKEN if self.headers["X-aws-ec2-metadata-token-ttl-seconds"] else None)

        def do_GET(self) -> None:
            if hangs:
                end.wait()
            name, value = HEADER[cloud]
            self.give(answers.get(self.path) if self.headers[name] == value else None)

        def give(self, answer: str | None) -> None:
            self.send_response(404 if answer is None else 200)
            self.send_header("Content-Length", str(len(answer or "")))
            self.end_headers()
            self.wfile.write((answer or "").encode())

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Service)
    serving = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    serving.start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}"
    finally:
        end.set()
        server.shutdown()
        serving.join()
        server.server_close()


def env(cloud: str, at: str) -> dict[str, str]:
    return {ENDPOINT[cloud]: at if cloud == "gcp" else f"http://{at}"}


def firmware(folder: Path, cloud: str) -> Path:
    for name, value in DMI[cloud].items():
        (folder / name).write_text(value + "\n")
    return folder


@pytest.mark.parametrize("cloud", DMI)
def test_a_pool_is_cloud_place_and_machine_type_and_whether_it_is_spot(cloud: str, tmp_path: Path) -> None:
    with metadata(cloud, ANSWERS[cloud]) as at:
        assert machine(env(cloud, at), firmware(tmp_path, cloud)) == POOL[cloud]


@pytest.mark.parametrize("cloud", DMI)
def test_an_answer_that_is_missing_or_is_no_name_leaves_it_unknown(cloud: str, tmp_path: Path) -> None:
    """It becomes part of a key on the store."""
    first = next(iter(ANSWERS[cloud]))
    for answer in ("", "..", "a b", "x" * 100):
        with metadata(cloud, {**ANSWERS[cloud], first: answer}) as at:
            assert machine(env(cloud, at), firmware(tmp_path, cloud)) is None


def test_a_service_that_hangs_is_not_waited_for(tmp_path: Path) -> None:
    with metadata("gcp", {}, hangs=True) as at:
        began = time.monotonic()
        assert machine(env("gcp", at), firmware(tmp_path, "gcp")) is None
        assert time.monotonic() - began < 10 * ASK_S


def test_elsewhere_nobody_is_asked(tmp_path: Path) -> None:
    def transport(_: str) -> None:
        pytest.fail("it was asked")

    assert machine({}, tmp_path, transport) is None
