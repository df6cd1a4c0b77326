"""Trackio, which keeps runs on this machine."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelnet.packages import imported


class TrackioTracker:
    """Keep runs in Trackio (extra `trackio`).

    Args:
        project: Project of the runs.
        **init: Further arguments of `trackio.init`.

    Example:
        >>> TrackioTracker(project="digits").name
        'trackio'
    """

    name = "trackio"

    def __init__(self, project: str = "accelnet", **init: Any) -> None:
        self._init = {"project": project, "embed": False, **init}
        self._run: Any = None

    def start(self, config: Mapping[str, Any], name: str, resume_id: str | None) -> str:
        """Begin a run, or go on with one."""
        trackio = imported("trackio", "trackio")
        resume = "never" if resume_id is None else "must"
        self._run = trackio.init(name=resume_id or name, config=dict(config), resume=resume, **self._init)
        return str(self._run.name)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Record numbers of a step."""
        self._run.log(dict(values), step=step)

    def file(self, path: Path) -> None:
        """Do nothing: Trackio keeps numbers; files stay where they are."""

    def finish(self, status: str) -> None:
        """End the run."""
        self._run.finish()
