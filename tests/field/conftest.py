"""One test per line of the page of failures seen in the field, each named after its failure and quoting its line.

The files are the page's headings. A script that trains is forked from a process that has imported torch (`launch.py`);
where no tensor matters, the trainer is `torchless.py`: a real link, real shared memory and a real agent, in the test's own
process. What is judged is what a script wrote itself, or bytes on the store.

Left to the work that brings what they are about:

- several ranks (they need a world; "a collective inside a signal handler" is here for ranks with a run each): "only rank 3's
  machine got the notice"; "123 of 128 shards saved, then a hang" (its second half, "logged saved before it was", is here); "one
  rank's RNG stream restored on all ranks"; "all ranks wrote one file for the loader's state"; "state of a lost rank silently
  dropped when the world shrank".
- choice of pools (it needs the controller): "92 % of joint interruptions fall within 3 minutes".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from torchless import Trainer

from servers import FaultyProxy, S3Server, faulty_proxy, rclone_s3


@pytest.fixture
def trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Trainer]]:
    """Make trainers without torch, by default of the run in `tmp_path / "run"`; what is left of them is ended."""
    for name in ("OUTLAST_AGENT", "OUTLAST_LAUNCH_ID", "OUTLAST_NOTICE_FILE", "OUTLAST_GRACE_S"):
        monkeypatch.delenv(name, raising=False)
    made: list[Trainer] = []

    def make(url: str = f"file://{tmp_path}/run") -> Trainer:
        made.append(Trainer(url))
        made[-1].join()
        return made[-1]

    yield make
    for each in made:
        each.kill(agent_too=True)


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[FaultyProxy, S3Server, Path]]:
    """A bucket behind a proxy that can fail, and the folder that holds its objects as files."""
    folder = tmp_path_factory.mktemp("bucket")
    with rclone_s3(folder) as server, faulty_proxy(server) as (proxy, seen):
        yield proxy, seen, folder / "rclone" / server.bucket
