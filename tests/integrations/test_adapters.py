"""What each adapter does by itself: packages that are missing, files that a kill left torn, and what a service does not take."""

from __future__ import annotations

import importlib.util
import math
import os

import pytest

from outlast import ConfigError
from outlast.integrations import Row, TrackedRun
from outlast.integrations.mlflow import MLflow
from outlast.integrations.tensorboard import TensorBoard
from outlast.integrations.wandb import WandB

RUN = TrackedRun("0123456789abcdef", "gpt", 1)


def rows(*steps):
    return [Row(step, 1.8e9 + step, {"loss": step + 0.5, "lr": 0.25}) for step in steps]


@pytest.mark.parametrize(
    "make, package", [(lambda: TensorBoard("x"), "tensorboard"), (MLflow, "mlflow"), (WandB, "wandb")]
)
def test_a_missing_package_is_said_at_once_with_the_cure(monkeypatch, make, package):
    """Before any training, not in a thread that nobody watches."""
    monkeypatch.setattr("outlast.integrations._need.find_spec", lambda name: None)
    with pytest.raises(
        ConfigError, match=rf"needs the package {package}.*pip install 'outlast\[{package}\]'"
    ):
        make()
    assert importlib.util.find_spec(package), "CI has it"


def test_which_run_wandb_continues_is_not_the_scripts_to_say():
    """An id of the script's own would fork the run."""
    for name in ("id", "resume", "fork_from"):
        with pytest.raises(ConfigError, match=rf"WandB\({name}=...\)"):
            WandB(project="p", **{name: "x"})


def test_a_board_is_a_folder():
    """Nothing can be added to an object of a bucket."""
    with pytest.raises(ConfigError, match="expected a folder"):
        TensorBoard("s3://bucket/board")


@pytest.mark.parametrize("cut", [1, 4, 5, 20])
def test_a_board_that_a_kill_left_torn_goes_on_after_its_last_whole_step(tmp_path, cut):
    """A step is there whole or not at all; the file before the last one counts where that has nothing."""
    board = TensorBoard(tmp_path)
    assert board.open(RUN) is None
    board.write(rows(3, 4, 7))
    board.close("preempted")
    (file,) = (tmp_path / "gpt-01234567").iterdir()
    whole = TensorBoard(tmp_path)
    assert whole.open(RUN) == 7, "the file that it has just begun holds nothing"
    whole.close("preempted")
    os.truncate(file, file.stat().st_size - cut)
    torn = TensorBoard(tmp_path)
    assert torn.open(RUN) == 4
    torn.close("preempted")
    assert TensorBoard(tmp_path / "other").open(RUN) is None


def test_mlflow_takes_any_name_and_value_and_more_than_a_request_holds(tmp_path, monkeypatch):
    """Names that it refuses are written with _, and a nan is one."""
    from mlflow.tracking import MlflowClient

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "of-the-environment")
    uri = (tmp_path / "mlruns").as_uri()
    tracker = MLflow(tracking_uri=uri, tags={"team": "x"})
    assert tracker.open(RUN) is None
    wide = [Row(step, 1.8e9, {f"m{i}": float(i) for i in range(400)}) for step in range(4)]
    tracker.write([*wide, Row(4, 1.8e9, {"top@1": math.nan})])
    tracker.close("error")
    client = MlflowClient(tracking_uri=uri)
    (run,) = client.search_runs([client.get_experiment_by_name("of-the-environment").experiment_id])
    assert (run.info.status, run.info.run_name, run.data.tags["team"]) == ("FAILED", "gpt", "x")
    assert len(client.get_metric_history(run.info.run_id, "m399")) == 4
    assert math.isnan(run.data.metrics["top_1"])
    again = MLflow(tracking_uri=uri)
    assert again.open(RUN) == 4
    assert client.get_run(run.info.run_id).info.status == "RUNNING"
    assert MLflow(tracking_uri=uri).open(TrackedRun("other", "gpt", 1)) is None
