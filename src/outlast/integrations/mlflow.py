"""MLflow: one run over all machines, found again by a tag that holds the run's own id."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from outlast.agent.protocol import Ending
from outlast.integrations._need import need
from outlast.trainer.tracker import Row, TrackedRun

TAG = "outlast.run_id"
_MOST_METRICS = 1000
"""Of one request: the limit of MLflow's REST API."""
_NOT_IN_A_NAME = re.compile(r"[^/\w.\- :]")
"""MLflow's names of metrics are of letters, digits, _ / - . : and spaces."""
_STATUS = {"finished": "FINISHED", "interrupted": "KILLED", "preempted": "SCHEDULED"}


class MLflow:
    """Shows a run in MLflow.

    Args:
        experiment: its name; it is made where there is none. Default: `$MLFLOW_EXPERIMENT_NAME`, else "Default".
        tracking_uri: of the server. Default: MLflow's own, `$MLFLOW_TRACKING_URI`.
        tags: of the run, when it is made.

    Raises:
        ConfigError: mlflow is not installed.
    """

    def __init__(
        self,
        experiment: str | None = None,
        *,
        tracking_uri: str | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        need("mlflow", "mlflow", "MLflow")
        self._experiment = experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME") or "Default"
        self._tracking_uri = tracking_uri
        self._tags = dict(tags or {})
        self._client: Any = None
        self._id: str | None = None

    def open(self, run: TrackedRun) -> int | None:
        """Continue the run that has the tag, or make it; its newest metrics say at which step it is."""
        from mlflow.tracking import MlflowClient

        client = self._client = MlflowClient(tracking_uri=self._tracking_uri)
        experiment = client.get_experiment_by_name(self._experiment)
        where = experiment.experiment_id if experiment else client.create_experiment(self._experiment)
        found = client.search_runs(
            [where], f"tags.`{TAG}` = '{run.id}'", order_by=["attributes.start_time ASC"]
        )
        if not found:
            tags = {**self._tags, TAG: run.id}
            self._id = client.create_run(where, run_name=run.name, tags=tags).info.run_id
            return None
        self._id = found[0].info.run_id
        client.update_run(self._id, status="RUNNING")
        return max((metric.step for metric in found[0].data.to_proto().metrics), default=None)

    def write(self, rows: Sequence[Row]) -> None:
        """Log all metrics of each row in one request: that is all or nothing."""
        from mlflow.entities import Metric

        for some in _batches(rows):
            metrics = [
                Metric(_NOT_IN_A_NAME.sub("_", name), float(value), int(row.time_s * 1000), row.step)
                for row in some
                for name, value in row.values.items()
            ]
            self._client.log_batch(self._id, metrics=metrics)

    def close(self, outcome: Ending) -> None:
        """Say how it ended. A run that another attempt goes on with already is left as it is."""
        if self._id is None or outcome == "superseded":
            return
        status = _STATUS.get(outcome, "FAILED")
        if status == "SCHEDULED":
            self._client.update_run(self._id, status=status)
        else:
            self._client.set_terminated(self._id, status)


def _batches(rows: Sequence[Row]) -> Iterator[list[Row]]:
    """Whole rows, as many as a request may hold; one that is too large alone is for MLflow to refuse."""
    some: list[Row] = []
    metrics = 0
    for row in rows:
        if some and metrics + len(row.values) > _MOST_METRICS:
            yield some
            some, metrics = [], 0
        some.append(row)
        metrics += len(row.values)
    if some:
        yield some
