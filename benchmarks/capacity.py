"""What capacity policies pay on measured traces, over the hindsight optimum: the tables of docs/policy.md.

Each zone by itself, 16 starts, 48 h of work; our policy is shown nothing of the zone that it is judged on. Then all zones together,
with a deadline of 1.5 times the work.

    python benchmarks/capacity.py --traces FOLDER [--json] [--carried] [--together]
"""

from __future__ import annotations

import argparse
import gzip
import json
import statistics
from pathlib import Path

from outlast.policy.capacity import Job
from outlast.policy.prior import region_of
from outlast.sim.compare import POLICIES, Setup, compare
from outlast.sim.prices import Price, read_egress, read_prices
from outlast.sim.traces import GAP_S, read_traces

FILES = {"V100": "aws-v100-2023-02.csv.gz", "H100": "gcp-h100-2025-10.csv.gz"}
HOURS = 3600.0
V100_USD = 3.06
"""On demand, per hour: the folder's README."""
CARRIED_S = 2 * HOURS
"""Longer than the one gap of the H100 traces: with --carried what was seen last stands for it."""


def single_zones(folder: Path, gap_s: float):
    """Family x overhead x deadline."""
    for family, name in FILES.items():
        pieces = read_traces([folder / name], gap_s)
        for overhead_min in (3, 12):
            for deadline_h in (52, 70, 92):
                setup = Setup(Job(48 * HOURS, deadline_h * HOURS, overhead_min * 60.0))
                yield {"family": family, "overhead_min": overhead_min, "deadline_h": deadline_h} | measured(
                    compare(pieces, setup), setup
                )


def zones_together(folder: Path, gap_s: float):
    """All zones of a family at their prices; a checkpoint of 50 GB is moved where a job goes on in another region.

    Google's prices for that are not in the folder: 0.02 USD per GB within a continent, 0.08 between two.
    """
    for family, name in FILES.items():
        pieces = read_traces([folder / name], gap_s)
        regions = {region_of(piece.zone) for piece in pieces}
        if family == "V100":
            listed = json.loads(gzip.decompress((folder / "aws-v100-spot-prices.json.gz").read_bytes()))
            prices = {
                zone.split("_")[0]: Price(statistics.mean(usd), V100_USD) for zone, usd in listed.items()
            }
            egress = read_egress(folder / "aws-egress-usd-per-gb.csv")
        else:
            prices = read_prices(folder / "prices.csv")
            egress = {
                (a, b): 0.02 if a.split("-")[0] == b.split("-")[0] else 0.08 for a in regions for b in regions
            }
        for overhead_min in (3, 12):
            job = Job(48 * HOURS, 72 * HOURS, overhead_min * 60.0, 50 * 10**9)
            setup = Setup(job, multi_zone=True, prices=prices, egress_usd_per_gb=egress)
            yield {"family": family, "overhead_min": overhead_min, "deadline_h": 72} | measured(
                compare(pieces, setup), setup
            )


def measured(compared, setup):
    """Costs over the optimum in percent, and misses of all policies."""
    best = compared.optimum_usd.mean()
    over = {name: (o.cost_usd.mean() / best - 1) * 100 for name, o in compared.outcomes.items()}
    misses = sum(int((o.finish_s > setup.job.deadline_s).sum()) for o in compared.outcomes.values())
    return {"windows": len(compared.optimum_usd), "optimum_usd": best, "over_percent": over, "misses": misses}


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--traces", type=Path, required=True)
    parser.add_argument("--json", action="store_true")
    parser.add_argument(
        "--carried", action="store_true", help="what was seen last stands for a gap of up to 2 h"
    )
    parser.add_argument("--together", action="store_true", help="jobs that go from zone to zone")
    given = parser.parse_args()
    rows = (zones_together if given.together else single_zones)(
        given.traces, CARRIED_S if given.carried else GAP_S
    )
    found = []
    for row in rows:
        found.append(row)
        if not given.json:
            over = "  ".join(f"{name} {row['over_percent'][name]:5.2f}" for name in POLICIES[1:])
            print(
                f"{row['family']} {row['overhead_min']:2} min {row['deadline_h']} h  n={row['windows']}  "
                f"optimum {row['optimum_usd']:6.2f}  {over}  misses {row['misses']}",
                flush=True,
            )
    if given.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
