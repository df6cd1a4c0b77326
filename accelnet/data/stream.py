"""Data from batches that come one after the other: loaders of other frameworks, generators."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

from accelnet import arguments
from accelnet.data.ahead import Ahead
from accelnet.data.arrays import as_numpy, leaves
from accelnet.data.checks import check_leading_axes
from accelnet.data.dataset import Data
from accelnet.data.fields import Field, fields_of, pick
from accelnet.data.normalize import with_cast_targets
from accelnet.data.precision import compact
from accelnet.data.rows import Rows, lazy_arrays
from accelnet.data.splits import concatenated
from accelnet.errors import UserError, user_code
from accelnet.signature import arguments as chosen_arguments
from accelnet.signature import wants
from accelnet.terminal import say
from accelnet.wording import listed, shown

_AHEAD_BYTES = 128 << 20
_AHEAD_BATCHES = 64


def from_batches(
    batches: Any,
    *,
    steps: int | None = None,
    inputs: Field | None = None,
    targets: Field | None = None,
    weights: str | int | None = None,
    name: str = "stream",
    validation: Any = None,
    test: Any = None,
    num_classes: int | None = None,
    class_names: Sequence[str] | None = None,
    timeout_seconds: float = 600.0,
) -> Data:
    """Make a data set of a stream of training batches.

    The stream says which rows a batch has and in which order they come; accelnet adds nothing to it. So resuming is
    bitwise only where the stream gives the same batches again. Every process of a run reads the whole stream, which
    must be the same on all, and takes its part of each batch. Numbers are taken as they are: normalize them in the
    stream. The training split cannot be evaluated or divided. Processes that a loader starts by fork may lock up beside
    jax: let it spawn them (`multiprocessing_context="spawn"` of PyTorch's).

    Args:
        batches: Function that returns an iterator of batches, or an object that can be iterated over again and again,
            such as a loader of PyTorch or a `tf.data.Dataset`. A batch is a dict or a tuple of arrays [B, ...]. It is
            called for every pass. The function gets what it asks for of `epoch`, the number of the pass, and `step`,
            the batch of the pass to begin with; one that does not ask for `step` is read again up to it at a resume.
        steps: Batches of a pass, at least 1: an epoch of the experiment. None: `len(batches)`.
        inputs: Field of a batch, as of `from_source`.
        targets: The same for the targets.
        weights: The same for the weights.
        name: Name of the data in results.
        validation: Held-out rows, (inputs, targets) or (inputs, targets, weights); None for none.
        test: The same.
        num_classes: Number that targets, whole numbers, must be below.
        class_names: Names of the classes 0, 1, ....
        timeout_seconds: Time that the stream may take for a batch, above 0.

    Returns:
        Data with `steps` * B training rows. `Experiment.batch_size` must be B.

    Raises:
        UserError: if the first batch has no such fields, or held-out rows are unlike it. During training: if a batch is
            unlike the first in shape or type, a pass ends early, or a batch takes longer than the timeout.

    Example:
        >>> def batches(epoch):
        ...     rng = np.random.default_rng(epoch)
        ...     while True:
        ...         x = rng.normal(size=(8, 3))
        ...         yield x, x.sum(axis=1, keepdims=True)
        >>> data = from_batches(batches, steps=10)
        >>> data.num_examples("train"), data.stream.batch_size
        (80, 8)
    """
    arguments.word("name", name)
    timeout_seconds = arguments.number("timeout_seconds", timeout_seconds, above=0)
    _check_batches(batches)
    rows = StreamRows(batches, (inputs, targets, weights), _steps(batches, steps), timeout_seconds, name)
    arrays, splits = lazy_arrays(rows), {"train": range(len(rows))}
    for split, given in (("validation", validation), ("test", test)):
        if given is not None:
            start = len(next(leaves(arrays))[1])
            part = _held_out(given, arrays, split)
            arrays = {key: concatenated([one, part.get(key, {})], f"{split}: {key}") for key, one in arrays.items()}
            splits[split] = range(start, len(next(leaves(arrays))[1]))
    info: dict[str, Any] = {}
    fitted: dict[str, Any] = {}
    if class_names is not None:
        fitted["class_names"] = arguments.names("class_names", class_names)
        if num_classes not in (None, len(class_names)):
            raise UserError(f"num_classes is {shown(num_classes)}, but the classes are {listed(class_names)}")
        num_classes = len(class_names)
    if num_classes is not None:
        info["num_classes"] = arguments.integer("num_classes", num_classes, low=1)
    return Data(name, arrays, splits, with_cast_targets, info=info, fitted=fitted)


class StreamRows(Rows):
    """The training rows of a stream. They come in batches, in the stream's order; only those of the first can be read.

    Args:
        make: The user's function, or an object that can be iterated over again and again.
        fields: Fields of the inputs, the targets and the weights, as the user gave them.
        steps: Batches of one pass.
        timeout_seconds: Time that a batch may take.
        name: Name of the data, for messages.
    """

    def __init__(self, make: Any, fields: tuple[Any, Any, Any], steps: int, timeout_seconds: float, name: str) -> None:
        self._make, self.steps, self.stream = make, steps, self
        self._timeout, self._what = timeout_seconds, f"stream {name!r}"
        self._fields, self.shapes = fields, {}
        with self._pass(0, 0, size=1) as (iterator, _):
            first = next(iterator, None)
        if first is None:
            raise UserError(f"{self._what} has no batches")
        self._first: dict[str, Any] = first
        self.batch_size = len(next(leaves(self._first))[1])
        self.shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), self._first)

    def __len__(self) -> int:
        return self.steps * self.batch_size

    def hashed_rows(self) -> np.ndarray:
        return np.arange(0)  # a stream may shuffle

    def identity(self) -> bytes:
        return f"stream {self.steps} {self.batch_size}".encode()

    def place(self, row: int) -> str:
        return f"batch {row // self.batch_size} of {self._what}"

    def read(self, rows: np.ndarray) -> dict[str, Any]:
        if len(rows) and rows.max() >= self.batch_size:
            raise UserError(
                f"{self._what} gives its rows in its own order, and row {rows.max()} was asked for by number: the "
                "training split of a stream can be trained on, but not evaluated: give validation or test"
            )
        return jax.tree.map(lambda a: a[rows], self._first)

    def batches(self, first: int) -> Iterator[dict[str, Any]]:
        """Yield the batches from number `first` of the run on, pass after pass."""
        size = int(np.clip(_AHEAD_BYTES // max(1, self.row_bytes * self.batch_size), 1, _AHEAD_BATCHES))
        number = first
        while True:
            begin = number % self.steps
            with self._pass(number // self.steps, begin, size=size) as (iterator, skipped):
                if skipped > 1:
                    say(f"{self._what}: {skipped:,} batches are read again to get to step {number:,}")
                for index in range(begin - skipped, self.steps):
                    batch = next(iterator, None)
                    if batch is None:
                        raise UserError(
                            f"{self._what} ended after {index} of {self.steps} batches: give steps={index}, the "
                            "batches of one pass, or a stream that goes on"
                        )
                    if index >= begin:
                        yield batch
                        number += 1

    @contextlib.contextmanager
    def _pass(self, epoch: int, step: int, *, size: int) -> Iterator[tuple[Ahead, int]]:
        """Begin a pass; give its batches, and how many of them come before `step`."""
        skipped = step
        with user_code(self._what):
            iterable = self._make
            if not isinstance(iterable, Iterable):
                asked, named = chosen_arguments(self._what, self._make, [], {"epoch": epoch, "step": step})
                iterable = self._make(*asked, **named)
                skipped = 0 if "step" in wants(self._make).names else step
            if not isinstance(iterable, Iterable):
                raise UserError(f"{self._what}: the function gave {shown(iterable)}, expected an iterator of batches")

            def of(index: int, batch: Any) -> Any:
                return self._checked(batch, epoch * self.steps + step - skipped + index) if index >= skipped else ()

            ahead = Ahead(iter(iterable), self._what, size=size, timeout_seconds=self._timeout, of=of)
        try:
            yield ahead, skipped
        finally:
            ahead.close()

    def _checked(self, batch: Any, number: int) -> dict[str, Any]:
        where = f"batch {number} of {self._what}"

        def of(value: Any, path: str) -> Any:
            if isinstance(value, dict):
                return {key: of(one, f"{path}[{key!r}]") for key, one in value.items()}
            # A copy, since a loader may fill the same arrays with the next batch.
            return compact(as_numpy(np.array(np.asarray(value)), path), path)

        fields = fields_of(batch, *self._fields)
        arrays = {name: of(pick(batch, field, where, name), f"{where}: {name}") for name, field in fields.items()}
        check_leading_axes(where, arrays)
        for (path, array), (_, shape) in zip(leaves(arrays), leaves(self.shapes), strict=False):
            expected = (self.batch_size, *shape.shape)
            if array.shape != expected or array.dtype != shape.dtype:
                smaller = array.shape[1:] == shape.shape
                advice = ": leave out a smaller last batch (drop_last, drop_remainder)" if smaller else ""
                raise UserError(
                    f"{where}: {path} are {array.dtype} {list(array.shape)}, those of the first batch "
                    f"{shape.dtype} {list(expected)}{advice}"
                )
        return arrays


def _check_batches(batches: Any) -> None:
    if isinstance(batches, str | bytes | Mapping) or not (callable(batches) or isinstance(batches, Iterable)):
        raise UserError(f"batches is {shown(batches)}, expected a function that returns an iterator of batches")
    if hasattr(batches, "__next__"):
        raise UserError(
            f"batches is {shown(batches)}, an iterator, which can be read once: give the function that makes it"
        )


def _steps(batches: Any, steps: int | None) -> int:
    if steps is not None:
        return arguments.integer("steps", steps, low=1)
    if not hasattr(batches, "__len__"):
        raise UserError("steps is missing: give the number of batches of a pass, which becomes an epoch")
    return arguments.integer("len(batches)", len(batches), low=1)


def _held_out(given: Any, arrays: Mapping[str, Any], split: str) -> dict[str, Any]:
    """Return held-out rows in the structure and types of the stream's."""
    if not isinstance(given, list | tuple) or len(given) not in (2, 3):
        raise UserError(
            f"{split} is {shown(given)}, expected (inputs, targets): the training rows of a stream stay whole"
        )
    part = {
        name: jax.tree.map(partial(compact, where=f"{split}: {name}"), as_numpy(value, f"{split}: {name}"))
        for name, value in zip(("inputs", "targets", "weights"), given, strict=False)
    }
    check_leading_axes(split, part)
    if "weights" in arrays and "weights" not in part:
        part["weights"] = np.ones(len(next(leaves(part))[1]), np.float32)
    return part
