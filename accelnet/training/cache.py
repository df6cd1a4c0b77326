"""The persistent compilation cache: a second run of the same experiment does not compile again."""

from pathlib import Path

import jax

from accelnet.cache import private_directory

# Below this, reading from the disk is not faster than compiling.
_MIN_COMPILE_SECONDS = 0.1


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
    directory = private_directory("xla")
    if directory is None:
        return None
    jax.config.update("jax_compilation_cache_dir", str(directory))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", _MIN_COMPILE_SECONDS)
    return directory
