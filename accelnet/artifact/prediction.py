"""Predictions of a model for rows: labels and probabilities, or numbers, and how they are written into a file."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from accelnet.artifact.outputs import OUTPUTS
from accelnet.data.encoding import decode_outputs
from accelnet.disk import write_atomically
from accelnet.errors import UserError
from accelnet.wording import listed

_FORMATS = (".csv", ".parquet", ".npz")
_MOST_LINES = 8


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
        path = check_format(path)
        if path.suffix == ".npz":
            arrays = {name: one for name, one in self._arrays().items() if one is not None}
            buffer = io.BytesIO()
            np.savez(buffer, allow_pickle=False, **arrays)
            content: str | bytes = buffer.getvalue()
        else:
            columns = self.columns(probabilities=probabilities)
            content = _csv(columns) if path.suffix == ".csv" else _parquet(columns)
        write_atomically(path, content)
        return path

    def _arrays(self) -> dict[str, Any]:
        named = {"id": np.asarray(self.ids), "label": self.labels, "number": self.numbers}
        return {**named, **{name.replace("/", "."): one for name, one in self.values.items() if name != "numbers"}}

    def __repr__(self) -> str:
        words = f"{len(self):,} prediction{'s' * (len(self) != 1)} of {self.kind}"
        words += f", {len(self.skipped):,} rows skipped" if self.skipped else ""
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


def _csv(columns: Mapping[str, Any]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    plain = [one if isinstance(one, list) else one.tolist() for one in columns.values()]
    kinds = [getattr(one, "dtype", None) for one in columns.values()]
    # The shortest text that is the same float32 again.
    short = [kind == np.float32 for kind in kinds]
    for row in zip(*plain, strict=True):
        writer.writerow([str(np.float32(one)) if brief else one for one, brief in zip(row, short, strict=True)])
    return buffer.getvalue()


def _parquet(columns: Mapping[str, Any]) -> bytes:
    import pyarrow as pa
    from pyarrow import parquet

    sink = pa.BufferOutputStream()
    parquet.write_table(pa.table({name: pa.array(one) for name, one in columns.items()}), sink)
    return sink.getvalue().to_pybytes()
