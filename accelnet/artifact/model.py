"""Model: what is loaded of an artifact, and predicts from raw inputs."""

import contextlib
import functools
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import export

from accelnet import runtime
from accelnet.arguments import flags, integer
from accelnet.artifact.outputs import OUTPUTS
from accelnet.artifact.prediction import Prediction, joined
from accelnet.artifact.program import NotAccelnetsError
from accelnet.artifact.raw_rows import RawRows, open_rows
from accelnet.artifact.schema import encode, input_words
from accelnet.errors import UserError
from accelnet.ops.kernels import library
from accelnet.ops.prepared import Prepared
from accelnet.packages import needing
from accelnet.parallel.memory import fetched
from accelnet.report.markup import tag
from accelnet.terminal import StatusLine
from accelnet.wording import size

KERNELS, XLA = "accelnet's model and kernels", "the exported program"


class Model:
    """A trained model that takes raw inputs and gives answers, without script and data; `accelnet.load` makes it.

    Args:
        path: File that it is of.
        weights: Weights by name.
        program: Exported program, serialized.
        content: "schema", "metrics", "config" and "recipe", as plain values.

    Attributes:
        path: File that it is of.
        weights: Weights by name, arrays on the host.
        schema: What it takes and gives.
        metrics: Metrics of the run by split and name, and intervals where they are known.
        config: Settings of the run, versions, and the fingerprint of its data.
    """

    def __init__(
        self, path: Path, weights: Mapping[str, np.ndarray], program: bytes, content: Mapping[str, Any]
    ) -> None:
        self.path, self.weights, self.program = path, weights, program
        self.schema: dict[str, Any] = content["schema"]
        self.metrics: dict[str, Any] = content["metrics"]
        self.config: dict[str, Any] = content["config"]
        self.recipe: dict[str, Any] = content["recipe"]

    @cached_property
    def _call(self) -> tuple[Any, str]:
        """The compiled function of inputs, and what computes in it."""
        runtime.prepare()
        weights = jax.device_put(dict(self.weights))
        if jax.default_backend() == "cpu" and "reason" not in self.recipe:
            try:
                rebuilt = self.rebuilt()
                if library.load():
                    return Prepared(rebuilt, weights), KERNELS
            except NotAccelnetsError:
                pass  # of another version of accelnet
        return functools.partial(jax.jit(self.exported().call), weights), XLA

    def exported(self) -> export.Exported:
        """Return the exported program.

        Raises:
            UserError: if this jax cannot read it, or it takes other weights than there are.
        """
        try:
            with needing("the program of an artifact"):
                exported = export.deserialize(bytearray(self.program))
        except UserError:
            raise
        except Exception as error:
            raise UserError(
                f"jax {jax.__version__} cannot read the program of {self.path}, made with jax "
                f"{self.config['versions'].get('jax')}: refresh it with a jax of the six months after that one"
            ) from error
        (weights, _), _ = jax.tree.unflatten(exported.in_tree, exported.in_avals)
        if _shapes(weights) != _shapes(self.weights):
            raise UserError(f"{self.path} has a program whose weights are not those that it holds: save the run again")
        return exported

    def rebuilt(self) -> Any:
        """Return the function of weights and inputs made of accelnet's own model.

        Raises:
            NotAccelnetsError: if the model is not accelnet's own, this accelnet makes another one of it, or there is no
                Flax.
        """
        try:
            from accelnet.artifact.recipe import forward_of
        except ImportError as error:  # the program of an artifact needs jax alone
            raise NotAccelnetsError(f"what makes the model cannot be imported ({error})") from error
        forward, weights = forward_of(self.recipe, self.schema)
        if _shapes(weights) != _shapes(self.weights):
            raise NotAccelnetsError("this version of accelnet makes a model with other weights")
        return forward.answer(self.schema["kind"], self.schema["fitted"].get("target"))

    @property
    def computed_by(self) -> str:
        """What computes: accelnet's model and kernels, on a CPU, or the exported program."""
        return self._call[1]

    def predict(self, raw: Any, *, batch_size: int = 256, skip_bad: bool = False, progress: bool = False) -> Prediction:
        """Predict from raw inputs.

        Rows are read and computed in batches of one size, the last filled up, so that one program is compiled.

        Args:
            raw: Arrays [B, ...] or a dict of such; of a table a frame, a dict of columns or a list of rows as dicts; of
                pictures images or arrays; of text strings; or the path of a file of these (CSV and its like, .npy,
                .npz), of a picture or a folder of pictures, or a list of such.
            batch_size: Rows that are computed at once, at least 1; more than there are count as these. A program for
                one batch alone, which `schema["batch"]` tells, computes that many.
            skip_bad: Whether rows that cannot be read are left out and told in `Prediction.skipped`.
            progress: Whether a line on standard error tells how far it is.

        Returns:
            The `Prediction`.

        Raises:
            UserError: if inputs are of another kind, or a row cannot be read and `skip_bad` is off.
        """
        flags(progress=progress)
        return joined(list(self.predictions(raw, batch_size=batch_size, skip_bad=skip_bad, progress=progress)))

    def predictions(
        self, raw: Any, *, batch_size: int = 256, skip_bad: bool = False, progress: bool = False
    ) -> Iterator[Prediction]:
        """Yield what `predict` returns batch by batch, so that neither files nor their predictions fill the memory.

        Args:
            raw: As of `predict`; CSV and Parquet files are read in parts.
            batch_size: As of `predict`.
            skip_bad: As of `predict`.
            progress: As of `predict`.

        Raises:
            UserError: as `predict`.
        """
        integer("batch_size", batch_size, 1)
        flags(skip_bad=skip_bad, progress=progress)
        size, count, answered, reason = self.schema["batch"], 0, 0, ""
        with needing("an input of this kind"), contextlib.closing(StatusLine(progress)) as line:
            for rows in open_rows(raw, self.schema):
                size = size or min(batch_size, 1 << (rows.count - 1).bit_length())
                for first in range(0, rows.count, size):
                    index = np.arange(first, min(first + size, rows.count))
                    for found in self._answered(rows, index, size, skip_bad):
                        answered += len(found)
                        reason = reason or next(iter(found.skipped.values()), "")
                        yield found
                    count += len(index)
                    line(f"{count:,} of {rows.count:,} rows" if rows.are_all else f"{count:,} rows")
        if not answered:
            raise UserError(f"none of the {count} rows can be read; the first: {reason}")

    def _answered(self, rows: RawRows, index: np.ndarray, size: int, skip_bad: bool) -> Iterator[Prediction]:
        """Predict for some of the rows, those that were skipped told last."""
        kind, skipped = self.schema["kind"], dict[Any, str]()
        for taken, inputs in self._encoded(rows, index, skipped if skip_bad else None):
            yield Prediction(kind, [rows.ids[row] for row in taken], self.answers(inputs, size), self.names)
        if skipped:
            yield Prediction(kind, [], {}, self.names, skipped)

    @property
    def names(self) -> dict[str, Any]:
        """What turns outputs into labels and numbers; of a tokenizer only bytes are known."""
        fitted = {name: one for name, one in self.schema["fitted"].items() if name != "tokenizer"}
        return {**fitted, "tokenizer": "bytes"} if self.schema["tokenizer"] == "bytes" else fitted

    def _encoded(
        self, rows: RawRows, index: np.ndarray, skipped: dict[Any, str] | None
    ) -> Iterator[tuple[np.ndarray, Any]]:
        """Encode rows; where that fails, those before the first bad one and those behind it."""
        while len(index):
            try:
                yield index, encode(rows.take(index), self.schema)
                return
            except UserError as error:
                failed = error
            at = self._first_bad(rows, index)
            one = index[at : at + 1]
            alone = self._failure(rows, one)
            if skipped is None:
                raise self._told(rows, int(one[0]), failed, alone) from None
            if at:
                yield index[:at], encode(rows.take(index[:at]), self.schema)
            if alone is None:  # of another number of steps than those before it
                yield one, encode(rows.take(one), self.schema)
            else:
                skipped[rows.ids[one[0]]] = str(self._told(rows, int(one[0]), alone, alone))
            index = index[at + 1 :]

    def _failure(self, rows: RawRows, index: np.ndarray) -> UserError | None:
        try:
            encode(rows.take(index), self.schema)
        except UserError as error:
            return error
        return None

    def _told(self, rows: RawRows, row: int, failed: UserError, alone: UserError | None) -> UserError:
        """Return an error that names its row, unless it is the same for all rows."""
        last = self._failure(rows, np.array([rows.count - 1]))
        same = alone is None or (last is not None and str(last) == str(alone))
        named = any(name in str(failed) for name in (rows.place(row), rows.ids[row]) if isinstance(name, str))
        return failed if same or named else UserError(f"{rows.place(row)}: {failed}")

    def _first_bad(self, rows: RawRows, index: np.ndarray) -> int:
        """Return the first position of rows, not all of them good, up to which they cannot be encoded."""
        good, bad = 0, len(index)
        while bad - good > 1:
            middle = (good + bad) // 2
            if self._failure(rows, index[:middle]) is None:
                good = middle
            else:
                bad = middle
        return bad - 1

    def answers(self, inputs: Any, size: int | None = None) -> dict[str, np.ndarray]:
        """Compute the answers for inputs that are encoded already, as one batch.

        Args:
            inputs: Arrays [B, ...] as `schema["inputs"]` tells.
            size: Rows that the program computes, at least B; the last row is repeated until there are so many. None: B.

        Returns:
            Arrays [B, ...] as `schema["outputs"]` tells.
        """
        count = len(jax.tree.leaves(inputs)[0])
        padded = jax.tree.map(lambda one: _padded(one, size or count), inputs)
        found = self._call[0](padded)
        if any(isinstance(one, jax.Array) for one in found.values()):
            found = fetched(found)
        return {name: np.asarray(one)[:count] for name, one in found.items()}

    def __repr__(self) -> str:
        outputs, names = self.schema["outputs"], self.schema["fitted"].get("class_names", ())
        shape = f" [{', '.join(map(str, outputs[OUTPUTS]['shape']))}]" if OUTPUTS in outputs else f", {len(outputs)}"
        of = f": {', '.join(names[:5])}" + (f" and {len(names) - 5} more" if len(names) > 5 else "") if names else ""
        arrays = self.weights.values()
        lines = [
            f"model    {self.config['experiment']}, step {self.metrics['step']:,}, of {self.path}",
            f"takes    {input_words(self.schema)}",
            f"gives    {self.schema['kind']}{shape}{of}",
            f"weights  {sum(one.size for one in arrays):,}, {size(sum(one.nbytes for one in arrays))}",
        ]
        for split, metrics in self.metrics["metrics"].items():
            shown = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items() if value is not None)
            lines += [f"{split:8.8} {shown}"] if shown else []
        return "\n".join(line if len(line) <= 118 else line[:115] + "..." for line in lines[:12])

    def _repr_html_(self) -> str:
        return tag("pre", repr(self))


def _padded(array: np.ndarray, size: int) -> np.ndarray:
    """Repeat the last row until there are so many."""
    missing = size - len(array)
    return np.concatenate([array, np.repeat(array[-1:], missing, axis=0)]) if missing > 0 else array


def _shapes(weights: Mapping[str, Any]) -> dict[str, Any]:
    return {name: (tuple(one.shape), np.dtype(one.dtype)) for name, one in weights.items()}
