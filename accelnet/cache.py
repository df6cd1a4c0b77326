"""The user's own cache: directories and files that nobody else can have written.

What is kept there is executed (kernels, compiled programs) or believed (measurements, data), so nothing in it is used
that another user could have put there or changed. Root is trusted, and so is the owner of the root directory.
"""

import contextlib
import fcntl
import functools
import os
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from accelnet.disk import replace_file
from accelnet.terminal import say, say_once

_MOST_LINKS = 40  # as Linux follows
# Begin the names of what is being written. What a killed process left of it is removed after an hour.
UNFINISHED = ".unfinished-"
_UNFINISHED_SECONDS = 3600.0
_PATIENCE_SECONDS = 120.0


def private_directory(name: str) -> Path | None:
    """Return a directory of the cache that only the user can enter (mode 0700), where it can be had.

    Where it cannot, one line on standard error says why, once.

    Args:
        name: Name of the directory.

    Returns:
        The directory of `open_private_directory`; None where that raises an error.

    Example:
        >>> directory = private_directory("example")
        >>> directory is None or directory.is_dir()
        True
    """
    try:
        return open_private_directory(name)
    except OSError as error:
        say_once(
            f"accelnet: nothing is kept between processes, so each compiles anew: {reason_of(error)}. Set "
            "XDG_CACHE_HOME to a directory of your own that nobody else can write to"
        )
        return None


def open_private_directory(name: str) -> Path:
    """Make a directory of the cache that the user alone can enter, `$XDG_CACHE_HOME/accelnet/NAME` or below `~/.cache`.

    What lies in it and could be another user's work is removed: files of others or that others can write to, links,
    and everything where the directory itself was open to others.

    Args:
        name: Name of the directory.

    Returns:
        The directory, with mode 0700 under any umask.

    Raises:
        OSError: if it cannot be made, or if another user could replace it or one of the directories above.

    Example:
        >>> directory = open_private_directory("example")
        >>> oct(directory.stat().st_mode & 0o777)
        '0o700'

    Source: XDG Base Directory Specification 0.8.
    """
    root = _root()
    _check(root, own=True)
    was_open = _check(root / name, own=True)
    _remove_foreign(root / name, everything=was_open)
    return root / name


def check_place(directory: str | os.PathLike[str]) -> None:
    """Check that no other user can replace a directory or what lies in it; in a sticky one, what is the user's own.

    Links are followed, if they and what they lead through pass the same check. Missing directories are made (0700).

    Raises:
        OSError: if another user can.

    Example:
        >>> check_place("/")
    """
    _check(Path(directory).absolute())


def write_private(path: Path, content: bytes) -> None:
    """Write a file that the user alone can read and write (mode 0600), whole or not at all, even if power fails.

    Args:
        path: File in a private directory.
        content: What it holds from then on.

    Raises:
        OSError: if it cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     write_private(Path(directory) / "a", b"1")
        ...     sorted(path.name for path in Path(directory).iterdir())
        ['a']
    """
    replace_file(path, content, temporary=path.parent / f"{UNFINISHED}{secrets.token_hex(8)}", mode=0o600)


@contextlib.contextmanager
def in_turn(directory: Path, waiting: str) -> Iterator[None]:
    """Let one process at a time make what all want from a private directory; the end of a process ends its turn.

    Who has waited for two minutes goes on without a turn: the other may stand still.

    Args:
        directory: The directory, which is locked. Where its file system has no locks, nobody waits.
        waiting: Message to standard error, if another process has its turn.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as directory, in_turn(Path(directory), "waiting"):
        ...     pass
    """
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        began = time.monotonic()
        while not _is_locked(descriptor) and time.monotonic() - began < _PATIENCE_SECONDS:
            if waiting:
                say(waiting)
            waiting = ""
            time.sleep(0.1)
        yield
    finally:
        os.close(descriptor)


def _is_locked(descriptor: int) -> bool:
    """Lock an open file, and say whether nothing more can be had by waiting."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        pass
    return True


def close_to_others(directory: Path) -> None:
    """Take from others the right to write to what another library has written into a private directory.

    Under an umask such as 000 others have that right, for which `open_private_directory` would remove it next time.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     (Path(directory) / "a").touch()
        ...     (Path(directory) / "a").chmod(0o666)
        ...     close_to_others(Path(directory))
        ...     oct((Path(directory) / "a").stat().st_mode & 0o777)
        '0o644'
    """
    with contextlib.suppress(OSError), os.scandir(directory) as entries:
        for entry in entries:
            mode = entry.stat(follow_symlinks=False).st_mode
            if mode & 0o022 and not stat.S_ISLNK(mode):
                Path(entry.path).chmod(stat.S_IMODE(mode) & ~0o022)


def reason_of(error: OSError) -> str:
    """Return an error in words, with its file.

    Example:
        >>> reason_of(PermissionError(13, "Permission denied", "/a")), reason_of(OSError("too many links"))
        ('/a: Permission denied', 'too many links')
    """
    if error.errno is None:
        return str(error)
    return f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror)


def _root() -> Path:
    configured = os.environ.get("XDG_CACHE_HOME", "")
    if Path(configured).is_absolute():  # the specification ignores others
        return Path(configured) / "accelnet"
    try:
        return Path.home().absolute() / ".cache" / "accelnet"
    except RuntimeError:
        raise FileNotFoundError(
            f"user {os.geteuid()} has no home directory: HOME is not set and the system does not know the user"
        ) from None


def _check(path: Path, *, own: bool = False, links: int = _MOST_LINKS) -> bool:
    """Check a directory and all above it; make it if it is missing.

    Args:
        path: An absolute path.
        own: Whether it has to be this user's own, and closed to others from now on.
        links: Links that may still be followed.

    Returns:
        Whether others could write into it.
    """
    if path != path.parent:
        _check(path.parent, links=links)
    try:
        status = path.lstat()
    except FileNotFoundError:
        with contextlib.suppress(FileExistsError):  # by another process in this moment
            path.mkdir(mode=0o700)
        status = path.lstat()
    trusted = {os.geteuid()} if own else {0, os.geteuid(), Path("/").stat().st_uid}
    if status.st_uid not in trusted:
        raise PermissionError(f"{path} belongs to user {status.st_uid}, expected {'' if own else 'root or '}this user")
    if stat.S_ISLNK(status.st_mode):
        if not links:
            raise OSError(f"{path}: too many links")
        return _check(path.parent / path.readlink(), own=own, links=links - 1)
    if not stat.S_ISDIR(status.st_mode):
        raise NotADirectoryError(f"{path} is no directory")
    is_open = _others_can_write(status)
    if own:
        if stat.S_IMODE(status.st_mode) != 0o700:
            path.chmod(0o700)
    elif is_open and not status.st_mode & stat.S_ISVTX:
        raise PermissionError(f"other users can write to {path} (mode {stat.S_IMODE(status.st_mode):o})")
    return is_open


def _others_can_write(status: os.stat_result) -> bool:
    return bool(status.st_mode & 0o002 or (status.st_mode & 0o020 and not _is_own_group(status.st_gid)))


@functools.cache
def _is_own_group(number: int) -> bool:
    """Say whether a group is the user's private one, whose files many systems make writable for the group."""
    import grp
    import pwd

    try:
        user, group = pwd.getpwuid(os.geteuid()), grp.getgrgid(number)
    except KeyError:
        return False
    return number == user.pw_gid and group.gr_name == user.pw_name and set(group.gr_mem) <= {user.pw_name}


def _remove_foreign(directory: Path, *, everything: bool = False) -> None:
    """Remove what others could have written, and what was never finished.

    A file with a second name could be one of the user's own, from elsewhere, that another has put there.
    """
    for entry in list(os.scandir(directory)):
        try:
            status = entry.stat(follow_symlinks=False)
        except FileNotFoundError:  # removed by another process in this moment
            continue
        is_directory = stat.S_ISDIR(status.st_mode)
        is_plain = is_directory or (stat.S_ISREG(status.st_mode) and status.st_nlink == 1)
        is_left = entry.name.startswith(UNFINISHED) and time.time() - status.st_mtime > _UNFINISHED_SECONDS
        foreign = not is_plain or status.st_uid != os.geteuid() or _others_can_write(status)
        if everything or foreign or is_left:
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(entry.path) if is_directory else Path(entry.path).unlink()
        # What is being made is nobody else's business: nothing is loaded from there, and it may go in this moment.
        elif is_directory and not entry.name.startswith(UNFINISHED):
            _remove_foreign(Path(entry.path))
