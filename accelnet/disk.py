"""Files that are on the disk whole, or not at all."""

import os
from pathlib import Path


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
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)  # a rename is atomic within a file system only, hence in the same directory
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)  # without it a power failure can undo the rename


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
