"""MLflow."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelnet.packages import imported

_STATUS = {"finished": "FINISHED", "failed": "FAILED", "preempted": "KILLED"}


class MLflowTracker:
    """Keep runs in MLflow (extra `mlflow`).

    Args:
        experiment: Name of MLflow's experiment, which holds runs.
        uri: Address of the tracking server, or a local one such as "sqlite:///mlflow.db". None: as MLflow is set up.

    Example:
        >>> MLflowTracker(experiment="digits").name
        'mlflow'
    """

    name = "mlflow"

    def __init__(self, experiment: str = "accelnet", uri: str | None = None) -> None:
        self._experiment, self._uri = experiment, uri
        self._client: Any = None
        self._run = ""

    def start(self, config: Mapping[str, Any], name: str, resume_id: str | None) -> str:
        """Begin a run, or go on with one."""
        mlflow = imported("mlflow", "mlflow")
        self._client = mlflow.MlflowClient(tracking_uri=self._uri)
        if resume_id is not None:
            self._client.set_terminated(resume_id, status="RUNNING")
            self._run = resume_id
            return resume_id
        found = self._client.get_experiment_by_name(self._experiment)
        where = self._client.create_experiment(self._experiment) if found is None else found.experiment_id
        self._run = self._client.create_run(where, run_name=name).info.run_id
        for key, value in config.items():
            self._client.log_param(self._run, key, value)
        return self._run

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Record numbers of a step."""
        from mlflow.entities import Metric  # pyright: ignore[reportMissingImports]
        from mlflow.utils.time import get_current_time_millis  # pyright: ignore[reportMissingImports]

        now = get_current_time_millis()
        self._client.log_batch(self._run, [Metric(name, value, now, step) for name, value in values.items()])

    def file(self, path: Path) -> None:
        """Keep a file."""
        self._client.log_artifact(self._run, str(path))

    def finish(self, status: str) -> None:
        """End the run."""
        self._client.set_terminated(self._run, status=_STATUS[status])
