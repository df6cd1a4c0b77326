"""Weights & Biases."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelnet.packages import imported


class WandBTracker:
    """Keep runs in Weights & Biases (extra `wandb`).

    Args:
        project: Project of the runs.
        **init: Further arguments of `wandb.init`, such as entity, tags, or mode="offline".

    Example:
        >>> WandBTracker(project="digits", mode="offline").name
        'wandb'
    """

    name = "wandb"

    def __init__(self, project: str = "accelnet", **init: Any) -> None:
        self._init = {"project": project, **init}
        self._run: Any = None

    def start(self, config: Mapping[str, Any], name: str, resume_id: str | None) -> str:
        """Begin a run, or go on with one."""
        wandb = imported("wandb", "wandb")
        self._run = wandb.init(name=name, config=dict(config), id=resume_id, resume="allow", **self._init)
        return str(self._run.id)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Record numbers of a step."""
        self._run.log(dict(values), step=step)

    def file(self, path: Path) -> None:
        """Keep a file."""
        self._run.save(str(path), base_path=str(path.parent), policy="now")

    def finish(self, status: str) -> None:
        """End the run."""
        self._run.finish(exit_code=0 if status == "finished" else 1)
