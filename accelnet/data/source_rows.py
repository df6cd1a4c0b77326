"""Rows of a user's source: picked, checked and stacked."""

import contextlib
import threading
from collections.abc import Iterator, Mapping, Sequence
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
        labels: Whether targets are numbers of classes: false and true are 0 and 1 then.
        what: Name of the source in messages.
    """

    def __init__(
        self,
        source: Any,
        fields: Mapping[str, Field],
        *,
        class_names: Sequence[str] | None = None,
        labels: bool = False,
        what: str,
    ) -> None:
        self._source, self._fields, self._what, self._labels = source, dict(fields), what, labels
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
        batch = jax.tree.map(lambda one: np.empty((len(rows), *one.shape), one.dtype), dict(self.shapes))
        out = [array for _, array in leaves(batch)]
        for index, (row, item) in enumerate(self._items(rows)):
            for (path, value), values in zip(leaves(item), out, strict=True):
                if value.shape != values.shape[1:] or not _fits(value, values.dtype):
                    self._refuse(path, value, values, row)
                with np.errstate(over="ignore"):  # infinities are refused with their row
                    values[index] = value
        return batch

    def _items(self, rows: np.ndarray) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        """Yield (row, fields) of each row. They hold until the next one is read: a source may fill one buffer."""
        indices, source = rows.tolist(), self._source
        with self._lock:
            with user_code(f"{self._what}, its __len__,"):
                length = len(source)
            if length != self._length:
                raise UserError(
                    f"{self._what} had {self._length} rows when the data was made and has {length} now: the rows of a "
                    "source must stay; copy them before you train"
                )
            many = hasattr(source, "__getitems__")
            if many:
                with self._told(indices):
                    source = list(source.__getitems__(indices))
                if len(source) != len(indices):
                    raise UserError(f"{self._what} gave {len(source)} rows when it was asked for {len(indices)}")
            for position, row in enumerate(indices):
                try:
                    item = source[position if many else row]
                except Exception:
                    with self._told([row]):
                        raise
                yield row, self._picked(item, row)

    @contextlib.contextmanager
    def _told(self, rows: list[int]) -> Iterator[None]:
        """Tell what a source raised when it was asked for rows."""
        few = str(rows[0]) if len(rows) == 1 else f"{rows[:3]}{' ...' if len(rows) > 3 else ''}"
        try:
            with user_code(f"{self._what}, asked for row {few},"):
                yield
        except Exception as error:
            if not isinstance(error.__cause__, IndexError):
                raise
            raise UserError(
                f"{self._what} says that it has {self._length} rows, but has none at {few}: {error.__cause__}"
            ) from error

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
        return array.astype(np.int32) if self._labels and name == "targets" and array.dtype.kind == "b" else array

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
        items = [jax.tree.map(lambda a: (a.shape, a.dtype), item) for _, item in self._items(rows)]

        def of(*values: tuple[tuple[int, ...], np.dtype]) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(values[0][0], compact_dtype(np.result_type(*(dtype for _, dtype in values))))

        return jax.tree.map(of, *items, is_leaf=lambda one: isinstance(one, tuple))

    def _refuse(self, path: str, value: np.ndarray, values: np.ndarray, row: int) -> None:
        if value.shape != values.shape[1:]:
            raise UserError(
                f"{path} of {self.place(row)} has shape {list(value.shape)}, those of the first rows "
                f"{list(values.shape[1:])}: give all rows one shape in the source"
            )
        raise UserError(
            f"{path} of {self.place(row)} is {shown(value)} of {value.dtype}, which {values.dtype}, the type of the "
            "first rows, cannot hold: give all rows one type in the source"
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
