"""Reading files: bytes and text, compressed or not, and what installed packages bring along."""

import contextlib
import gzip
import zlib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from accelnet.errors import UserError

# Files are compressed if they begin so, whatever they are called.
_COMPRESSIONS = {b"\x1f\x8b": "gzip", b"BZh": "bz2", b"\x28\xb5\x2f\xfd": "zstd", b"\x04\x22\x4d\x18": "lz4"}
COMPRESSED_SUFFIXES = (".gz", ".bz2", ".zst", ".lz4")


def read_bytes(path: Path, kind: str = "") -> bytes:
    """Read a file, decompressed where its name ends in `.gz`.

    Args:
        path: File to read.
        kind: Word that precedes the path in the message, such as "CSV file".

    Returns:
        The whole content.

    Raises:
        UserError: if the file is missing, unreadable or a damaged gzip file.

    Example:
        >>> read_bytes(Path("/not/there"), "CSV file")
        Traceback (most recent call last):
        accelnet.errors.UserError: CSV file /not/there cannot be read: No such file or directory
    """
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if path.suffix == ".gz" else content
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path} is a damaged or truncated gzip file ({error}): get it again") from None
    except OSError as error:
        raise UserError(f"{f'{kind} {path}'.strip()} cannot be read: {error.strerror or error}") from None


def read_text(path: Path, kind: str, encoding: str | None = None) -> str:
    r"""Read a text file.

    Args:
        path: File to read, as of `read_bytes`.
        kind: Word that precedes the path in the message.
        encoding: Name of the encoding; None for UTF-8, with or without a byte order mark.

    Returns:
        The whole content, with the line ends that are in the file.

    Raises:
        UserError: if the file cannot be read, or the encoding is unknown or another one.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = (Path(folder) / "a.txt").write_bytes(b"\xef\xbb\xbfa\r\nb")
        ...     read_text(Path(folder) / "a.txt", "text file")
        'a\r\nb'
    """
    try:
        return read_bytes(path, kind).decode(encoding or "utf-8-sig")
    except UnicodeDecodeError as error:
        name, advice = (encoding, "give its encoding") if encoding else ("UTF-8", "convert it")
        raise UserError(f"{path} is not {name} text ({error.reason} at byte {error.start}): {advice}") from None
    except LookupError:
        raise UserError(f"encoding {encoding!r} is unknown, expected one that Python has, such as latin-1") from None


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn the ways in which reading a file fails into a UserError that names it.

    Example:
        >>> with reading(Path("/not/there")):
        ...     _ = Path("/not/there").read_bytes()
        Traceback (most recent call last):
        accelnet.errors.UserError: /not/there cannot be read: No such file or directory
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error).partition("\n")[0]
        advice = "" if error.errno else ": it is damaged or truncated: get it again"
        raise UserError(f"{path} cannot be read: {reason}{advice}") from None


def first_bytes(path: Path, count: int = 8) -> bytes:
    """Return the first bytes of a file as it lies on the disk, or raise UserError if it cannot be read."""
    with reading(path), path.open("rb") as file:
        return file.read(count)


def open_stream(path: Path) -> Any:
    """Open a file as a stream of bytes, decompressed where it is compressed by gzip, bzip2, Zstandard or LZ4.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = (Path(folder) / "a").write_bytes(gzip.compress(b"text"))
        ...     with open_stream(Path(folder) / "a") as stream:
        ...         stream.read()
        b'text'
    """
    import pyarrow as pa

    head = first_bytes(path)
    compression = next((name for magic, name in _COMPRESSIONS.items() if head.startswith(magic)), None)
    return pa.input_stream(str(path), compression=compression, buffer_size=1 << 20)


def package_path(package: str, inside: str, missing: str) -> Path:
    """Return where a file or folder of an installed package is, without importing the package.

    Args:
        package: Name under which it is imported.
        inside: Path within the package.
        missing: Message for where there is none, with the command that installs it.

    Returns:
        A path that exists.

    Raises:
        UserError: if it does not.

    Example:
        >>> package_path("numpy", "not/there", "the data are part of numpy: pip install numpy")
        Traceback (most recent call last):
        accelnet.errors.UserError: the data are part of numpy: pip install numpy
    """
    spec = find_spec(package)
    found = [Path(folder) / inside for folder in (spec and spec.submodule_search_locations) or ()]
    if not found or not found[0].exists():
        raise UserError(missing)
    return found[0]
