"""Rows of a user's source: picked, checked and stacked."""

import contextlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from accelnet.data.arrays import leaves
from accelnet.data.fields import Field, pick
from accelnet.data.precision import compact_dtype
from accelnet.data.rows import Rows
from accelnet.errors import UserError, user_code
from accelnet.wording import listed, shown

_FIRST_ROWS = 16
_FLOATS = frozenset((float, np.float64, np.float32))
_WHOLE = frozenset((int, np.int64, np.int32, np.int16, np.int8, np.uint64, np.uint32, np.uint16, np.uint8))
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

    readers = 1  # a second thread would wait for the source, and for Python's lock

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
        self._parts = _parts_of(self._fields)
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
        parts = [
            (part, values, values.dtype, values.shape[1:], *_limits(values))
            for part, (_, values) in zip(self._parts, leaves(batch), strict=True)
        ]
        for index, (row, item) in enumerate(self._items(rows)):
            for part, values, dtype, shape, kinds, least, most in parts:
                value = part.of(item, self._what, row)
                # What needs no look: NumPy's checks of every value would take most of the time.
                kind = type(value)
                if kind in kinds:
                    same = least <= value <= most
                else:
                    same = kind is np.ndarray and value.dtype == dtype and value.shape == shape
                if same:
                    values[index] = value
                else:
                    self._store(values, index, self._array(value, row, part.name), part, row)
        return batch

    def _store(self, values: np.ndarray, index: int, value: np.ndarray, part: "_Part", row: int) -> None:
        if value.shape != values.shape[1:] or not _fits(value, values.dtype):
            self._refuse(part.path, value, values, row)
        with np.errstate(over="ignore"):  # infinities are refused with their row
            values[index] = value

    def _items(self, rows: np.ndarray) -> Iterator[tuple[int, Any]]:
        """Yield (row, what the source gives); this holds until the next is read: a source may fill one buffer."""
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
                yield row, item

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
        seen: list[list[tuple[tuple[int, ...], np.dtype]]] = [[] for _ in self._parts]
        for row, item in self._items(rows):
            for part, kinds in zip(self._parts, seen, strict=True):
                array = self._array(part.of(item, self._what, row), row, part.name)
                if not array.size:
                    raise UserError(f"{part.name} of {self.place(row)} has shape {list(array.shape)}, expected values")
                kinds.append((array.shape, array.dtype))
        found: dict[str, Any] = {}
        for part, kinds in zip(self._parts, seen, strict=True):
            dtype = compact_dtype(np.result_type(*(dtype for _, dtype in kinds)))
            shape = jax.ShapeDtypeStruct(kinds[0][0], dtype)
            name, _, key = part.path.partition(".")
            if key:
                found.setdefault(name, {})[key] = shape
            else:
                found[name] = shape
        return found

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


class _Part(NamedTuple):
    """One array of the data: `path` in its tree, `name` in messages, and the field of a row that it holds.

    Rows of the types `plain` are asked for the field as they are.
    """

    path: str
    name: str
    field: str | int
    plain: tuple[type, ...]

    def of(self, item: Any, what: str, row: int) -> Any:
        """Take the field out of what a source gave."""
        if type(item) in self.plain:
            try:  # contextlib.suppress would take as long as all else here
                return item[self.field]
            except (KeyError, IndexError):
                pass
        return pick(item, self.field, f"row {row} of {what}", self.name)


def _parts_of(fields: Mapping[str, Field]) -> list[_Part]:
    """Return the arrays that fields become, in the order of `leaves`."""
    found = []
    for name, field in sorted(fields.items()):
        if isinstance(field, str | int):
            found.append(_Part(name, name, field, _plain(field)))
        else:
            several = field if isinstance(field, Mapping) else {key: key for key in field}
            parts = sorted(several.items())
            found += [_Part(f"{name}.{key}", f"{name}[{key!r}]", one, _plain(one)) for key, one in parts]
    return found


def _plain(field: str | int) -> tuple[type, ...]:
    return (dict,) if isinstance(field, str) else (tuple, list)


def _limits(values: np.ndarray) -> tuple[frozenset[type], float, float]:
    """Return the types of numbers of which an array [B] takes those in a range as they are, and the range."""
    if values.ndim != 1 or values.dtype.kind not in "iuf":
        return frozenset(), 0, 0
    if values.dtype.kind == "f":
        most = float(np.finfo(values.dtype).max)
        return _FLOATS, -most, most
    limits = np.iinfo(values.dtype)
    return _WHOLE, limits.min, limits.max


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
