"""Raw inputs as rows that are taken a few at a time: tables, pictures, arrays and text, or files of them."""

import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from accelnet.artifact.schema import BYTES, ArraySchema, held_of
from accelnet.data.cells import Cells
from accelnet.data.columns import NAMED
from accelnet.data.files import read_text
from accelnet.data.pictures import EXTENSIONS, PictureForm, encode_pictures
from accelnet.data.table_source import open_source
from accelnet.data.tables import Table
from accelnet.errors import UserError
from accelnet.wording import listed

_ARRAYS = (".npy", ".npz")


@dataclass(frozen=True)
class RawRows:
    """Hold raw inputs.

    Attributes:
        count: Number of rows.
        take: Function of row numbers, int [B], that returns what `schema.encode` takes.
        ids: Names of the rows in results: paths of files, or numbers.
        place: Function of a row that says where it is, for messages.
        are_all: Whether there are no more.
    """

    count: int
    take: Callable[[np.ndarray], Any]
    ids: Sequence[Any]
    place: Callable[[int], str]
    are_all: bool = True


def open_rows(raw: Any, schema: Mapping[str, Any]) -> Iterator[RawRows]:
    """Return raw inputs as rows, those of long tables in parts, one after the other.

    Args:
        raw: Arrays [B, ...] or a dict of such; of a table a frame, a dict of columns or a list of rows as dicts; of
            pictures images, or arrays of any size; of text one or more strings; or the path of a file of these, of a
            folder of pictures, or a list of such paths.
        schema: Schema of the artifact.

    Raises:
        UserError: if it is nothing of this, a file cannot be read, or there is no row.
    """
    paths, fitted = _paths(raw, schema), schema["fitted"]
    if "columns" in fitted and not _is_array(raw) and not (paths and _suffix(paths[0]) in _ARRAYS):
        return _table(paths or [raw], fitted["columns"])
    return iter([_opened(raw, paths, schema)])


def _opened(raw: Any, paths: list[Path] | None, schema: Mapping[str, Any]) -> RawRows:
    if paths is None:
        return _of_values(raw, schema)
    form = picture_form(schema)
    if form is not None and _suffix(paths[0]) not in _ARRAYS:
        return _pictures(_found_pictures(paths), form)
    if len(paths) > 1:
        raise UserError(f"inputs are {len(paths)} files, {listed(map(str, paths))}, expected one")
    if _suffix(paths[0]) in _ARRAYS:
        return _arrays(_read_arrays(paths[0], held_of(schema["inputs"])))
    if takes_text(schema):
        return _listed([read_text(paths[0], "text file").replace("\r\n", "\n").replace("\r", "\n")], [str(paths[0])])
    raise UserError(f"{paths[0]} is no .npy or .npz file, which is what this model takes")


def _paths(raw: Any, schema: Mapping[str, Any]) -> list[Path] | None:
    """Return the paths that inputs are; text of a model of texts is none."""
    several = raw if isinstance(raw, list | tuple) else [raw]
    kinds = os.PathLike if takes_text(schema) else str | os.PathLike
    if not several or not all(isinstance(one, kinds) for one in several):
        return None
    return [Path(os.fspath(one)) for one in several]


def takes_text(schema: Mapping[str, Any]) -> bool:
    """Say whether inputs may be text: of known characters, or of bytes."""
    return "vocabulary" in schema["fitted"] or schema["tokenizer"] == BYTES


def _suffix(path: Path) -> str:
    return path.suffix.lower()


def _is_array(raw: Any) -> bool:
    return hasattr(raw, "shape") and hasattr(raw, "dtype")


def picture_form(schema: Mapping[str, Any]) -> PictureForm | None:
    """Return the form that pictures get; None for other inputs. Bytes [H, W, 1 or 3] are pictures of that size.

    Example:
        >>> schema = {"inputs": {"dtype": "uint8", "shape": ["batch", 8, 6, 1]}, "fitted": {}}
        >>> picture_form(schema)
        PictureForm(height=8, width=6, channels=1, resize='none')
    """
    if "picture" in schema["fitted"]:
        return PictureForm(**schema["fitted"]["picture"])
    held = held_of(schema["inputs"])
    if isinstance(held, ArraySchema) and held.ndim == 4 and held.dtype == np.uint8 and held.shape[3] in (1, 3):
        return PictureForm(held.shape[1], held.shape[2], held.shape[3], "none")
    return None


def _table(given: Sequence[Any], columns: Sequence[Mapping[str, Any]]) -> Iterator[RawRows]:
    used = [column["name"] for column in columns]
    as_names = {column["name"] for column in columns if column["kind"] in NAMED}
    sources = [open_source(one, "inputs") for one in given]
    for source in sources:
        source.check(used)
    first, are_all = 0, len(sources) == 1 and sources[0].read_parts is None
    for source in sources:
        for part in source.parts(used, as_names):
            ids = range(first, first + part.num_rows)
            yield RawRows(part.num_rows, _lenient(part).take, ids, part.place, are_all)
            first += part.num_rows


def _lenient(table: Table) -> Table:
    """Return a table that reads a column once, and one that has text among its numbers as text: some rows are bad."""

    @functools.cache
    def column(name: str, names: bool) -> Cells:
        try:
            return table.column(name, names)
        except UserError:
            return table.column(name, True)

    return table._replace(column=column)


def _of_values(raw: Any, schema: Mapping[str, Any]) -> RawRows:
    if isinstance(raw, str):
        raw = [raw]
    if "picture" in schema["fitted"] and not (_is_array(raw) and np.ndim(raw) == 4):
        ones = list(raw) if isinstance(raw, list | tuple) else [raw]
        return _pictures(ones, PictureForm(**schema["fitted"]["picture"]))
    if isinstance(raw, list | tuple) and raw and all(isinstance(one, str) for one in raw):
        return _listed(list(raw), range(len(raw)))
    return _arrays(raw if isinstance(raw, Mapping) or hasattr(raw, "shape") else np.asarray(raw))


def _pictures(ones: list[Any], form: PictureForm) -> RawRows:
    values = form.values()
    named = all(isinstance(one, str | os.PathLike) for one in ones)

    def take(rows: np.ndarray) -> np.ndarray:
        return np.concatenate([encode_pictures([ones[row]], values) for row in rows])

    return _checked(RawRows(len(ones), take, list(map(str, ones)) if named else range(len(ones)), "picture {}".format))


def _found_pictures(paths: Sequence[Path]) -> list[str]:
    found = []
    for path in paths:
        if not path.is_dir():
            found.append(str(path))
            continue
        inside = sorted(one for one in path.rglob("*") if one.suffix.lower() in EXTENSIONS and one.is_file())
        if not inside:
            raise UserError(f"{path} holds no picture, expected files such as a.png or a.jpg")
        found += map(str, inside)
    return found


def _listed(ones: list[Any], ids: Sequence[Any]) -> RawRows:
    return _checked(RawRows(len(ones), lambda rows: [ones[row] for row in rows], ids, "text {}".format))


def _arrays(arrays: Any) -> RawRows:
    """Hold arrays, or what is read from a file where it is taken."""
    leaves = jax.tree.leaves(arrays)
    sizes = {np.shape(one)[:1] for one in leaves}
    if len(sizes) != 1 or () in sizes:
        shapes = listed(list(np.shape(one)) for one in leaves)
        raise UserError(f"inputs have shapes {shapes}, expected arrays [B, ...] of B rows each")
    ((count,),) = sizes

    def take(rows: np.ndarray) -> Any:
        # Neighbours as a slice: of a memory map, and of what has no other index.
        first, last = int(rows[0]), int(rows[-1])
        return jax.tree.map(lambda one: np.asarray(one[first : last + 1])[rows - first], arrays)

    return _checked(RawRows(count, take, range(count), "row {}".format))


def _read_arrays(path: Path, held: Any) -> Any:
    try:
        if _suffix(path) == ".npy":
            return np.load(path, mmap_mode="r", allow_pickle=False)
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    except Exception as error:  # noqa: BLE001, whatever a damaged file makes NumPy do
        raise UserError(f"{path} is no file of arrays that NumPy can read ({error}): write it again") from None
    if isinstance(held, Mapping):
        return {name: arrays[name] for name in held} if set(held) <= set(arrays) else arrays
    if len(arrays) == 1 or "inputs" in arrays:
        return arrays.get("inputs", next(iter(arrays.values())))
    raise UserError(f"{path} holds {listed(arrays)}, expected 'inputs' among them, or one array")


def _checked(rows: RawRows) -> RawRows:
    if not rows.count:
        raise UserError("inputs are empty, expected at least one row")
    return rows
