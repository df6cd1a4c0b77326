"""What every source returns: arrays, the rows of each split, and how a batch is prepared."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from accelnet.data.arrays import as_numpy, fingerprint_of, leaves, ranges_of
from accelnet.data.checks import (
    check_finite,
    check_kinds,
    check_labels,
    check_leading_axes,
    check_names,
    check_precision,
    check_read,
    check_splits,
    check_weights,
)
from accelnet.data.choices import Choices, check_sampling
from accelnet.data.encoding import decode_outputs, encode_inputs, with_offsets
from accelnet.data.fitted import plain
from accelnet.data.glance.shown import Shown
from accelnet.data.rows import LazyArray, read
from accelnet.data.splits import with_origin
from accelnet.data.variant import set_fitted

Arrays = Mapping[str, Any]


def unchanged(batch: Arrays) -> Arrays:
    """Return the batch as it came: the `prepare` of data that needs none."""
    return batch


@dataclass(frozen=True, eq=False, repr=False)
class Data(Choices, Shown):
    """Hold a data set: arrays on the host, the rows of each split, functions of a batch, what was fitted.

    Args:
        name: Name of the data in results.
        arrays: `{"inputs": ..., "targets": ...}` and optionally `"weights"` (at least 0); each an array [N, ...] or a
            (nested) dict of such arrays, of booleans or numbers. What is stored elsewhere and has a shape (`np.memmap`,
            data sets of h5py and zarr) becomes a `LazyArray`, which is read by rows.
        splits: Rows of "train" (at least one row), and of "validation" and "test" where there are any. Ranges
            with step 1 that do not overlap.
        prepare: batch -> batch, traceable by jax; runs inside the compiled step in training and in evaluation
            (casts, normalization with statistics of the training rows). Parameters of it that are named `fitted` and
            `coding` get those of the data; as an attribute it is a function of the batch alone.
        augment: (key, batch) -> batch, traceable by jax; training only, after `prepare`. It may ask for `step`,
            `progress`, `num_classes` (of `info`) and `task` (of the objective) by name. None for nothing.
        info: Whatever else is worth knowing. `num_classes` makes integer targets be checked against it.
        fitted: Values fitted to the training rows, as a nested dict of numbers, text and lists of them: means and
            deviations as floats, categories and names of classes as text.
        coding: Changes that the arrays make to the numbers of the user's file, where there are any, such as an offset.
        refit: Function from a `Data` of the same rows with other training rows to the numbers fitted to these, as a
            dict of entries of `fitted`, for `folds`. None: that of accelnet's own `prepare`, or nothing is fitted.
        sampling: How training draws its rows, as `sampled` sets it. None: every row once an epoch.

    Raises:
        UserError: if there are no training rows, splits overlap or leave the rows, leading axes differ, a
            value is NaN or infinite, a label is not in [0, num_classes), weights are negative or all 0, or the 32 bits
            of a device cannot tell values apart. Stored arrays above 1 GiB are checked when rows are read.

    Example:
        >>> arrays = {"inputs": np.zeros((5, 2), np.float32), "targets": np.array([0, 1, 0, 1, 1])}
        >>> data = Data("toy", arrays, {"train": range(3), "test": range(3, 5)}, info={"num_classes": 2})
        >>> data.num_examples("train"), data.nbytes
        (3, 80)
    """

    name: str
    arrays: Arrays
    splits: Mapping[str, range]
    prepare: Callable[..., Any] = unchanged
    augment: Callable[[Any, Any], Any] | None = None
    info: Mapping[str, Any] = field(default_factory=dict)
    fitted: Mapping[str, Any] = field(default_factory=dict)
    coding: Mapping[str, Any] = field(default_factory=dict)
    refit: Callable[["Data"], Mapping[str, Any]] | None = None
    sampling: Any = None

    def __post_init__(self) -> None:
        check_kinds(self)
        # Plain dicts, because other mappings are leaves to jax.tree.
        object.__setattr__(self, "arrays", as_numpy(self.arrays, "arrays"))
        object.__setattr__(self, "coding", plain(self.coding, "coding"))
        check_names(self.name, self.arrays)
        check_leading_axes(f"data {self.name!r}", self.arrays)
        check_splits(self.name, self.splits, self.num_rows)
        object.__setattr__(self, "splits", with_origin(self.splits, self.num_rows))
        check_sampling(self.name, self.sampling, self.num_rows)
        check_finite(self.name, self.arrays)
        check_precision(self.name, self.arrays)
        set_fitted(self, plain(self.fitted))  # of finite values
        check_weights(self.name, self.arrays, self.splits["train"])
        if "num_classes" in self.info:
            check_labels(self.name, self.arrays["targets"], self.info["num_classes"])

    def encode(self, inputs: Any) -> Any:
        """Turn raw inputs into what `arrays["inputs"]` holds.

        Args:
            inputs: Values as the function that made the data took them: arrays [B, ...] or a dict of such; of a table a
                dict of columns, a list of rows as dicts, or numbers [B, inputs]; of text one or more strings.

        Returns:
            Arrays [B, ...] in the structure and the types of `arrays["inputs"]`.

        Raises:
            UserError: if inputs are of another kind, shape or type, or hold an unknown name.

        Example:
            >>> import accelnet as an
            >>> an.data.xor().encode([[0, 1]])
            array([[0., 1.]], dtype=float32)
        """
        return encode_inputs(inputs, self.fitted, self.arrays["inputs"], self.coding, self.info.get("tokenizer"))

    def decode(self, outputs: Any) -> Any:
        """Turn outputs or targets of the model's world into what the user's file holds.

        Args:
            outputs: Array of any shape. Of a table of numbers, standardized ones; numbers of classes; of text, symbols.

        Returns:
            Numbers in the file's units, names of classes, or text. Where nothing was fitted, the outputs.

        Raises:
            UserError: if numbers of classes or symbols are out of range.

        Example:
            >>> import accelnet as an
            >>> data = an.data.from_arrays(np.zeros((4, 1)), ["no", "yes", "no", "yes"], validation=0, test=0)
            >>> data.decode([1, 0]).tolist()
            ['yes', 'no']
        """
        return decode_outputs(outputs, self.fitted, self.info.get("tokenizer"))

    def raw(self, rows: np.ndarray) -> dict[str, Any]:
        """Read rows with the numbers of the user's file, where an offset was subtracted from the arrays.

        Args:
            rows: int [B], as of `take`.

        Returns:
            As of `take`; arrays with an offset as float64.

        Example:
            >>> import accelnet as an
            >>> times = 1.7e9 + np.arange(4.0)
            >>> data = an.data.from_arrays(times, times > 1.7e9, num_classes=2, validation=0, test=0)
            >>> sorted(data.raw(np.arange(4))["inputs"].tolist())
            [1700000000.0, 1700000001.0, 1700000002.0, 1700000003.0]
        """
        return with_offsets(self.take(rows), self.coding)

    def target_range(self, split: str = "train") -> dict[str, tuple[float, float]]:
        """Return the least and the largest target of a split, as the arrays hold them, before `prepare`.

        Returns:
            (least, largest) by path: "targets", or "targets.x" for each of a dict. Lazy arrays are left out,
            and so is everything of a split without rows.

        Example:
            >>> import accelnet as an
            >>> an.data.xor().target_range()
            {'targets': (0.0, 1.0)}
        """
        return ranges_of(self.arrays["targets"], "targets", self.splits.get(split, range(0)))

    @property
    def num_rows(self) -> int:
        """Rows of every array, all splits together."""
        return len(next(leaves(self.arrays))[1])

    @property
    def is_lazy(self) -> bool:
        """Whether some of the arrays are read by rows."""
        return any(isinstance(array, LazyArray) for _, array in leaves(self.arrays))

    @property
    def is_stored(self) -> bool:
        """Whether reading rows takes no computing: they are in memory, or in a file as they are."""
        return all(one.rows.stored for _, one in leaves(self.arrays) if isinstance(one, LazyArray))

    @property
    def readers(self) -> int:
        """Threads that read rows at once with gain."""
        return max((one.rows.readers for _, one in leaves(self.arrays) if isinstance(one, LazyArray)), default=2)

    @property
    def stream(self) -> Any:
        """The `StreamRows` that give the training rows, or None."""
        return next((one.rows.stream for _, one in leaves(self.arrays) if isinstance(one, LazyArray)), None)

    @property
    def nbytes(self) -> int:
        """Bytes that the arrays take when all of them are copied to a device."""
        return sum(array.nbytes for _, array in leaves(self.arrays))

    def num_examples(self, split: str = "train") -> int:
        """Return the number of rows of a split, 0 for a split that is not there.

        Example:
            >>> import accelnet as an
            >>> an.data.xor().num_examples("train"), an.data.xor().num_examples("test")
            (4, 0)
        """
        return len(self.splits.get(split, range(0)))

    def take(self, rows: np.ndarray) -> dict[str, Any]:
        """Read rows into memory.

        Args:
            rows: int [B], indices into the arrays (not into a split), 0 to N - 1, repeats allowed.

        Returns:
            Arrays [B, ...] of their own memory, in the structure of `arrays`.

        Raises:
            IndexError: if a row is not there.
            UserError: if rows of a source or a file are not as the data says: NaN, infinite, labels out of range.

        Example:
            >>> data = Data("toy", {"inputs": [[1.0], [2.0], [3.0]], "targets": [0, 1, 0]}, {"train": range(3)})
            >>> data.take(np.array([2, 1]))["targets"]
            array([0, 1])
        """
        rows = np.asarray(rows)
        if rows.size and int(rows.min()) < 0:
            raise IndexError(f"row {rows.min()} is below 0")
        batch = read(dict(self.arrays), rows)
        check_read(self.name, self.arrays, batch, rows, self.info.get("num_classes"))
        return batch

    def fingerprint(self) -> str:
        """Return 32 hexadecimal digits that change with names, shapes, types, values, splits and sampling.

        Arrays above 256 MiB are hashed at evenly spaced rows of that many bytes in all, the first and the
        last among them, and sources at 256 rows: a change of other values goes unnoticed. Computed once.

        Example:
            >>> def fingerprint(label):
            ...     return Data("toy", {"inputs": [[1.0]], "targets": [label]}, {"train": range(1)}).fingerprint()
            >>> fingerprint(0) == fingerprint(0), fingerprint(0) == fingerprint(1)
            (True, False)
        """
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        return fingerprint_of(self.arrays, self.splits, self.tickets)

    @cached_property
    def kept(self) -> dict[Any, Any]:
        """What a run leaves for the next run on this data; it goes when the data goes."""
        return {}
