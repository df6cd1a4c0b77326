"""The file of an artifact: a zip that anyone can look into, with a checksum of each entry."""

import hashlib
import io
import json
import os
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelnet.disk import write_atomically
from accelnet.errors import UserError
from accelnet.json_file import parse_json

FORMAT = 1
MANIFEST = "manifest.json"
_ADVICE = "copy it again from where it was made, or save the run again"
_SHAPE = {"format": int, "accelnet": str, "entries": {str: {"bytes": int, "sha256": str}}}
# The least that a zip can say.
_DATE = (1980, 1, 1, 0, 0, 0)


def write_bundle(path: Path, entries: Mapping[str, bytes], version: str) -> None:
    """Write entries and their manifest as one file, whole or not at all.

    Args:
        path: The file.
        entries: Contents by name.
        version: Version of accelnet.

    Raises:
        UserError: if it cannot be written.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "a.accelnet"
        >>> write_bundle(path, {"README.md": b"hello"}, "1.0")
        >>> read_bundle(path)
        {'README.md': b'hello'}
    """
    listed = {
        name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in sorted(entries.items())
    }
    manifest = json.dumps({"format": FORMAT, "accelnet": version, "entries": listed}, indent=1) + "\n"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:  # stored as they are: weights do not shrink
        for name, content in {MANIFEST: manifest.encode(), **entries}.items():
            entry = zipfile.ZipInfo(name, _DATE)
            entry.create_system, entry.external_attr = 3, 0o644 << 16
            archive.writestr(entry, content)
    write_atomically(path, buffer.getvalue())


def read_bundle(path: str | os.PathLike[str]) -> dict[str, bytes]:
    """Read all entries, and compare each with its checksum.

    Args:
        path: The file.

    Returns:
        Contents by name, without the manifest.

    Raises:
        UserError: if it cannot be read, is no artifact or one of a newer version, or an entry is damaged or missing.
    """
    try:
        whole = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    try:
        with zipfile.ZipFile(io.BytesIO(whole)) as archive:
            names = archive.namelist()
            if MANIFEST not in names:
                raise UserError(f"{path} is a zip, but no artifact: it has no {MANIFEST}")
            manifest = _manifest(path, _content(path, archive, MANIFEST))
            if extra := sorted(set(names) - set(manifest) - {MANIFEST}):
                raise UserError(f"{path} is damaged: its manifest does not list {extra[0]}: {_ADVICE}")
            return {name: _checked(path, archive, name, told) for name, told in manifest.items()}
    except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError, EOFError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} is no artifact, or cut short ({error}): {_ADVICE}") from None


def _manifest(path: Any, content: bytes) -> dict[str, Any]:
    try:
        manifest = parse_json(content.decode(), {"format": int})
        if manifest["format"] > FORMAT:
            by = f"format {manifest['format']}, of accelnet {manifest.get('accelnet')}"
            raise UserError(f"{path} has {by}, expected {FORMAT} at most: install that version or a newer one")
        return parse_json(content.decode(), _SHAPE)["entries"]
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} is damaged: {MANIFEST} is not what was written ({error}): {_ADVICE}") from None


def _checked(path: Any, archive: zipfile.ZipFile, name: str, told: Mapping[str, Any]) -> bytes:
    if name not in archive.namelist():
        raise UserError(f"{path} is damaged: {name} is missing: {_ADVICE}")
    content = _content(path, archive, name)
    if len(content) != told["bytes"] or hashlib.sha256(content).hexdigest() != told["sha256"]:
        raise UserError(f"{path} is damaged: {name} is not what was written: {_ADVICE}")
    return content


def _content(path: Any, archive: zipfile.ZipFile, name: str) -> bytes:
    entry = archive.getinfo(name)
    if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
        raise UserError(f"{path} is damaged: {name} is compressed or encrypted, expected as it is: {_ADVICE}")
    try:
        return archive.read(entry)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise UserError(f"{path} is damaged: {name} is not what was written ({error}): {_ADVICE}") from None
