"""The persistent compilation cache: a second run of the same experiment does not compile again."""

import os
from pathlib import Path

import jax

# Below this, reading from the disk is not faster than compiling.
_MIN_COMPILE_SECONDS = 0.1


def user_cache_directory() -> Path:
    """Return the user's own cache directory of accelnet, whether it exists or not.

    Source: XDG Base Directory Specification 0.8.
    """
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "accelnet"


def enable_compilation_cache() -> Path | None:
    """Keep compiled programs in a directory that only the user can enter (mode 0700).

    Whatever is set already is left alone: `JAX_COMPILATION_CACHE_DIR` names another directory, and
    `JAX_ENABLE_COMPILATION_CACHE=false` switches it off.

    Returns:
        The directory, or None where the cache is off, not possible, or the user's own choice.

    Example:
        >>> directory = enable_compilation_cache()

    Source: original.
    """
    values = jax.config.values
    if values["jax_compilation_cache_dir"] is not None or not values["jax_enable_compilation_cache"]:
        return None
    directory = user_cache_directory() / "xla"
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if directory.stat().st_uid != os.getuid():
            return None  # somebody else's directory: programs in it are not to be trusted
        directory.chmod(0o700)
    except OSError:
        return None
    jax.config.update("jax_compilation_cache_dir", str(directory))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", _MIN_COMPILE_SECONDS)
    return directory
