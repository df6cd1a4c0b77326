"""Token files: one long row of numbers on the disk, cut into windows when they are read."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from accelnet import arguments
from accelnet.data.dataset import Data
from accelnet.data.fitted import checked
from accelnet.data.row_views import JoinedRows, reordered
from accelnet.data.rows import Rows, lazy_arrays
from accelnet.data.stored import FileRows
from accelnet.data.tokenizer import check_tokenizer, identity_of, num_tokens_of
from accelnet.data.windows import HeldOut, held_out_windows, with_cast_tokens
from accelnet.errors import UserError
from accelnet.wording import listed, shown

_BLOCK_BYTES = 1 << 24
Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


def tokens(
    path: Paths,
    *,
    window: int,
    dtype: str | None = None,
    stride: int | None = None,
    num_tokens: int | None = None,
    tokenizer: Any = None,
    held_out: HeldOut = "end",
    validation: Paths | None = None,
    test: Paths | None = None,
    seed: int = 0,
    name: str | None = None,
    fitted: Mapping[str, Any] | None = None,
) -> Data:
    """Load files of tokens as windows, each with the tokens that follow as its targets.

    The files stay on the disk. Windows do not reach from one file into the next.

    Args:
        path: File, or several: numbers one after the other without a header, or `.npy` with one axis.
        window: Tokens per example, at least 1.
        dtype: Type of the numbers in files without a header, such as "uint16"; of `.npy` files they say it.
        stride: Tokens from the beginning of a window to that of the next, at least 1. None: `window`.
        num_tokens: Number that tokens must be below. None: that of the tokenizer, or the largest plus 1, for
            which the files are read once.
        tokenizer: Tokenizer that made them, for `encode` and `decode`: as of `text`. None: there is none.
        held_out: Place of the rows held out, as of `text`, where there are no files for them.
        validation: File or files of the validation split.
        test: The same of the test split.
        seed: Seed of the draw of `held_out="blocks"`, at least 0.
        name: Name of the data; None for the first file's name.
        fitted: `data.fitted` of an earlier run, whose tokenizer must be the same.

    Returns:
        Data with lazy inputs and targets [N, window] of the files' type, cast to int32 by `prepare`.
        `info["num_classes"]` is the number of tokens.

    Raises:
        UserError: if a file is missing, is no whole number of tokens or too short for its windows, or tokens are out of
            range.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.arange(100, dtype=np.uint16).tofile(f"{folder}/a.bin")
        ...     data = tokens(f"{folder}/a.bin", dtype="uint16", window=8)
        ...     batch = data.take(np.array([1]))
        >>> data.info["num_classes"], batch["inputs"][0, :3].tolist(), batch["targets"][0, :3].tolist()
        (100, [8, 9, 10], [9, 10, 11])
    """
    window = arguments.integer("window", window, low=1)
    stride = window if stride is None else arguments.integer("stride", stride, low=1)
    arguments.word("held_out", held_out, ("end", "blocks"))
    given = {
        split: _paths(split, one) for split, one in (("validation", validation), ("test", test)) if one is not None
    }
    files = _paths("path", path)
    parts = [TokenRows(file, dtype, window, stride) for file in files]
    rows: Rows = parts[0] if len(parts) == 1 else JoinedRows(_alike(parts))
    order, splits = held_out_windows(
        len(rows), held_out, seed, between=window // stride, without=given, what=listed(map(str, files))
    )
    held: list[TokenRows] = []
    for split, paths in given.items():
        some = [TokenRows(file, dtype, window, stride) for file in paths]
        _alike([parts[0], *some])
        start = len(order)
        order = np.concatenate([order, len(rows) + sum(map(len, held)) + np.arange(sum(map(len, some)))])
        splits[split] = range(start, len(order))
        held += some
    if held:
        rows = JoinedRows([rows, *held])
    own: dict[str, Any] = {}
    info: dict[str, Any] = {}
    if tokenizer is not None:
        check_tokenizer(tokenizer)
        own["tokenizer"], info["tokenizer"] = identity_of(tokenizer), tokenizer
        num_tokens = num_tokens_of(tokenizer) if num_tokens is None else num_tokens
    if num_tokens is None:
        num_tokens = 1 + max(one.largest() for one in (*parts, *held))
    info["num_classes"] = arguments.integer("num_tokens", num_tokens, low=1)
    name = files[0].stem if name is None else arguments.word("name", name)
    data = Data(name, reordered(lazy_arrays(rows), order), splits, with_cast_tokens, info=info, fitted=own)
    return data if fitted is None else data.refitted(checked(fitted))


class TokenRows(Rows):
    """The windows of a file of tokens.

    Args:
        path: File.
        dtype: Type of the numbers, of a file without a header.
        window: Tokens per window.
        stride: Tokens from window to window.
    """

    stored = True

    def __init__(self, path: Path, dtype: str | None, window: int, stride: int) -> None:
        self._path, self._window, self._stride = path, window, stride
        self._tokens = _mapped(path, dtype)
        if len(self._tokens) <= window:
            raise UserError(
                f"{path} has {len(self._tokens)} tokens, expected at least {window + 1} for window={window}: give a "
                "longer file or a smaller window"
            )
        size, width = self._tokens.dtype.itemsize, window + 1
        self._file = FileRows(path, start=self._tokens.offset, stride=stride * size, size=width * size)
        one = jax.ShapeDtypeStruct((window,), self._tokens.dtype.newbyteorder("="))
        self.shapes = {"inputs": one, "targets": one}

    def __len__(self) -> int:
        return (len(self._tokens) - self._window - 1) // self._stride + 1

    def read(self, rows: np.ndarray) -> dict[str, Any]:
        distinct, inverse = np.unique(rows, return_inverse=True)
        both = np.empty((len(distinct), self._window + 1), self._tokens.dtype)
        self._file.read(distinct, both)
        both = both.astype(self.shapes["inputs"].dtype)[inverse]
        return {"inputs": both[:, :-1], "targets": both[:, 1:]}

    def place(self, row: int) -> str:
        return f"the window from token {row * self._stride} of {self._path} on"

    def largest(self) -> int:
        """Return the largest token of the file."""
        size, offset = self._tokens.dtype.itemsize, self._tokens.offset
        blocks = range(0, len(self._tokens), _BLOCK_BYTES // size)
        # Not through the map, whose pages would count as this process' memory.
        return max(
            int(np.fromfile(self._path, self._tokens.dtype, _BLOCK_BYTES // size, offset=offset + first * size).max())
            for first in blocks
        )


def _mapped(path: Path, dtype: str | None) -> np.memmap:
    try:
        if path.suffix == ".npy":
            array = np.load(path, mmap_mode="r", allow_pickle=False)
            if dtype is not None and np.dtype(dtype) != array.dtype:
                raise UserError(f"{path} holds {array.dtype}, and dtype is {dtype!r}: leave dtype out")
        else:
            kind = _dtype(path, dtype)
            size = path.stat().st_size
            if size == 0 or size % kind.itemsize:
                raise UserError(f"{path} has {size} bytes, which is no whole number of {kind} of {kind.itemsize} bytes")
            array = np.memmap(path, kind, mode="r")
    except OSError as error:
        raise UserError(f"token file {path} cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} is no .npy file of numbers: {error}") from None
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise UserError(f"{path} holds {array.dtype} {list(array.shape)}, expected whole numbers [tokens]")
    return array


def _dtype(path: Path, dtype: Any) -> np.dtype:
    if dtype is None:
        raise UserError(f"dtype is missing: {path} has no header that says it; give such as dtype='uint16'")
    try:
        kind = np.dtype(dtype)
    except TypeError:
        kind = np.dtype(object)
    if kind.kind not in "iu":
        raise UserError(f"dtype is {shown(dtype)}, expected a type of whole numbers, such as 'uint16'")
    return kind


def _paths(name: str, value: Any) -> list[Path]:
    several = value if isinstance(value, list | tuple) else [value]
    if not several:
        raise UserError(f"{name} is empty, expected files")
    return [arguments.path(name, one) for one in several]


def _alike(parts: Sequence[TokenRows]) -> Sequence[TokenRows]:
    kinds = {one.shapes["inputs"].dtype for one in parts}
    if len(kinds) > 1:
        raise UserError(f"token files have types {listed(map(str, sorted(kinds, key=str)))}, expected one")
    return parts
