"""What has been measured of spot capacity: for each zone, how often it changed, by how long it had been as it was. Data.

Counted with `availability.count_stays` in the traces of the SkyNomad artifact (NSDI '27, Sky Computing Lab, UC Berkeley, repository
andylizf/skynomad-artifact, tag nsdi27-ae, Apache-2.0), in ticks of 10 minutes: one V100 on AWS in February and March 2023, one H100 on
Google Cloud in October 2025.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from outlast.policy.availability import RANGES, Stays

_AWS, _GCP = re.compile(r"[a-z]+(-[a-z]+)+-\d[a-z]"), re.compile(r"[a-z]+-[a-z]+\d+-[a-z]")


@dataclass(frozen=True)
class Known:
    """A zone that was measured."""

    provider: str
    zone: str
    stays: Stays


def known_zones(zones: Collection[str]) -> list[Known]:
    """Return what jobs in `zones` may be planned with: other zones of the same provider; of any where there are none.

    Their own rows are left out, so that a replay of the traces that these were counted in looks nowhere ahead.
    """
    here = {zone.partition(":")[0] for zone in zones}
    others = [known for known in _KNOWN if known.zone not in here]
    providers = {_provider(zone) for zone in here}
    return [known for known in others if known.provider in providers] or others


def machine_of(zone: str) -> str:
    """The machine type that a zone's name has after a colon, as in us-east-1a:p3.2xlarge; empty where it names none."""
    return zone.partition(":")[2]


def region_of(zone: str) -> str:
    """The region of a zone, by how AWS and Google Cloud name theirs; a name of another kind is its own region."""
    zone = zone.partition(":")[0]
    if _AWS.fullmatch(zone):
        return zone[:-1]
    return zone[:-2] if _GCP.fullmatch(zone) else zone


def _provider(zone: str) -> str | None:
    """Who names zones like this one."""
    return "aws" if _AWS.fullmatch(zone) else "gcp" if _GCP.fullmatch(zone) else None


def _read(line: str) -> Known:
    provider, zone, *counts = line.split()
    ends, ticks = np.array(counts, dtype=float).reshape(2, 2, RANGES)
    return Known(provider, zone, Stays(ends, ticks))


# Provider, zone; ends while up, while down, by range of ages; ticks while up, while down.
_KNOWN = tuple(
    _read(line)
    for line in """
aws us-east-1a  94 48 45 31 15 11 3 0 0  78 37 21 25 27 20 11 20 8  247 153 188 188 157 125 31 0 0  248 170 253 396 610 761 1042 948 1045
aws us-east-1c  102 55 64 37 37 22 16 6 2  98 45 42 49 46 35 22 4 1  342 240 331 410 463 541 406 229 97  342 244 374 536 685 653 478 179 12
aws us-east-1f  87 32 44 36 25 30 16 9 4  101 38 42 36 20 25 15 6 1  284 197 306 404 569 709 681 580 152  284 183 266 363 456 588 356 169 15
aws us-east-2a  30 16 20 13 20 15 10 12 8  41 24 24 16 7 20 10 3 0  145 115 188 290 449 615 865 950 1363  145 104 143 197 286 348 236 123 0
aws us-west-2b  23 9 8 7 10 13 5 10 8  17 30 12 13 9 8 4 0 0  94 71 120 206 332 492 712 758 3151  93 76 86 108 135 101 27 0 0
gcp asia-south2-b  0 0 0 0 0 0 0 0 1  1 0 0 0 0 0 0 0 0  3 3 6 12 24 48 96 192 1717  1 0 0 0 0 0 0 0 0
gcp asia-southeast1-c  2 0 1 6 0 3 0 2 1  3 3 3 1 1 3 0 0 1  16 14 27 35 56 78 128 146 649  16 13 20 27 44 64 64 100 605
gcp europe-west1-c  6 1 1 2 0 0 1 3 2  3 2 2 4 1 0 3 1 0  18 12 22 35 64 128 239 293 1037  16 13 22 29 35 64 62 13 0
gcp europe-west3-c  2 0 2 3 2 4 1 2 0  3 2 1 2 1 0 3 0 4  17 15 29 44 69 89 99 96 543  17 14 24 40 66 128 204 320 288
gcp us-central1-a  3 5 1 6 3 2 1 4 5  25 5 0 0 0 0 0 0 0  32 29 48 84 114 199 326 440 795  30 5 0 0 0 0 0 0 0
gcp us-central1-b  23 16 8 11 9 6 6 9 3  57 19 11 4 0 0 0 0 0  92 69 102 161 233 344 450 460 33  91 34 23 10 0 0 0 0 0
gcp us-east4-a  87 12 16 11 5 1 1 7 3  104 17 11 6 3 1 0 0 0  144 57 77 99 121 206 362 476 270  143 39 36 38 22 12 0 0 0
gcp us-west1-b  100 20 14 11 3 2 0 0 1  61 43 32 3 2 2 2 1 4  151 51 52 52 31 25 32 64 52  152 91 67 54 86 144 228 272 498
""".strip().splitlines()
)
