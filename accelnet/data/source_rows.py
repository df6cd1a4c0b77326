"""Rows of a user's source: picked, checked and stacked."""

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from accelnet.data.arrays import leaves
from accelnet.data.fields import Field, pick
from accelnet.data.precision import compact_dtype
from accelnet.data.rows import Rows
from accelnet.errors import UserError, user_code
from accelnet.wording import listed, shown

_FIRST_ROWS = 16
_BROADER = {"b": 0, "u": 1, "i": 1, "f": 2, "c": 3}


class SourceRows(Rows):
    """The rows of a user's source, one field or several of each.

    Args:
        source: Object with `__len__` and `__getitem__`; `__getitems__`, where it has one, reads many at once. It is
            called by one thread at a time.
        fields: Field of a row by name of the array: "inputs", "targets", and "weights" where there are any.
        class_names: Names of the classes, where the targets are text.
        what: Name of the source in messages.
    """

    def __init__(
        self, source: Any, fields: Mapping[str, Field], *, class_names: Sequence[str] | None = None, what: str
    ) -> None:
        self._source, self._fields, self._what = source, dict(fields), what
        self._classes = None if class_names is None else {name: index for index, name in enumerate(class_names)}
        self._lock = threading.Lock()
        with user_code(f"{what}, its __len__,"):
            self._length = len(source)
        if not self._length:
            raise UserError(f"{what} has no rows")
        self.shapes = self._first_shapes()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self._length

    def place(self, row: int) -> str:
        return f"row {row} of {self._what}"

    def identity(self) -> bytes:
        return f"{type(self._source).__qualname__} {self._length}".encode()

    def read(self, rows: np.ndarray) -> dict[str, Any]:
        items = [self._picked(item, row) for item, row in zip(self._items(rows), rows.tolist(), strict=True)]
        return self._stacked(items, rows)

    def _items(self, rows: np.ndarray) -> list[Any]:
        """Read rows as the source gives them."""
        indices, source = rows.tolist(), self._source
        with self._lock:
            with user_code(f"{self._what}, its __len__,"):
                length = len(source)
            if length != self._length:
                raise UserError(
                    f"{self._what} had {self._length} rows when the data was made and has {length} now: the rows of a "
                    "source must stay; copy them before you train"
                )
            try:
                with user_code(f"{self._what}, asked for row {_few(indices)},"):
                    if hasattr(source, "__getitems__"):
                        items = list(source.__getitems__(indices))
                    else:
                        items = [source[index] for index in indices]
            except Exception as error:
                if not isinstance(error.__cause__, IndexError):
                    raise
                raise UserError(
                    f"{self._what} says that it has {self._length} rows, but has none at {_few(indices)}: "
                    f"{error.__cause__}"
                ) from error
        if len(items) != len(indices):
            raise UserError(f"{self._what} gave {len(items)} rows when it was asked for {len(indices)}")
        return items

    def _picked(self, item: Any, row: int) -> dict[str, Any]:
        where = self.place(row)
        fields = {name: pick(item, field, where, name) for name, field in self._fields.items()}
        return {name: self._arrays(value, row, name) for name, value in fields.items()}

    def _arrays(self, value: Any, row: int, name: str) -> Any:
        # Only a field that names several is a dict here: a row's own dict is no array.
        if isinstance(value, dict) and not isinstance(self._fields.get(name, ""), str | int):
            return {key: self._array(one, row, f"{name}[{key!r}]") for key, one in value.items()}
        return self._array(value, row, name)

    def _array(self, value: Any, row: int, name: str) -> np.ndarray:
        where = f"{name} of {self.place(row)}"
        if isinstance(value, str):
            return self._class(value, where, name)
        try:
            array = np.asarray(value)
        except Exception as error:  # noqa: BLE001, a stranger's object may fail in any way
            raise UserError(f"{where} is {shown(value)}, expected numbers: {error}") from None
        if array.ndim == 0 and array.dtype.kind in "UT":
            return self._class(str(array), where, name)
        if array.dtype.kind not in "biufc":
            raise UserError(f"{where} is {shown(value)}, expected numbers: turn it into an array in the source")
        return array

    def _class(self, text: str, where: str, name: str) -> np.ndarray:
        if name != "targets" or self._classes is None:
            advice = "give class_names" if name == "targets" else "turn it into numbers in the source"
            raise UserError(f"{where} is the text {shown(text)}: {advice}")
        if text not in self._classes:
            raise UserError(f"{where} is {shown(text)}, expected one of the class names {listed(self._classes)}")
        return np.asarray(self._classes[text], np.int32)

    def _first_shapes(self) -> dict[str, Any]:
        """Find shapes and types: of a field, the broadest type in the first rows."""
        rows = np.arange(min(_FIRST_ROWS, self._length))
        items = [self._picked(item, int(row)) for item, row in zip(self._items(rows), rows, strict=True)]

        def of(*values: np.ndarray) -> jax.ShapeDtypeStruct:
            dtype = np.result_type(*(value.dtype for value in values))
            return jax.ShapeDtypeStruct(values[0].shape, compact_dtype(dtype))

        return jax.tree.map(of, *items)

    def _stacked(self, items: list[dict[str, Any]], rows: np.ndarray) -> dict[str, Any]:
        def stacked(shape: jax.ShapeDtypeStruct, *values: np.ndarray) -> np.ndarray:
            batch = np.empty((len(values), *shape.shape), shape.dtype)
            for index, value in enumerate(values):
                if value.shape != shape.shape or not _fits(value, shape.dtype):
                    self._refuse(items[index], int(rows[index]))
                batch[index] = value
            return batch

        if not items:
            return jax.tree.map(lambda one: np.empty((0, *one.shape), one.dtype), dict(self.shapes))
        return jax.tree.map(stacked, dict(self.shapes), *items)

    def _refuse(self, item: Any, row: int) -> None:
        for (path, value), (_, shape) in zip(leaves(item), leaves(self.shapes), strict=True):
            if value.shape != shape.shape:
                raise UserError(
                    f"{path} of {self.place(row)} has shape {list(value.shape)}, those of the first rows "
                    f"{list(shape.shape)}: give all rows one shape in the source"
                )
            if not _fits(value, shape.dtype):
                raise UserError(
                    f"{path} of {self.place(row)} is {shown(value)} of {value.dtype}, which {shape.dtype}, the type of "
                    "the first rows, cannot hold: give all rows one type in the source"
                )


def _fits(value: np.ndarray, dtype: np.dtype) -> bool:
    """Say whether a type holds a value: floats are rounded, nothing else changes."""
    if value.dtype == dtype:
        return True
    if _BROADER[value.dtype.kind] > _BROADER.get(dtype.kind, 2):
        return False
    if dtype.kind in "iu" and value.dtype.kind in "iu" and value.size:
        limits = np.iinfo(dtype)
        return bool(value.min() >= limits.min and value.max() <= limits.max)
    return True


def _few(indices: list[int]) -> str:
    return str(indices[0]) if len(indices) == 1 else f"{indices[:3]}{' ...' if len(indices) > 3 else ''}"
