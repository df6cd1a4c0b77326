"""manifest.json of a directory: the length and a checksum of every file in it, by which damage is found."""

import hashlib
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from accelnet.disk import sync

MANIFEST = "manifest.json"


class DamagedError(ValueError):
    """Report that what was written is not there as it was written."""


def checksum(path: Path) -> str:
    """Return a checksum of a file's content.

    Raises:
        OSError: if the file cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, new_hash).hexdigest()


def new_hash(content: bytes = b"") -> Any:
    """Return the hash that checksums are made with."""
    return hashlib.blake2b(content, digest_size=16)


def seal(directory: Path) -> None:
    """Write the manifest of a directory, and see that all of it is on the disk and not in a buffer alone.

    Raises:
        OSError: if that fails.
    """
    files = {name: [path.stat().st_size, checksum(path)] for name, path in _files(directory)}
    with (directory / MANIFEST).open("x") as file:
        file.write(_text(files))
    for path in [directory / MANIFEST, *(directory / name for name in files), *_directories(directory)]:
        sync(path)


def check_seal(directory: Path, names: Collection[str] | None = None) -> None:
    """Compare a directory with its manifest.

    Args:
        directory: The directory.
        names: Files to compare. None: all.

    Raises:
        DamagedError: naming a file that is missing, of another length, or of other content.
    """
    files = _read_manifest(directory / MANIFEST)
    for name in files if names is None else names:
        size, expected = files[name]
        path = directory / name
        try:
            found = path.stat().st_size
            if found != size:
                raise DamagedError(f"{name} has {found:,} bytes, not {size:,}")
            if checksum(path) != expected:
                raise DamagedError(f"{name} is not what was written")
        except FileNotFoundError:
            raise DamagedError(f"{name} is missing") from None
        except OSError as error:
            raise DamagedError(f"{name} cannot be read: {error.strerror or error}") from error


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text()
        files = json.loads(text)["files"]
        if text == _text(files):
            return files
    except FileNotFoundError:
        raise DamagedError(f"{MANIFEST} is missing") from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass
    raise DamagedError(f"{MANIFEST} is not what was written")


def _text(files: dict[str, Any]) -> str:
    """Return the manifest's text, which holds a checksum of itself."""
    listed = json.dumps(files, sort_keys=True)
    return json.dumps({"checksum": new_hash(listed.encode()).hexdigest(), "files": files}, sort_keys=True) + "\n"


def _files(directory: Path) -> list[tuple[str, Path]]:
    paths = sorted(path for path in directory.rglob("*") if path.is_file() and path != directory / MANIFEST)
    return [(path.relative_to(directory).as_posix(), path) for path in paths]


def _directories(directory: Path) -> list[Path]:
    return [*(path for path in directory.rglob("*") if path.is_dir()), directory]
