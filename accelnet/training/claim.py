"""The claim of a process on a work directory: nobody else writes there, and it stays where it is."""

import contextlib
import fcntl
import os
from pathlib import Path

from accelnet.errors import UserError

_LOCK = ".lock"


class Claim:
    """Hold a directory for this process; the system lets go when the process ends, however it ends.

    Args:
        directory: The directory, made if needed.

    Raises:
        UserError: if it cannot be written, or another process holds it.

    Example:
        >>> import tempfile
        >>> claim = Claim(Path(tempfile.mkdtemp()) / "run")
        >>> claim.check()
        >>> claim.release()
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._descriptor: int | None = os.open(directory / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise UserError(
                f"the work directory {directory} cannot be written: {error.strerror or error}. Choose another --workdir"
            ) from error
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.release()
            raise UserError(
                f"another process is training in {directory}: wait for it, or give another --workdir"
            ) from None
        except OSError:
            pass  # a file system without locks

    def check(self) -> None:
        """See that the directory is still the one that was claimed.

        Raises:
            UserError: if it is not, saying where that one is.
        """
        if self._descriptor is None:
            return
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat((self.directory / _LOCK).stat(), os.fstat(self._descriptor)):
                return
        where = "it is nowhere now"
        with contextlib.suppress(OSError):  # where the system tells
            now = Path(f"/proc/self/fd/{self._descriptor}").readlink()
            if now.exists():
                where = f"it is {now.parent} now, with what was saved: go on there with --resume"
        raise UserError(f"the work directory {self.directory} was moved, deleted or replaced during the run: {where}")

    def release(self) -> None:
        """Let go. May be called twice."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
