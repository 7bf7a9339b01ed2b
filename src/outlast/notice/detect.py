"""Which metadata services this machine has: by what its firmware says, or by the names that `--notice` gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from outlast._errors import ConfigError
from outlast.notice.alibaba import AlibabaMetadata
from outlast.notice.aws import AwsMetadata
from outlast.notice.azure import AzureMetadata
from outlast.notice.base import DEFAULT_GRACE_S, NoticeSource
from outlast.notice.gcp import MAINTENANCE, PREEMPTED, GcpMetadata
from outlast.notice.grace import grace_s
from outlast.notice.tencent import TencentMetadata
from outlast.notice.threaded import Metadata, ThreadedSource
from outlast.notice.transport import HttpTransport

DMI = Path("/sys/class/dmi/id")
AZURE_TAG = "7783-7084-3265-9085-8269-3286-77"
"""The asset tag of every Azure machine; other Hyper-V machines have the same vendor."""
NAMES = {
    "aws": "AWS",
    "gcp": "Google Cloud",
    "azure": "Azure",
    "alibaba": "Alibaba Cloud",
    "tencent": "Tencent Cloud",
}
"""As people write them."""
BY_SIGNAL = ("signals", "slurm")
"""Places whose notices are signals, which are always heard: their names only say that no metadata service is asked."""


def place(dmi: Path = DMI) -> str | None:
    """The cloud that this machine is of, as its firmware says; None where it is none of those known, or says nothing."""
    vendor, product, bios = (_read(dmi / name) for name in ("sys_vendor", "product_name", "bios_vendor"))
    if vendor.startswith("Amazon EC2") or bios.startswith("Amazon EC2"):
        return "aws"
    if product == "Google Compute Engine" or bios == "Google":
        return "gcp"
    tags = {_read(dmi / name) for name in ("chassis_asset_tag", "board_asset_tag")}
    if vendor == "Microsoft Corporation" and AZURE_TAG in tags:
        return "azure"
    if product == "Alibaba Cloud ECS":
        return "alibaba"
    if vendor == "Tencent Cloud":
        return "tencent"
    return None


def parse_names(text: str) -> tuple[str, ...]:
    """Read the names of places, separated by commas.

    Raises:
        ConfigError: one is not known.
    """
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    known = (*_MAKERS, *BY_SIGNAL)
    for name in names:
        if name not in known:
            msg = f"--notice (OUTLAST_NOTICE) names {name!r}; expected some of {', '.join(known)}, separated by commas"
            raise ConfigError(msg)
    return names


def metadata_sources(env: Mapping[str, str], dmi: Path = DMI) -> list[NoticeSource]:
    """Listen to the metadata services that apply; each begins in a thread of its own, none is waited for.

    Raises:
        ConfigError: `$OUTLAST_NOTICE` names a place that is not known.
    """
    here = place(dmi)
    given_s = grace_s(env) if env.get("OUTLAST_GRACE_S") else DEFAULT_GRACE_S
    return [
        ThreadedSource(metadata)
        for name in clouds(env, dmi)
        for metadata in _MAKERS[name](address(name, env), name == here, given_s)
    ]


def clouds(env: Mapping[str, str], dmi: Path = DMI) -> tuple[str, ...]:
    """The clouds whose metadata service is asked: those that `$OUTLAST_NOTICE` names, else the machine's own.

    Raises:
        ConfigError: `$OUTLAST_NOTICE` names a place that is not known.
    """
    here = place(dmi)
    given = env.get("OUTLAST_NOTICE", "")
    names = parse_names(given) if given.strip() else (here,) if here else ()
    return tuple(name for name in dict.fromkeys(names) if name in _MAKERS)


def address(cloud: str, env: Mapping[str, str]) -> str:
    """Where a cloud's metadata service is: what the environment says, else what the cloud documents."""
    if cloud == "gcp":
        return env.get("GCE_METADATA_HOST") or "metadata.google.internal"
    if cloud == "azure":
        return env.get("OUTLAST_AZURE_METADATA") or "http://169.254.169.254"
    if cloud == "alibaba":
        return env.get("OUTLAST_ALIBABA_METADATA") or "http://100.100.100.200"
    if cloud == "tencent":
        return env.get("OUTLAST_TENCENT_METADATA") or "http://metadata.tencentyun.com"
    is_ipv6 = env.get("AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE", "").lower() == "ipv6"
    default = "http://[fd00:ec2::254]" if is_ipv6 else "http://169.254.169.254"
    return env.get("AWS_EC2_METADATA_SERVICE_ENDPOINT") or default


def _aws(url: str, is_here: bool, _: float) -> list[Metadata]:
    return [AwsMetadata(HttpTransport(url), is_ec2=is_here)]


def _gcp(url: str, is_here: bool, grace_s: float) -> list[Metadata]:
    return [
        GcpMetadata(HttpTransport(url), value, is_gce=is_here, grace_s=grace_s)
        for value in (PREEMPTED, MAINTENANCE)
    ]


def _azure(url: str, is_here: bool, _: float) -> list[Metadata]:
    return [AzureMetadata(HttpTransport(url), is_azure=is_here)]


def _alibaba(url: str, is_here: bool, _: float) -> list[Metadata]:
    return [AlibabaMetadata(HttpTransport(url), is_ecs=is_here)]


def _tencent(url: str, is_here: bool, _: float) -> list[Metadata]:
    return [TencentMetadata(HttpTransport(url), is_cvm=is_here)]


_MAKERS: dict[str, Callable[[str, bool, float], list[Metadata]]] = {
    "aws": _aws,
    "gcp": _gcp,
    "azure": _azure,
    "alibaba": _alibaba,
    "tencent": _tencent,
}


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""  # no firmware is shown here: a container, or another kind of machine
