"""What every source returns: arrays, the rows of each split, and how a batch is prepared."""

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from accelnet.data.arrays import (
    as_numpy,
    check_finite,
    check_labels,
    check_leading_axes,
    check_splits,
    chunks,
    leaves,
    map_leaves,
)
from accelnet.errors import UserError

Arrays = Mapping[str, Any]

# blake2b takes 0.4 s for them.
HASHED_BYTES = 1 << 28


def unchanged(batch: Arrays) -> Arrays:
    """Return the batch as it is, the `prepare` of data that needs none.

    Args:
        batch: dict of arrays with leading axis B.

    Returns:
        The same object.

    Example:
        >>> unchanged({"inputs": 1})
        {'inputs': 1}
    """
    return batch


@dataclass(frozen=True, eq=False)
class Data:
    """Hold a data set: arrays on the host, the rows of each split, and functions of a batch.

    Args:
        name: what the data is called in results.
        arrays: `{"inputs": ..., "targets": ...}` and optionally `"weights"`; each an array [N, ...] or a
            (nested) dict of such arrays, of booleans or numbers. `np.memmap` stays on the disk.
        splits: rows of "train" (at least one row), and of "validation" and "test" where there are any. Ranges
            with step 1 that do not overlap.
        prepare: batch -> batch, traceable by jax; runs inside the compiled step in training and in evaluation
            (casts, normalization with statistics of the training rows).
        augment: (key, batch) -> batch, traceable by jax; training only, after `prepare`. None for nothing.
        info: what else is worth knowing. `num_classes` makes integer targets be checked against it.

    Raises:
        UserError: if there are no training rows, splits overlap or leave the rows, leading axes differ, a
            value is NaN or infinite, or a label is not in [0, num_classes). The values of a memmap
            above 1 GiB are not checked.

    Example:
        >>> arrays = {"inputs": np.zeros((5, 2), np.float32), "targets": np.array([0, 1, 0, 1, 1])}
        >>> data = Data("toy", arrays, {"train": range(3), "test": range(3, 5)}, info={"num_classes": 2})
        >>> data.num_examples("train"), data.num_steps(epochs=10, batch_size=2), data.nbytes
        (3, 20, 80)

    Source: original.
    """

    name: str
    arrays: Arrays
    splits: Mapping[str, range]
    prepare: Callable[[Any], Any] = unchanged
    augment: Callable[[Any, Any], Any] | None = None
    info: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # Plain dicts, because other mappings are leaves to jax.tree.
        object.__setattr__(self, "arrays", as_numpy(self.arrays, "arrays"))
        object.__setattr__(self, "splits", dict(self.splits))
        object.__setattr__(self, "info", dict(self.info))
        for required in ("inputs", "targets"):
            if required not in self.arrays:
                raise UserError(f"data {self.name!r} has arrays {sorted(self.arrays)}, expected 'inputs' and 'targets'")
        if "mask" in self.arrays:
            raise UserError(f"data {self.name!r} has an array 'mask': that name is for padding rows, use 'weights'")
        check_leading_axes(self.name, self.arrays)
        check_splits(self.name, self.splits, self.num_rows)
        check_finite(self.name, self.arrays)
        if "num_classes" in self.info:
            check_labels(self.name, self.arrays["targets"], self.info["num_classes"])

    @property
    def num_rows(self) -> int:
        """Rows of every array, all splits together."""
        return len(next(leaves(self.arrays))[1])

    @property
    def nbytes(self) -> int:
        """Bytes that the arrays take when all of them are copied to a device."""
        return sum(array.nbytes for _, array in leaves(self.arrays))

    def num_examples(self, split: str = "train") -> int:
        """Return the number of rows of a split, 0 for a split that is not there.

        Args:
            split: "train", "validation" or "test".

        Returns:
            Rows, at least 0.

        Example:
            >>> data = Data("toy", {"inputs": [[1.0]], "targets": [0]}, {"train": range(1)})
            >>> data.num_examples("train"), data.num_examples("test")
            (1, 0)
        """
        return len(self.splits.get(split, range(0)))

    def num_steps(self, epochs: float, batch_size: int) -> int:
        """Return how many training steps a number of epochs takes; the last batch of each may be partial.

        steps = ceil(epochs * ceil(num_examples("train") / batch_size))

        Args:
            epochs: passes over the training rows, above 0.
            batch_size: examples per step, 1 to `num_examples("train")`.

        Returns:
            Steps, at least 1.

        Raises:
            UserError: if an argument is out of its range.

        Example:
            >>> data = Data("toy", {"inputs": [[1.0], [2.0], [3.0]], "targets": [0, 1, 0]}, {"train": range(3)})
            >>> data.num_steps(epochs=2, batch_size=2)
            4
        """
        rows = self.num_examples("train")
        if not 1 <= batch_size <= rows:
            raise UserError(f"batch_size is {batch_size}, expected 1 to {rows}, the training rows of {self.name!r}")
        if not (epochs > 0 and math.isfinite(epochs)):
            raise UserError(f"epochs is {epochs}, expected a finite number above 0")
        return math.ceil(epochs * math.ceil(rows / batch_size))

    fitted: Any = field(default_factory=dict)

    def encode(self, inputs: Any) -> Any:
        return inputs

    def target_range(self) -> Any:
        return None

    def prepared(self, batch: Any) -> Any:
        """Apply `prepare` to a batch."""
        return self.prepare(batch)

    def take(self, rows: np.ndarray) -> dict[str, Any]:
        """Read rows into memory.

        Args:
            rows: int [B], indices into the arrays (not into a split), 0 to N - 1, repeats allowed.

        Returns:
            Arrays [B, ...] of their own memory, in the structure of `arrays`.

        Raises:
            IndexError: if a row is not there.

        Example:
            >>> data = Data("toy", {"inputs": [[1.0], [2.0], [3.0]], "targets": [0, 1, 0]}, {"train": range(3)})
            >>> data.take(np.array([2, 1]))["targets"]
            array([0, 1])
        """
        rows = np.asarray(rows)
        if rows.size and int(rows.min()) < 0:
            raise IndexError(f"row {rows.min()} is below 0")
        return map_leaves(lambda array: np.asarray(array[rows]), self.arrays)

    def fingerprint(self) -> str:
        """Return 32 hexadecimal digits that change with names, shapes, types, values and splits.

        Arrays above 256 MiB are hashed at evenly spaced rows of that many bytes in all, the first and the
        last among them: a change of other values goes unnoticed. Computed once.

        Returns:
            The same string for the same data in every process.

        Example:
            >>> def fingerprint(label):
            ...     return Data("toy", {"inputs": [[1.0]], "targets": [label]}, {"train": range(1)}).fingerprint()
            >>> fingerprint(0) == fingerprint(0), fingerprint(0) == fingerprint(1)
            (True, False)
        """
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        digest = hashlib.blake2b(digest_size=16)
        for split, rows in sorted(self.splits.items()):
            digest.update(f"{split} {rows.start} {rows.stop}\n".encode())
        for path, array in leaves(self.arrays):
            digest.update(f"{path} {array.dtype.str} {array.dtype.name} {array.shape}\n".encode())
            for chunk in chunks(array, HASHED_BYTES):
                digest.update(np.ascontiguousarray(chunk).view(np.uint8).data)
        return digest.hexdigest()
