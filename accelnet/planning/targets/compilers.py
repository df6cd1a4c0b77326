"""The compilers for hardware that is not here: which are installed, and the command that installs the others."""

import importlib.metadata
import re


def missing_compiler(platform: str) -> str | None:
    """Say what is missing to compile for a platform, and the command that adds it; None if nothing is missing.

    Args:
        platform: "tpu", "cuda" or "cpu".

    Example:
        >>> missing_compiler("cpu") is None
        True
    """
    if platform == "tpu":
        installed = _version("libtpu")
        if installed is None:
            return 'libtpu is not installed: pip install "accelnet[plan-tpu]"'
        wanted = _pinned("libtpu")
        if wanted and not installed.startswith(wanted.rstrip("*")):
            version = importlib.metadata.version("jax")
            return f'libtpu {installed} does not match jax {version}: pip install "jax[tpu]=={version}"'
    if platform == "cuda":
        plugins = {line: version for line in ("13", "12") if (version := _version(f"jax-cuda{line}-plugin"))}
        if not plugins:
            return 'XLA\'s CUDA compiler is not installed: pip install "accelnet[plan-cuda]"'
        line, installed = next(iter(plugins.items()))
        wanted = importlib.metadata.version("jax")
        if installed.split(".")[:3] != wanted.split(".")[:3]:
            return (
                f"jax-cuda{line}-plugin {installed} does not match jax {wanted}: pip install "
                f'"jax[cuda{line}-local]=={wanted}"'
            )
    return None


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _pinned(distribution: str) -> str | None:
    """Return the version of a distribution that the installed jax pins in one of its extras."""
    for line in importlib.metadata.requires("jax") or ():
        found = re.match(rf"{distribution}\s*==\s*([\w.*]+)", line)
        if found:
            return found[1]
    return None
