"""`outlast fit`: whether a save fits into a notice, asked before launch. The answer is that of the policy itself."""

from __future__ import annotations

import sys
from typing import Annotated

from cyclopts import App, Parameter

from outlast._config import parse_bytes, parse_duration_s, parse_rate_bytes_per_s
from outlast._errors import ConfigError
from outlast._types import Json
from outlast.agent.precedent import saves_in
from outlast.checkpoint import catalog
from outlast.cli._place import open_run
from outlast.cli._recent import recent_events
from outlast.cli._show import console, print_json, text
from outlast.policy.emergency import fits

SAVES_READ = 3
"""The slowest of so many last saves is what the next one is reckoned by, as an agent does."""

app = App(name="fit")


@app.default
def fit(
    run: str | None = None,
    /,
    *,
    notice: str,
    state: str | None = None,
    rate: str | None = None,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Say whether a save fits into a notice. Ends with 0 where it does, with 1 where it does not.

    Example: outlast fit --state 14GB --rate 0.9GB/s --notice 30s

    Args:
        run: URL, path, or name under $OUTLAST_STORE: what its last saves wrote, and how fast, where that is not given.
        notice: From notice to power-off: seconds, or a text like 30s or 2m.
        state: What a save writes, such as 14GB.
        rate: To the store, such as 0.9GB/s.
        json: Print JSON.
    """
    notice_s = parse_duration_s(notice, "--notice")
    nbytes = None if state is None else parse_bytes(state, "--state")
    bytes_per_s = None if rate is None else float(parse_rate_bytes_per_s(rate, "--rate"))
    if run is None and (nbytes is None or bytes_per_s is None):
        missing = "--state" if nbytes is None else "--rate"
        msg = f"{missing} is not given; expected --state and --rate, such as 14GB and 0.9GB/s, or a run that has saved"
        raise ConfigError(msg)
    if run is not None:
        wrote, took_s = _slowest_save(run)
        nbytes = wrote if nbytes is None else nbytes
        bytes_per_s = wrote / took_s if bytes_per_s is None else bytes_per_s
    assert nbytes is not None
    assert bytes_per_s is not None
    answer = fits(nbytes, bytes_per_s, notice_s)
    if json:
        found: dict[str, Json] = {
            "fits": answer.fits,
            "needs_s": answer.needs_s,
            "notice_s": notice_s,
            "bytes": nbytes,
            "bytes_per_s": round(bytes_per_s),
            "why": answer.why,
        }
        print_json(found)
    else:
        console().print(text(answer.why))
    sys.exit(0 if answer.fits else 1)


def _slowest_save(run: str) -> tuple[int, float]:
    """Bytes and seconds of the slowest of a run's last saves."""
    store, _ = open_run(run)
    faults: list[str] = []
    saves = saves_in(recent_events(store, catalog.attempts(store), (), faults.append))
    if not saves:
        damaged = f" ({'; '.join(faults)})" if faults else ""
        msg = f"{store.url} tells of no save that wrote anything of late{damaged}; give --state and --rate"
        raise ConfigError(msg)
    took_s, wrote = max(saves[-SAVES_READ:])
    return wrote, took_s
