"""Whether this machine is preemptible: what each cloud's metadata service answers, and how little a start waits for it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread

import pytest

from outlast._errors import ConfigError
from outlast.notice.detect import AZURE_TAG
from outlast.notice.preemptible import ASK_S, preemptible

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
PATH = {
    "aws": "/latest/meta-data/instance-life-cycle",
    "gcp": "/computeMetadata/v1/instance/scheduling/preemptible",
    "azure": "/metadata/instance/compute/priority?api-version=2021-02-01&format=text",
}


@contextmanager
def metadata(cloud: str, answer: bytes, *, hangs: bool = False) -> Iterator[tuple[str, list[str]]]:
    """A metadata service that knows one value and wants its cloud's header; its address, and the paths that were asked."""
    asked: list[str] = []
    end = Event()

    class Service(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            asked.append(self.path)
            is_token = (
                self.path == "/latest/api/token" and self.headers["X-aws-ec2-metadata-token-ttl-seconds"]
            )
            self.give(200 if is_token else 404, TOKEN.encode())

        def do_GET(self) -> None:
            asked.append(self.path)
            if hangs:
                end.wait()
            name, value = HEADER[cloud]
            is_right = self.path == PATH[cloud] and self.headers[name] == value
            self.give(200 if is_right else 404, answer if is_right else b"")

        def give(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Service)
    serving = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    serving.start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}", asked
    finally:
        end.set()
        server.shutdown()
        serving.join()
        server.server_close()


def firmware(folder, cloud):
    for name, text in DMI.get(cloud, {}).items():
        (folder / name).write_text(f"{text}\n")
    return folder


def environment(cloud, address):
    return {ENDPOINT[cloud]: address if cloud == "gcp" else f"http://{address}"}


@pytest.mark.parametrize(
    ("cloud", "answer", "is_known"),
    [
        ("aws", b"spot", True),
        ("aws", b"on-demand", False),
        ("gcp", b"TRUE", True),
        ("gcp", b"FALSE", False),
        ("azure", b"Spot", True),
        ("azure", b"Low", True),
        ("azure", b"Regular", False),
        ("azure", b"", False),
    ],
)
def test_the_cloud_says_what_it_sells_this_machine_as(tmp_path, cloud, answer, is_known):
    """Each with the headers that it wants, or it would not answer."""
    with metadata(cloud, answer) as (address, asked):
        why = preemptible(environment(cloud, address), firmware(tmp_path, cloud))
    assert (why is not None) is is_known
    assert asked[-1] == PATH[cloud]


def test_a_machine_of_no_cloud_asks_nobody(tmp_path):
    """Though there is a service that would say so."""
    with metadata("aws", b"spot") as (address, asked):
        assert preemptible(environment("aws", address), firmware(tmp_path, "none")) is None
    assert asked == []


@pytest.mark.parametrize(("said", "is_known"), [("1", True), ("0", False)])
def test_what_the_environment_says_is_believed(tmp_path, said, is_known):
    """Either way, and nobody is asked."""
    with metadata("gcp", b"FALSE" if is_known else b"TRUE") as (address, asked):
        env = {**environment("gcp", address), "OUTLAST_PREEMPTIBLE": said}
        assert (preemptible(env, firmware(tmp_path, "gcp")) is not None) is is_known
    assert asked == []


def test_anything_else_in_the_environment_is_an_error():
    """It names the variable and what it takes."""
    with pytest.raises(ConfigError, match="OUTLAST_PREEMPTIBLE is 'yes'; expected 1 .* or 0"):
        preemptible({"OUTLAST_PREEMPTIBLE": "yes"})


def test_a_service_that_hangs_delays_a_start_by_a_second_at_most(tmp_path):
    """And leaves it unknown."""
    with metadata("azure", b"Spot", hangs=True) as (address, _):
        began_s = time.monotonic()
        assert preemptible(environment("azure", address), firmware(tmp_path, "azure")) is None
        assert time.monotonic() - began_s < ASK_S + 0.5


def test_a_service_that_is_not_there_leaves_it_unknown(tmp_path):
    """A container without a way to it."""
    with metadata("aws", b"spot") as (address, _):
        pass
    assert preemptible(environment("aws", address), firmware(tmp_path, "aws")) is None


def test_a_cloud_that_does_not_tell_leaves_it_unknown(tmp_path):
    """Alibaba Cloud has no value for it: nobody is asked, and nothing fails."""
    (tmp_path / "product_name").write_text("Alibaba Cloud ECS\n")
    assert preemptible({}, tmp_path, transport=None) is None
