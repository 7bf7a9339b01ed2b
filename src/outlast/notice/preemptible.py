"""Whether this machine can be taken away at any time, as far as that is known without delaying a run.

A cloud's metadata service is asked only where the machine's own firmware tables (DMI) name that cloud, so that a start anywhere
else opens no connection. Alibaba Cloud and Tencent Cloud document no value that tells it.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from outlast._errors import ConfigError
from outlast.notice.detect import DMI, address, place
from outlast.notice.transport import HttpTransport, Transport

ASK_S = 1.0
"""The most that a start waits for a metadata service, all questions together: they are answered in milliseconds."""

_OK = 200


def preemptible(
    env: Mapping[str, str], dmi: Path = DMI, transport: Callable[[str], Transport] = HttpTransport
) -> str | None:
    """Say how it is known that this machine is preemptible; None where it is not, or not in `ASK_S`.

    `$OUTLAST_PREEMPTIBLE` is believed, 1 or 0, and then nothing is asked.

    Raises:
        ConfigError: the variable is neither.
    """
    said = env.get("OUTLAST_PREEMPTIBLE", "")
    if said not in ("", "0", "1"):
        msg = f"OUTLAST_PREEMPTIBLE is {said!r}; expected 1 (this machine can be taken away at any time) or 0"
        raise ConfigError(msg)
    if said:
        return "OUTLAST_PREEMPTIBLE=1" if said == "1" else None
    cloud = place(dmi)
    if cloud not in _ASK:
        return None
    found: list[str | None] = []
    # A thread of its own: neither looking up a name nor an answer that trickles has a time limit as a whole.
    asking = threading.Thread(
        target=lambda: found.append(_ask(cloud, env, transport)), name="outlast-preemptible", daemon=True
    )
    asking.start()
    asking.join(ASK_S)
    return found[0] if found else None


def _ask(cloud: str, env: Mapping[str, str], transport: Callable[[str], Transport]) -> str | None:
    """Ask the cloud's metadata service; a service that fails leaves it unknown."""
    with contextlib.suppress(OSError), contextlib.closing(transport(address(cloud, env))) as service:
        return _ASK[cloud](service)
    return None


def _ask_aws(service: Transport) -> str | None:
    """The kind of capacity that an EC2 instance runs on: `on-demand`, `spot`, `scheduled` or `capacity-block`."""
    ttl = {"X-aws-ec2-metadata-token-ttl-seconds": "60"}
    token = service.request("PUT", "/latest/api/token", ttl, timeout_s=ASK_S)
    if token.status != _OK:
        return None
    headers = {"X-aws-ec2-metadata-token": token.body.decode("ascii", "replace").strip()}
    if not headers["X-aws-ec2-metadata-token"].isprintable():
        return None
    answer = service.request("GET", "/latest/meta-data/instance-life-cycle", headers, timeout_s=ASK_S)
    is_spot = answer.status == _OK and answer.body.strip() == b"spot"
    return "AWS instance-life-cycle is spot" if is_spot else None


def _ask_gcp(service: Transport) -> str | None:
    """Of Spot VMs, and of the older preemptible ones, `scheduling/preemptible` is TRUE."""
    path = "/computeMetadata/v1/instance/scheduling/preemptible"
    answer = service.request("GET", path, {"Metadata-Flavor": "Google"}, timeout_s=ASK_S)
    is_spot = answer.status == _OK and answer.body.strip().upper() == b"TRUE"
    return "GCP instance/scheduling/preemptible is TRUE" if is_spot else None


def _ask_azure(service: Transport) -> str | None:
    """The machine's priority: `Regular`, `Spot`, or `Low` in older scale sets."""
    path = "/metadata/instance/compute/priority?api-version=2021-02-01&format=text"
    answer = service.request("GET", path, {"Metadata": "true"}, timeout_s=ASK_S)
    priority = answer.body.strip().decode("ascii", "replace")
    is_spot = answer.status == _OK and priority in ("Spot", "Low")
    return f"Azure compute priority is {priority}" if is_spot else None


_ASK: dict[str, Callable[[Transport], str | None]] = {
    "aws": _ask_aws,
    "gcp": _ask_gcp,
    "azure": _ask_azure,
}
