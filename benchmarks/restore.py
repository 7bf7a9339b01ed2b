"""What bringing a state back costs: Outlast beside torch.load, torch.load(mmap=True) and torch.distributed.checkpoint.

The state is that of a GPT-like model of 151 million parameters in fp32 with AdamW: 1.81 GB. Every restore runs in a process of
its own, in turns, and ends with the model and the optimizer holding the saved bits, which is checked by digests outside the
timed part. `cold`: the files are dropped from the page cache right before. `warm`: they were just read. `arena`: the trainer
was killed and the agent of `outlast run` lived. For Outlast the time runs from the accepted offer, memory not allocated yet, to
the end of its own comparison of every bit. Importing and starting an agent are measured by `benchmarks/resume.py`.

`limits`: the best raw read rate of the same files in the same rounds, cold (direct I/O, 1 to 4 threads) and warm.

    python benchmarks/restore.py [--json] [--runs 3] [--folder DIR] [--small] [--only NAME]
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

READ_BYTES = (16 << 20, 32 << 20, 128 << 20)
READ_THREADS = (1, 2, 3, 4)
PEERS = ("torch.load", "torch.load(mmap=True) + copy", "dcp.load")
OURS, FROM_ARENA = "outlast", "outlast, live arena"


def work(small: bool) -> Any:
    from work import ISSUE, SMALL, Work

    return Work(SMALL if small else ISSUE)


def digest_of(state: Any) -> str:
    import torch
    import xxhash
    from work import tensors

    whole = xxhash.xxh3_128()
    for tensor in tensors(state):
        whole.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return whole.hexdigest()


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def drop(folder: Path) -> None:
    """Drop what is in the page cache of the files."""
    for path in files(folder):
        file = os.open(path, os.O_RDONLY)
        os.fsync(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)


def warm(folder: Path) -> None:
    """Read all files through the page cache."""
    for path in files(folder):
        with path.open("rb", buffering=0) as file:
            while file.read(16 << 20):
                pass


def raw_rate(folder: Path, *, direct: bool) -> float:
    """The best rate, in bytes per second, at which 1 to 4 threads read the segments."""
    paths = [path for path in files(folder / "outlast" / "segments") if path.stat().st_size >= 1 << 20]
    best = 0.0
    for nbytes in READ_BYTES:
        for threads in READ_THREADS:
            best = max(best, _read_all(paths, nbytes, threads, direct=direct))
    return best


def _read_all(paths: list[Path], nbytes: int, threads: int, *, direct: bool) -> float:
    left = iter([(path, at) for path in paths for at in range(0, path.stat().st_size, nbytes)])
    lock = threading.Lock()
    got = [0] * threads
    buffers = [mmap.mmap(-1, nbytes) for _ in range(threads)]
    for buffer in buffers:
        buffer.write(bytes(nbytes))

    def read(which: int) -> None:
        while True:
            with lock:
                path, at = next(left, (None, 0))
            if path is None:
                return
            file = os.open(path, os.O_RDONLY | (os.O_DIRECT if direct else 0))
            got[which] += os.preadv(file, [buffers[which]], at)
            os.close(file)

    workers = [threading.Thread(target=read, args=(which,)) for which in range(threads)]
    started = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return sum(got) / (time.perf_counter() - started)


def save_all(folder: Path, small: bool) -> None:
    """Save one state in every way; leaves its digest and size in `about.json`."""
    import torch
    import torch.distributed.checkpoint as dcp

    import outlast

    made = work(small)
    made.step()
    torch.save(made.state(), folder / "torch" / "state.pt")
    dcp.save(made.state(), checkpoint_id=folder / "dcp")
    for path in (*files(folder / "torch"), *files(folder / "dcp")):
        with path.open("rb") as file:
            os.fsync(file.fileno())
    made.optimizer.zero_grad()  # no peer saves gradients
    about = {"state_bytes": made.state_bytes, "digest": digest_of(made.state())}
    (folder / "about.json").write_text(json.dumps(about))
    run = outlast.Run(str(folder / "outlast"), model=made.model, optimizer=made.optimizer, save_every="10h")
    run.save()


def restore(name: str, cache: str, folder: Path, small: bool) -> None:
    """Restore once, and print the seconds."""
    import torch

    made = work(small)
    place = folder / {OURS: "outlast", PEERS[2]: "dcp"}.get(name, "torch")
    (drop if cache == "cold" else warm)(place)
    if name == OURS:
        seconds = _ours(made, str(place))
    else:
        load = {
            PEERS[0]: lambda: _load(made, torch.load(place / "state.pt", weights_only=True)),
            PEERS[1]: lambda: _load(
                made, _copied(torch.load(place / "state.pt", weights_only=True, mmap=True))
            ),
            PEERS[2]: lambda: _dcp(made, place),
        }[name]
        started = time.perf_counter()
        load()
        seconds = time.perf_counter() - started
    _print(made, seconds)


def _print(made: Any, seconds: float) -> None:
    print(json.dumps({"seconds": seconds, "digest": digest_of(made.state())}), flush=True)
    os._exit(0)


def _ours(made: Any, place: str) -> float:
    import outlast
    from outlast import run as run_module
    from outlast.trainer import resume

    times: dict[str, float] = {}
    resume.make_homes = _noting(times, "begin", resume.make_homes)
    opened = run_module.open_run

    def open_run(*arguments: Any) -> Any:
        answer = opened(*arguments)
        times["end"] = time.perf_counter()
        return answer

    run_module.open_run = open_run
    outlast.Run(place, model=made.model, optimizer=made.optimizer, save_every="10h")
    return times["end"] - times["begin"]


def _noting(times: dict[str, float], name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def noted(*arguments: Any) -> Any:
        times[name] = time.perf_counter()
        return function(*arguments)

    return noted


def _load(made: Any, state: dict[str, Any]) -> None:
    made.model.load_state_dict(state["model"])
    made.optimizer.load_state_dict(state["optimizer"])


def _copied(state: dict[str, Any]) -> dict[str, Any]:
    """The optimizer keeps what it is given: it must not look into the file for ever. The model copies by itself."""
    import torch

    optimizer = state["optimizer"]
    for each in optimizer["state"].values():
        each.update({key: value.clone() for key, value in each.items() if isinstance(value, torch.Tensor)})
    return state


def _dcp(made: Any, place: Path) -> None:
    import torch.distributed.checkpoint as dcp

    state = made.state()
    dcp.load(state, checkpoint_id=place)
    _load(made, state)


def from_arena(folder: Path, small: bool) -> None:
    """The script of `outlast run`: the first time it saves and is killed, the second time it restores."""
    import outlast

    made = work(small)
    killed = folder / "killed"
    if killed.exists():
        _print(made, _ours(made, str(folder / "arena")))
    made.step()
    made.optimizer.zero_grad()
    run = outlast.Run(str(folder / "arena"), model=made.model, optimizer=made.optimizer, save_every="10h")
    run.save()
    killed.write_text("")
    os.kill(os.getpid(), signal.SIGKILL)


def in_a_process(name: str, cache: str, folder: Path, small: bool) -> dict[str, Any]:
    """Restore once in a process of its own."""
    command = [sys.executable, __file__, "--case", json.dumps([name, cache, str(folder), small])]
    if name == FROM_ARENA:
        shutil.rmtree(folder / "arena", ignore_errors=True)
        (folder / "killed").unlink(missing_ok=True)
        command = [sys.executable, "-m", "outlast", "run", "--", *command]
    done = subprocess.run(
        command,
        env={**os.environ, "OUTLAST_STORE": str(folder)},
        capture_output=True,
        text=True,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith('{"seconds"')]
    if not lines:
        sys.exit(f"{name}, {cache}: exit code {done.returncode}\n{done.stderr}")
    return json.loads(lines[-1])


def measure(folder: Path, runs: int, small: bool, only: str) -> dict[str, Any]:
    """Save once, then restore in turns."""
    for name in ("torch", "dcp"):
        (folder / name).mkdir()
    subprocess.run(
        [sys.executable, __file__, "--case", json.dumps(["save", "", str(folder), small])],
        check=True,
        stderr=subprocess.DEVNULL,
    )
    about = json.loads((folder / "about.json").read_text())
    size = about["state_bytes"]
    cases = [(name, cache) for cache in ("cold", "warm") for name in (OURS, *PEERS)] + [(FROM_ARENA, "none")]
    cases = [case for case in cases if only in case[0]]
    seconds: dict[tuple[str, str], list[float]] = {case: [] for case in cases}
    raw: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(runs):
        raw[True].append(raw_rate(folder, direct=True))
        for case in cases:
            got = in_a_process(*case, folder, small)
            # The arena's state took its own steps: its own run compares it.
            if case[0] != FROM_ARENA and got["digest"] != about["digest"]:
                sys.exit(f"{case[0]} restored other bits than were saved")
            seconds[case].append(got["seconds"])
        raw[True].append(raw_rate(folder, direct=True))
        warm(folder / "outlast")
        raw[False].append(raw_rate(folder, direct=False))
    return {
        "state_bytes": size,
        "limits": {
            "read_bytes_per_s": round(statistics.median(raw[True])),
            "read_warm_bytes_per_s": round(statistics.median(raw[False])),
        },
        "results": [
            {
                "name": name,
                "cache": cache,
                "restore_s": round(statistics.median(each), 3),
                "bytes_per_s": round(size / statistics.median(each)),
                "runs": len(each),
                "all_s": [round(one, 3) for one in each],
            }
            for (name, cache), each in seconds.items()
        ],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="on the disk to measure; default: a temporary folder")
    parser.add_argument("--small", action="store_true", help="a state of 84 MB, to try the script out")
    parser.add_argument("--only", default="", help="part of a name")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        warnings.simplefilter("ignore")
        name, cache, folder, small = json.loads(options.case)
        if name == "save":
            save_all(Path(folder), small)
        elif name == FROM_ARENA:
            from_arena(Path(folder), small)
        else:
            restore(name, cache, Path(folder), small)
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        found = measure(Path(folder), options.runs, options.small, options.only)
    if options.json:
        print(json.dumps(found))
        return
    limits = found["limits"]
    print(
        f"state {found['state_bytes'] / 1e9:.2f} GB; raw read {limits['read_bytes_per_s'] / 1e9:.2f} GB/s cold, "
        f"{limits['read_warm_bytes_per_s'] / 1e9:.2f} GB/s warm"
    )
    for one in found["results"]:
        print(
            f"{one['name']:30} {one['cache']:5} {one['restore_s']:7.3f} s   {one['bytes_per_s'] / 1e9:6.2f} GB/s   {one['all_s']}"
        )


if __name__ == "__main__":
    main()
