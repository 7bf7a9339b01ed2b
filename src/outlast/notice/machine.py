"""Which pool this machine comes from, as its cloud's metadata service says: zone, machine type, and whether it can be taken away."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from outlast._errors import ConfigError
from outlast.notice.detect import DMI, address, place
from outlast.notice.preemptible import ASK_S, preemptible
from outlast.notice.transport import HttpTransport, Transport

_OK = 200
_SAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class Machine:
    """What a cloud says of a machine: the pool that it comes from, such as `aws-us-east-1a-p4d.24xlarge-spot`, and its type."""

    pool: str
    type: str


def machine(
    env: Mapping[str, str], dmi: Path = DMI, transport: Callable[[str], Transport] = HttpTransport
) -> Machine | None:
    """Ask, where the firmware names a cloud; None elsewhere, or where no answer comes in `ASK_S`."""
    cloud = place(dmi)
    if cloud not in _ASK:
        return None
    found: list[Machine | None] = []
    asking = threading.Thread(
        target=lambda: found.append(_machine(cloud, env, dmi, transport)), name="outlast-machine", daemon=True
    )
    asking.start()
    asking.join(ASK_S)
    return found[0] if found else None


def _machine(
    cloud: str, env: Mapping[str, str], dmi: Path, transport: Callable[[str], Transport]
) -> Machine | None:
    with (
        contextlib.suppress(OSError, ConfigError),
        contextlib.closing(transport(address(cloud, env))) as service,
    ):
        zone, kind = _ASK[cloud](service)
        if zone is None or kind is None:
            return None
        market = "-spot" if preemptible(env, dmi, transport) else ""
        return Machine(f"{cloud}-{zone}-{kind}{market}", kind)
    return None


def _ask_aws(service: Transport) -> tuple[str | None, str | None]:
    ttl = {"X-aws-ec2-metadata-token-ttl-seconds": "60"}
    answer = service.request("PUT", "/latest/api/token", ttl, timeout_s=ASK_S)
    token = answer.body.decode("ascii", "replace").strip() if answer.status == _OK else ""
    if not token.isprintable():
        return None, None
    headers = {"X-aws-ec2-metadata-token": token}
    found = [
        _value(service, f"/latest/meta-data/{name}", headers)
        for name in ("placement/availability-zone", "instance-type")
    ]
    return found[0], found[1]


def _ask_gcp(service: Transport) -> tuple[str | None, str | None]:
    """Both come with the path of their project before them."""
    headers = {"Metadata-Flavor": "Google"}
    zone, kind = (
        _value(service, f"/computeMetadata/v1/instance/{name}", headers) for name in ("zone", "machine-type")
    )
    return zone, kind


def _ask_azure(service: Transport) -> tuple[str | None, str | None]:
    """A region's zones are numbered anew for each subscription, and many machines have none: the region is the place."""
    location, kind = (
        _value(
            service,
            f"/metadata/instance/compute/{name}?api-version=2021-02-01&format=text",
            {"Metadata": "true"},
        )
        for name in ("location", "vmSize")
    )
    return location, kind


def _value(service: Transport, path: str, headers: Mapping[str, str]) -> str | None:
    """The last part of an answer, where it is a name that may be part of a key."""
    answer = service.request("GET", path, dict(headers), timeout_s=ASK_S)
    text = answer.body.decode("ascii", "replace").strip().rpartition("/")[2]
    return text if answer.status == _OK and _SAFE.fullmatch(text) else None


_ASK: dict[str, Callable[[Transport], tuple[str | None, str | None]]] = {
    "aws": _ask_aws,
    "gcp": _ask_gcp,
    "azure": _ask_azure,
}
