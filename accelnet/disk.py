"""Files that are on the disk whole, or not at all."""

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NoReturn

from accelnet.errors import UserError


def replace_file(path: Path, content: bytes, *, temporary: Path, mode: int = 0o666) -> None:
    """Write a file, so that at any instant, even if power fails, its path holds either the old content or the new.

    Args:
        path: The file.
        content: What it holds from then on.
        temporary: File in the same directory that does not exist; a process that is killed may leave it.
        mode: Permissions of a new file, before the umask.

    Raises:
        OSError: if it cannot be written.

    Example:
        >>> import tempfile
        >>> directory = Path(tempfile.mkdtemp())
        >>> replace_file(directory / "a", b"1", temporary=directory / ".a.tmp")
        >>> [path.name for path in directory.iterdir()]
        ['a']
    """
    with _replacing(path, temporary, mode) as file:
        file.write(content)


@contextlib.contextmanager
def _replacing(path: Path, temporary: Path, mode: int) -> Iterator[BinaryIO]:
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)  # a rename is atomic within a file system only, hence in the same directory
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)  # without it a power failure can undo the rename


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Give a file to write, which comes to lie at a path when all is written; if that fails, nothing changes there.

    Args:
        path: File to write; its directory is made if needed.

    Raises:
        UserError: if it cannot be written, for want of permission or space.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "note.txt"
        >>> with replacing(path) as file:
        ...     _ = file.write(b"kept")
        >>> path.read_bytes()
        b'kept'
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _replacing(path, temporary(path), 0o666) as file:
            yield file
    except OSError as error:
        raise_unwritable(path, error)


def temporary(path: Path) -> Path:
    """Return another path beside a path, for a file that a killed process may leave; a run removes such at its start.

    Example:
        >>> len(temporary(Path("note.txt")).name)
        22
    """
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


def sync(path: Path) -> None:
    """Wait until a file or directory is on the disk, where the system can say so.

    Raises:
        OSError: if it cannot be written.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Write a whole file, so that at any instant its path holds either the old content or the new.

    Args:
        path: File to write; its directory is made if needed.
        content: Text (written as UTF-8) or bytes.

    Raises:
        UserError: if it cannot be written, for want of permission or space.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "runs" / "note.txt"
        >>> write_atomically(path, "kept")
        >>> path.read_text()
        'kept'
    """
    # Names of files that are no UTF-8 have characters that cannot be encoded.
    data = content.encode(errors="backslashreplace") if isinstance(content, str) else content
    with replacing(path) as file:
        file.write(data)


def raise_unwritable(path: Path, error: OSError) -> NoReturn:
    """Report a file that cannot be written as a `UserError`."""
    # What is wrong with a directory above is said of that directory.
    culprit = f"{error.filename}: " if error.filename and Path(error.filename) in path.parents else ""
    raise UserError(
        f"cannot write {path}: {culprit}{error.strerror or error}. The files that were there are untouched. "
        "Free space, get permission to write there, or choose another place"
    ) from error
