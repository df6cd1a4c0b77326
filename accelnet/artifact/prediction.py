"""Predictions of a model for rows: labels and probabilities, or numbers, and how they are written into a file."""

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from accelnet.artifact.outputs import OUTPUTS
from accelnet.data.encoding import decode_outputs
from accelnet.disk import replacing
from accelnet.errors import UserError
from accelnet.packages import needing
from accelnet.wording import listed

_FORMATS = (".csv", ".parquet", ".npz")
_MOST_LINES = 8
_GROUP_ROWS = 1 << 16  # of a Parquet file


@dataclass(frozen=True, eq=False, repr=False)
class Prediction:
    """Hold predictions for B rows.

    Attributes:
        kind: What is predicted: "classes", "labels" (yes or no), "tokens", "numbers", or "other".
        ids: What names each row: the path of a file, or its number among the inputs.
        values: Arrays [B, ...] by name, as `outputs` made them.
        fitted: What was fitted to the training rows: names of classes, the target's scale.
        skipped: Rows that could not be read, by id, with the reason.

    Example:
        >>> values = {"outputs": np.zeros((1, 2)), "probabilities": np.array([[0.25, 0.75]]), "classes": np.array([1])}
        >>> Prediction("classes", [0], values, {"class_names": ("no", "yes")})
        1 prediction of classes
        0    yes  0.75
    """

    kind: str
    ids: Sequence[Any]
    values: Mapping[str, np.ndarray]
    fitted: Mapping[str, Any]
    skipped: Mapping[Any, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def outputs(self) -> Any:
        """The model's outputs [B, ...], or a dict of them by path."""
        if OUTPUTS in self.values:
            return self.values[OUTPUTS]
        return {name.removeprefix(f"{OUTPUTS}."): one for name, one in self.values.items()}

    @property
    def probabilities(self) -> np.ndarray | None:
        """Probabilities of classes [B, ..., C], or of yes [B] or [B, K]; None where there are none."""
        return self.values.get("probabilities")

    @property
    def labels(self) -> np.ndarray | None:
        """The likeliest class by name, or number, [B, ...]; of labels 0 or 1; of tokens the text, where it is known.

        None of numbers and of other outputs.
        """
        if self.kind == "labels":
            return (self.values["probabilities"] >= 0.5).astype(np.int64)
        if self.kind not in ("classes", "tokens"):
            return None
        numbers = self.values[self.kind]
        if self.kind == "classes" and numbers.size and len(self.class_names) <= int(numbers.max()):
            return numbers
        return np.asarray(decode_outputs(numbers, self.fitted, self.fitted.get("tokenizer")))

    @property
    def numbers(self) -> np.ndarray | None:
        """Predicted numbers in the units of the file, float64 [B, ...]; None of other kinds."""
        if self.kind != "numbers":
            return None
        # In float64, as the float32 of the program's own numbers is too short for times in seconds.
        return np.asarray(decode_outputs(self.values[OUTPUTS], self.fitted), np.float64)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes; empty where they have none."""
        return tuple(self.fitted.get("class_names", ()))

    def columns(self, *, probabilities: bool = False) -> dict[str, Any]:
        """Return the predictions as columns of a table.

        Args:
            probabilities: Whether those of all classes are among them.

        Returns:
            "id"; of classes "label" and "probability"; of several labels, numbers or outputs one column for each.

        Raises:
            UserError: if there are more than a row of a table can hold, as of pixels.

        Example:
            >>> Prediction("numbers", [0], {"outputs": np.array([[2.5]])}, {}).columns()
            {'id': [0], 'prediction': array([2.5])}
        """
        found: dict[str, Any] = {"id": list(self.ids)}
        if self.kind == "classes":
            labels, shares = self.labels, self.values["probabilities"]
            assert labels is not None
            found |= _flat("label", labels)
            found |= _flat("probability", shares.max(axis=-1))
            if probabilities:
                names = self.class_names or tuple(map(str, range(shares.shape[-1])))
                found |= {f"probability of {name}": shares[:, number] for number, name in enumerate(names)}
        elif self.kind == "labels":
            found |= _flat("label", self.labels) | _flat("probability", self.values["probabilities"])
        elif self.kind == "tokens":
            found |= _flat("text" if getattr(self.labels, "dtype", np.dtype(int)).kind == "U" else "token", self.labels)
        elif self.kind == "numbers":
            found |= _flat("prediction", self.numbers)
        else:
            for name, one in self.values.items():
                found |= _flat(name, one)
        return found

    def write(self, path: str | Path, *, probabilities: bool = False) -> Path:
        """Write the predictions into a file, whole or not at all.

        Args:
            path: File that ends in .csv, .parquet or .npz; the last also holds the outputs.
            probabilities: As of `columns`; an .npz always has them.

        Raises:
            UserError: if it ends otherwise, or cannot be written.
        """
        return write_predictions([self], path, probabilities=probabilities)

    def arrays(self) -> dict[str, Any]:
        """Return all that is predicted as arrays by name: ids, labels or numbers, and the outputs."""
        named = {"id": np.asarray(self.ids), "label": self.labels, "number": self.numbers}
        named |= {name.replace("/", "."): one for name, one in self.values.items() if name != "numbers"}
        return {name: one for name, one in named.items() if one is not None}

    def __repr__(self) -> str:
        words = f"{len(self):,} prediction{'s' * (len(self) != 1)} of {self.kind}"
        words += f", {len(self.skipped):,} row{'s' * (len(self.skipped) != 1)} skipped" if self.skipped else ""
        return "\n".join([words, *self._lines()])

    def _lines(self) -> list[str]:
        shown = min(len(self), _MOST_LINES)
        first = Prediction(self.kind, self.ids[:shown], {n: v[:shown] for n, v in self.values.items()}, self.fitted)
        try:
            columns = first.columns()
        except UserError:
            return [f"{name} {one.dtype} {list(one.shape)}" for name, one in self.values.items()][:_MOST_LINES]
        rows = zip(*(columns[name] for name in list(columns)[:6]), strict=True)
        lines = ["  ".join([f"{str(row[0])[-30:]:4}", *(_cell(one)[:30] for one in row[1:])]) for row in rows]
        return [*lines, "..."] if shown < len(self) else lines


def joined(parts: Sequence[Prediction]) -> Prediction:
    """Put predictions of the same model one behind the other.

    Args:
        parts: Predictions, one at least with rows.

    Raises:
        UserError: if they have different numbers of steps.

    Example:
        >>> parts = [Prediction("numbers", [row], {"outputs": np.array([[row]])}, {}) for row in (3, 5)]
        >>> joined(parts).ids, joined(parts).numbers.tolist()
        ([3, 5], [[3.0], [5.0]])
    """
    if len(parts) == 1:
        return parts[0]
    values: dict[str, np.ndarray] = {}
    for name in next(part.values for part in parts if len(part)):
        arrays = [part.values[name] for part in parts if len(part)]
        if len({one.shape[1:] for one in arrays}) > 1:
            raise UserError("inputs have different numbers of steps: predict those of one number at a time")
        values[name] = np.concatenate(arrays)
    ids = [one for part in parts for one in part.ids]
    skipped = {row: reason for part in parts for row, reason in part.skipped.items()}
    return Prediction(parts[0].kind, ids, values, parts[0].fitted, skipped)


def write_predictions(parts: Iterable[Prediction], path: str | Path, *, probabilities: bool = False) -> Path:
    """Write predictions into a file as they come, whole or not at all; an .npz file when the last has come.

    Args:
        parts: Predictions of the same model.
        path: As of `Prediction.write`.
        probabilities: As of `Prediction.write`.

    Raises:
        UserError: if the path ends otherwise, or cannot be written.
    """
    path = check_format(path)
    with replacing(path) as file:
        if path.suffix == ".npz":
            np.savez(file, allow_pickle=False, **joined(list(parts)).arrays())
            return path
        add = (_csv if path.suffix == ".csv" else _parquet)(file)
        for part in parts:
            if len(part):
                add(part.columns(probabilities=probabilities))
        add(None)
    return path


def check_format(path: str | Path) -> Path:
    """Return the path of a file for predictions; raise UserError unless its end names a format.

    Example:
        >>> check_format("a.xlsx")
        Traceback (most recent call last):
        accelnet.errors.UserError: a.xlsx ends in '.xlsx', expected '.csv', '.parquet', '.npz'
    """
    path = Path(path)
    if path.suffix not in _FORMATS:
        raise UserError(f"{path} ends in {path.suffix!r}, expected {listed(_FORMATS)}")
    return path


def _flat(name: str, values: Any) -> dict[str, np.ndarray]:
    """Return one column, or as many as a row has values."""
    values = np.asarray(values)
    if values.ndim > 2:
        raise UserError(f"{name} has shape {list(values.shape)}, too much for a table's columns: write an .npz file")
    if values.ndim == 1 or values.shape[1] == 1:
        return {name: values.reshape(len(values))}
    return {f"{name} {number}": values[:, number] for number in range(values.shape[1])}


def _cell(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float | np.floating) else str(value)


Add = Callable[[Mapping[str, Any] | None], None]


def _csv(file: BinaryIO) -> Add:
    """Return the function that writes columns below those before, or None at the end."""
    text = io.TextIOWrapper(file, "utf-8", "backslashreplace", newline="", write_through=True)
    writer, names = csv.writer(text, lineterminator="\n"), list[str]()

    def add(columns: Mapping[str, Any] | None) -> None:
        if columns is None:
            text.detach()
            return
        if not names:
            names.extend(columns)
            writer.writerow(names)
        _same_columns(names, columns)
        plain = [one if isinstance(one, list) else one.tolist() for one in columns.values()]
        # The shortest text that is the same float32 again.
        short = [getattr(one, "dtype", None) == np.float32 for one in columns.values()]
        for row in zip(*plain, strict=True):
            writer.writerow([str(np.float32(one)) if brief else one for one, brief in zip(row, short, strict=True)])

    return add


def _parquet(file: BinaryIO) -> Add:
    """Return the function that writes columns below those before, in groups of many rows, or None at the end."""
    with needing("a Parquet file"):
        import pyarrow as pa
        from pyarrow import parquet

    waiting: list[Any] = []
    writers: list[Any] = []

    def add(columns: Mapping[str, Any] | None) -> None:
        if columns is not None:
            waiting.append(pa.table({name: pa.array(one) for name, one in columns.items()}))
            _same_columns(waiting[0].column_names, columns)
        if waiting and (columns is None or sum(one.num_rows for one in waiting) >= _GROUP_ROWS):
            table = pa.concat_tables(waiting)
            if not writers:
                writers.append(parquet.ParquetWriter(file, table.schema))
            writers[0].write_table(table)
            waiting.clear()
        if columns is None:
            writers[0].close()

    return add


def _same_columns(names: Sequence[str], columns: Mapping[str, Any]) -> None:
    if list(columns) != list(names):
        raise UserError("inputs have different numbers of steps: predict those of one number at a time")
