"""The user's own cache directory."""

import os
from pathlib import Path


def user_cache_directory() -> Path:
    """Return the user's own cache directory of accelnet, whether it exists or not.

    Source: XDG Base Directory Specification 0.8.
    """
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "accelnet"


def private_directory(name: str) -> Path | None:
    """Make a directory in the cache that only the user can enter (mode 0700).

    Args:
        name: of the directory.

    Returns:
        The directory, or None where it cannot be made or is somebody else's: what lies there is not to be trusted.

    Example:
        >>> directory = private_directory("example")
        >>> directory is None or directory.is_dir()
        True
    """
    directory = user_cache_directory() / name
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if directory.stat().st_uid != os.getuid():
            return None
        directory.chmod(0o700)
    except OSError:
        return None
    return directory
