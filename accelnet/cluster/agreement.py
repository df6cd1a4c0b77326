"""Agreement: the processes of a run find out whether they run the same code and see the same files."""

import hashlib
import json
import platform
import socket
import sys
import time
from collections import Counter
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import accelnet.errors
from accelnet.cluster import store as stores
from accelnet.cluster.exchange import exchange
from accelnet.disk import temporary
from accelnet.errors import UserError

# Directory entries on a network file system may be this old.
_SHARED_SECONDS = 10.0
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")


def check_same(values: Mapping[str, str]) -> None:
    """Check that all processes have the same values, such as their code and configuration.

    Args:
        values: strings by name.

    Raises:
        UserError: on every process, with the names that differ, the values, and the ranks and hosts of those whose
            value is not that of most.

    Example:
        >>> check_same(code_fingerprint())
    """
    hosts, all_values = _gather_with_hosts(dict(values))
    differences = []
    for name in sorted(set().union(*all_values)):
        found = [one.get(name, "absent") for one in all_values]
        # On a tie, the value of the lower rank.
        common = Counter(found).most_common(1)[0][0]
        odd = [f"{found[rank]} on rank {rank} ({hosts[rank]})" for rank in range(len(found)) if found[rank] != common]
        if odd:
            count = f"the other {len(found) - len(odd)}" if len(found) - len(odd) > 1 else "the other"
            differences.append(f"{name} is {_shown(odd)}, and {common} on {count}")
    if differences:
        raise UserError(
            f"the processes do not run the same: {'; '.join(differences)}. Start all of them from the same files, with "
            "the same packages and the same arguments"
        )


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


def check_shared_directory(path: str | Path) -> None:
    """Check that a directory is the same one on all hosts: process 0 writes a file there for a moment.

    Args:
        path: directory; process 0 makes it if needed.

    Raises:
        UserError: on every process, with the hosts that do not see the file within 10 seconds, or with what kept
            process 0 from writing it.

    Example:
        >>> import tempfile
        >>> check_shared_directory(tempfile.gettempdir())
    """
    store = stores.connected()
    if store is None:
        return
    token, problem = temporary(Path(path) / "shared"), ""
    if store.rank == 0:
        try:
            token.parent.mkdir(parents=True, exist_ok=True)
            token.write_text("accelnet looks whether all hosts see this file\n")
        except OSError as error:
            problem = str(error)
    name, problem = json.loads(exchange(json.dumps([token.name, problem]).encode())[0])
    if problem:
        raise UserError(f"process 0 cannot write in {path}: {problem}. Give a directory that all hosts share")
    try:
        hosts, seen_by = _gather_with_hosts(_appears(Path(path) / name))
    finally:
        if store.rank == 0:
            token.unlink(missing_ok=True)
    blind = [f"{host} (rank {rank})" for rank, host in enumerate(hosts) if not seen_by[rank]]
    if blind:
        raise UserError(
            f"{path} is not the same directory on all hosts: what process 0 on {hosts[0]} writes there is not seen on "
            f"{_shown(blind)}. Give a directory on a file system that all hosts share"
        )


def _gather_with_hosts(value: Any) -> tuple[list[str], list[Any]]:
    parts = [json.loads(text) for text in exchange(json.dumps([socket.gethostname(), value]).encode())]
    return [host for host, _ in parts], [value for _, value in parts]


def _shown(items: list[str]) -> str:
    return ", ".join(items[:8]) + (f" and {len(items) - 8} more" if len(items) > 8 else "")


def _hash(root: Path, files: list[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        content = file.read_bytes()
        digest.update(f"{file.relative_to(root)}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()[:16]


def _appears(path: Path) -> bool:
    deadline = time.monotonic() + _SHARED_SECONDS
    while time.monotonic() < deadline:
        try:
            # Listing a directory makes a network file system look again.
            if path.name in (entry.name for entry in path.parent.iterdir()):
                return True
        except OSError:
            pass  # not there yet, or never
        time.sleep(0.1)
    return False
