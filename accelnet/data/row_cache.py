"""Rows that were decoded once, kept in a private file."""

import contextlib
import fcntl
import hashlib
import os
import shutil
import weakref
import zlib
from pathlib import Path
from typing import Any

import jax
import numpy as np

from accelnet import arguments
from accelnet.cache import open_private_directory, reason_of
from accelnet.data.rows import Rows
from accelnet.errors import UserError
from accelnet.terminal import say_once
from accelnet.wording import size

DEFAULT_BYTES = 20 * 10**9
_HEAD = 8  # bytes in front of each row: its checksum, and that there is a row
_ENDING = ".rows"


class CachedRows(Rows):
    """Keep rows in a file as they were read, and read them from there the next time.

    A row lies behind its checksum. What was written in part, by a process that was killed or before power failed, does
    not fit its checksum and is read anew; so several processes may use the file at once. It is read and written by
    calls of the system rather than mapped, so that it takes no memory of the process, and a full disk is an error to
    go on from. As many rows as fit are kept, the first ones, and never replaced by others: an epoch reads each row
    once, and would replace each before it is read again.

    Args:
        rows: Rows to keep.
        path: The file. It may hold rows of another time.
        max_bytes: Bytes that it may take.
        stamps: uint32 [N] that change with what a row was made of, such as a file's time; None for none.

    Raises:
        OSError: if the file cannot be opened.
    """

    def __init__(self, rows: Rows, path: Path, max_bytes: int, stamps: np.ndarray | None = None) -> None:
        self._rows, self.shapes, self.readers = rows, rows.shapes, rows.readers
        self._record = _HEAD + rows.row_bytes
        self._kept = min(len(rows), max_bytes // self._record)
        self._stamps = np.zeros(len(rows), np.uint32) if stamps is None else stamps
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        weakref.finalize(self, os.close, self._file)
        fcntl.flock(self._file, fcntl.LOCK_SH)  # it is in use: others do not remove it
        self._writes = True

    def __len__(self) -> int:
        return len(self._rows)

    def place(self, row: int) -> str:
        return self._rows.place(row)

    def identity(self) -> bytes:
        return self._rows.identity()

    def read(self, rows: np.ndarray) -> dict[str, Any]:
        records = np.empty((len(rows), self._record), np.uint8)
        missing = np.array([not self._load(row, record) for row, record in zip(rows.tolist(), records, strict=True)])
        if missing.any():
            batch = self._rows.read(rows[missing])
            if missing.all():
                self._fill(records, batch)
            else:
                new = np.empty((int(missing.sum()), self._record), np.uint8)
                self._fill(new, batch)
                records[missing] = new
            for index in np.flatnonzero(missing):
                self._store(int(rows[index]), records[index])
        return self._fields(records)

    def _load(self, row: int, record: np.ndarray) -> bool:
        if row >= self._kept:
            return False
        with contextlib.suppress(OSError):
            if os.preadv(self._file, [record.data], row * self._record) == self._record:
                return bytes(record[:_HEAD]) == self._head(row, record)
        return False

    def _store(self, row: int, record: np.ndarray) -> None:
        if row >= self._kept or not self._writes:
            return
        record[:_HEAD] = np.frombuffer(self._head(row, record), np.uint8)
        try:
            os.pwrite(self._file, record.data, row * self._record)
        except OSError as error:
            self._writes = False
            say_once(
                f"the cache of rows takes no more rows: {reason_of(error)}. The run goes on and reads the others anew"
            )

    def _head(self, row: int, record: np.ndarray) -> bytes:
        return (1 << 32 | zlib.crc32(record[_HEAD:].data, int(self._stamps[row]))).to_bytes(_HEAD, "little")

    def _fill(self, records: np.ndarray, batch: Any) -> None:
        start = _HEAD
        for values in jax.tree.leaves(batch):
            flat = np.ascontiguousarray(values).reshape(len(records), -1).view(np.uint8)
            records[:, start : start + flat.shape[1]] = flat
            start += flat.shape[1]

    def _fields(self, records: np.ndarray) -> Any:
        start, found = _HEAD, []
        leaves, structure = jax.tree.flatten(dict(self.shapes))
        for one in leaves:
            length = int(np.prod(one.shape)) * one.dtype.itemsize
            flat = np.ascontiguousarray(records[:, start : start + length])
            found.append(flat.view(one.dtype).reshape(len(records), *one.shape))
            start += length
        return jax.tree.unflatten(structure, found)


def open_cache(rows: Rows, limit: bool | int, *, key: bytes, stamps: np.ndarray | None = None) -> CachedRows:
    """Return rows with a file of the user's private cache behind them.

    Args:
        rows: Rows to keep.
        limit: Bytes that all files of rows may take together; True for 20 GB, and a quarter of the free disk at most.
        key: Bytes that tell these rows, and how they were made, from any others.
        stamps: As of `CachedRows`.

    Returns:
        The rows. Files of others, the longest unused first, are removed for the room that these need.

    Raises:
        UserError: if the limit is no number of bytes or the file cannot be had.
    """
    own = limit is True or arguments.integer("cache", limit, low=1)
    shapes = repr([(one.shape, one.dtype.str) for one in jax.tree.leaves(dict(rows.shapes))])
    digest = hashlib.blake2b(key + shapes.encode() + str(len(rows)).encode(), digest_size=16).hexdigest()
    try:
        directory = open_private_directory("rows")
        path = directory / f"{digest}{_ENDING}"
        held = path.stat().st_blocks * 512 if path.exists() else 0
        most = int(limit) if own is not True else min(DEFAULT_BYTES, (shutil.disk_usage(directory).free + held) // 4)
        need = min(most, len(rows) * (_HEAD + rows.row_bytes))
        room = most - _make_room(path, most - need)
        cached = CachedRows(rows, path, min(need, room), stamps)
        os.utime(path)
    except OSError as error:
        raise UserError(f"cache={limit!r}: rows cannot be kept: {reason_of(error)}") from None
    whole = len(rows) * (_HEAD + rows.row_bytes)
    if min(need, room) < whole:
        say_once(f"the cache of rows holds {size(min(need, room))} of {size(whole)}: cache=BYTES sets its limit")
    return cached


def _make_room(path: Path, allowed: int) -> int:
    """Remove files beside `path`, the longest unused first, until they take what is allowed; return their bytes."""
    others = []
    for other in path.parent.glob(f"*{_ENDING}"):
        with contextlib.suppress(FileNotFoundError):
            status = other.stat()
            if other != path:
                others.append((status.st_mtime, other, status.st_blocks * 512))
    taken = sum(held for *_, held in others)
    for _, other, held in sorted(others):
        if taken <= allowed:
            break
        with contextlib.suppress(OSError):
            file = os.open(other, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails where a run uses it
                other.unlink()
                taken -= held
            finally:
                os.close(file)
    return taken
