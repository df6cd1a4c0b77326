"""A directory of results, looked at before the work that fills it."""

from pathlib import Path
from typing import Any

from accelnet import arguments
from accelnet.disk import write_atomically


def check_workdir(workdir: Any) -> Path | None:
    """Return the directory of results, None for nowhere; made and written to before minutes of work, not after.

    Args:
        workdir: What the user gave.

    Raises:
        UserError: if it is no path, or cannot be written to.

    Example:
        >>> check_workdir(5)
        Traceback (most recent call last):
        accelnet.errors.UserError: workdir is 5, expected the path of a file or directory
    """
    if workdir is None:
        return None
    directory = arguments.path("workdir", workdir)
    probe = directory / "accelnet.probe"
    write_atomically(probe, "")
    probe.unlink()
    return directory
