"""Checked by mypy, never run: the public API as a user's typed script sees it."""

from collections.abc import Sequence
from datetime import timedelta

import torch
from torch.utils.data import Dataset, TensorDataset

import outlast
from outlast.integrations import Row, TrackedRun
from outlast.integrations.mlflow import MLflow
from outlast.integrations.tensorboard import TensorBoard
from outlast.integrations.wandb import WandB


class Mine:
    """A tracker of a user's own, written as docs/trackers.md says."""

    def open(self, run: TrackedRun) -> int | None:
        print(run.id, run.name, run.attempt)
        return None

    def write(self, rows: Sequence[Row]) -> None:
        print([(row.step, row.time_s, row.values) for row in rows])

    def close(self, outcome: str) -> None:
        print(outcome)


def training(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, data: Dataset[tuple[torch.Tensor, ...]]
) -> None:
    loader = outlast.DataLoader(data, batch_size=32, shuffle=True, num_workers=2)
    best = outlast.Value(0.0)
    run = outlast.Run("gpt-small", resume="auto", save_every=timedelta(minutes=5), model=model, best=best)
    run.track(TensorBoard("boards"), WandB(project="gpt"), MLflow("gpt", tags={"team": "x"}), Mine())
    for epoch in run.epochs(3):
        for i, batch in run.enumerate(loader):
            run.log(loss=float(i), epoch=epoch)
            del batch
    for batch in run.batches(loader, epochs=3):
        run.safe_point()
        del batch
    run.vars.best = 0.0
    run.save(pin=True)
    stop: bool = run.should_stop()
    step: int = run.step
    guarantee: outlast.Guarantee | None = run.guarantee
    print(stop, step, guarantee, run.epoch, run.attempt, run.resumed, optimizer)


def named_places() -> None:
    outlast.Run(model=torch.nn.Linear(1, 1))
    outlast.Run("s3://bucket/run", save_every="25 steps", seed=1, model=torch.nn.Linear(1, 1))
    outlast.Run(save_every=30.0, resume="must", model=torch.nn.Linear(1, 1))
    outlast.Run(max_lost_work="2%", model=torch.nn.Linear(1, 1))
    outlast.Run(max_lost_work=timedelta(minutes=5), model=torch.nn.Linear(1, 1))
    outlast.DataLoader(TensorDataset(torch.zeros(3)))


def errors() -> int:
    try:
        named_places()
    except outlast.StateMismatch as error:
        return error.exit_code
    except outlast.OutlastError as error:
        return error.exit_code
    except outlast.Preempted as gone:
        print(gone.message)
        raise
    return 0
