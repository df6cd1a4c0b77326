"""The fingerprint of what a process runs, so that processes can find out that they run the same."""

import hashlib
import platform
import sys
from importlib import metadata
from pathlib import Path

import accelnet.errors

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")


def code_fingerprint() -> dict[str, str]:
    """Return what this process runs: hashes of accelnet and of the script, and versions.

    Returns:
        Strings by name: "accelnet" (all sources of the package), "script" (the file that Python was started with, where
        there is one), "python", "jax", "jaxlib", "flax", "optax", "numpy".

    Example:
        >>> sorted(code_fingerprint())
        ['accelnet', 'flax', 'jax', 'jaxlib', 'numpy', 'optax', 'python', 'script']
    """
    package = Path(accelnet.errors.__file__).parent
    script = getattr(sys.modules.get("__main__"), "__file__", None)
    return {
        "accelnet": _hash(package, sorted(package.rglob("*.py"))),
        "script": _hash(Path(script).parent, [Path(script)]) if script and Path(script).is_file() else "no file",
        "python": platform.python_version(),
    } | {name: metadata.version(name) for name in _PACKAGES}


def _hash(root: Path, files: list[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        content = file.read_bytes()
        digest.update(f"{file.relative_to(root)}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()[:16]
