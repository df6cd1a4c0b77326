"""Folds of a data set: every row is validated once, by a model that did not see it."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, overload

import numpy as np

from accelnet.arguments import integer
from accelnet.data.arrays import leaves
from accelnet.data.grouping import assign_groups
from accelnet.data.row_labels import row_codes
from accelnet.data.row_order import random_order, stratified_order
from accelnet.data.rows import LazyArray
from accelnet.data.variant import rearranged, refit_of, refuse_stream
from accelnet.errors import UserError
from accelnet.wording import did_you_mean, listed, shown

# A fold whose training rows outnumber those of the least by so little, or by a single one, leaves these out: all folds
# are trained by one program then.
_LEFT_OUT = 0.01


class Folds(Sequence[Any]):
    """The folds of a data set: a sequence of `Data`, each made when it is asked for, so that memory need hold one.

    Args:
        data: `Data` whose training and validation rows are divided.
        fold_of: Fold that validates each row, int [N]; -1 for rows that are in no fold, such as those of the test.
        seed: Seed of the rows that are left out.

    Attributes:
        data: The `Data` that was divided.
        sizes: Numbers of training and of validation rows of each fold.
    """

    def __init__(self, data: Any, fold_of: np.ndarray, seed: int) -> None:
        self.data, self._fold_of = data, fold_of
        counts = np.bincount(fold_of[fold_of >= 0])
        training = counts.sum() - counts
        least = int(training.min())
        most_left_out = max(1, int(_LEFT_OUT * least))
        training = np.where(training - least <= most_left_out, least, training)
        self.sizes = list(zip(training.tolist(), counts.tolist(), strict=True))
        self._drawn = random_order(len(fold_of), seed)
        self._fitted: dict[int, Any] = {}
        refit_of(data)

    def __len__(self) -> int:
        return len(self.sizes)

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> list[Any]: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        number = range(len(self))[index]
        own = self._fold_of[self._drawn]
        # In another turn for each fold, so that no row is left out by all.
        train = np.roll(self._drawn[(own >= 0) & (own != number)], number)
        size = self.sizes[number][0]
        parts = {"train": train[:size], "validation": self._drawn[own == number]}
        for split, rows in self.data.splits.items():
            if split not in parts:
                parts[split] = np.arange(rows.start, rows.stop)
        rest = np.setdiff1d(np.arange(len(own)), np.concatenate(list(parts.values())))
        stops = np.cumsum([len(rows) for rows in parts.values()]).tolist()
        ranges = dict(zip(parts, map(range, [0, *stops], stops), strict=False))
        made = rearranged(self.data, np.concatenate([*parts.values(), rest]), ranges, self._fitted.get(number))
        self._fitted[number] = made.fitted
        return made

    def __iter__(self) -> Iterator[Any]:
        return (self[number] for number in range(len(self)))

    def fingerprint(self) -> str:
        """Return 32 hexadecimal digits that change with the data and with which fold each row is in.

        Example:
            >>> import accelnet as an
            >>> data = an.data.xor()
            >>> data.folds(2).fingerprint() == data.folds(4).fingerprint()
            False
        """
        content = self.data.fingerprint().encode() + self._fold_of.tobytes() + self._drawn.tobytes()
        return hashlib.blake2b(content, digest_size=16).hexdigest()

    def __repr__(self) -> str:
        sizes = ", ".join(f"{train} + {validation}" for train, validation in self.sizes)
        return f"{len(self)} folds of {self.data.name!r}, training + validation rows: {sizes}"


def make_folds(data: Any, num_folds: Any, stratify: Any, groups: Any, seed: Any) -> Folds:
    """Divide the training and validation rows of a `Data`, as `Data.folds` says."""
    num_folds = integer("the number of folds", num_folds, 2)
    integer("seed", seed, 0)
    refuse_stream(data, "divided into folds")
    splits = data.splits
    if splits.by_time:
        raise UserError(
            f"data {data.name!r} was split by time, and folds would train on rows later than those they validate: "
            f"split it without time to do so"
        )
    rows = np.concatenate([np.arange(*_ends(splits[name])) for name in ("train", "validation") if name in splits])
    if num_folds > len(rows):
        raise UserError(f"{len(rows)} rows cannot make {num_folds} folds: ask for at most {len(rows)}")
    labels = None if stratify is None else labels_of(data, "stratify", stratify)[rows]
    classes = None if labels is None else row_codes("stratify", labels, len(rows), "classes")
    given = splits.groups if groups is None else labels_of(data, "groups", groups)
    if classes is not None and given is None and (least := np.bincount(classes).min()) < num_folds:
        raise UserError(
            f"a class of stratify has {least} rows, expected at least one for each of the {num_folds} folds: ask for "
            f"fewer folds, or leave stratify out"
        )
    fold_of = np.full(data.num_rows, -1)
    if given is None:
        order = random_order(len(rows), seed) if classes is None else stratified_order(classes, seed)
        for number, own in enumerate(np.array_split(rows[order], num_folds)):
            fold_of[own] = number
    else:
        codes = row_codes("groups", given[rows], len(rows), "groups")
        fold_of[rows] = assign_groups(codes, [1 / num_folds] * num_folds, seed, classes, what="folds")
    return Folds(data, fold_of, seed)


def labels_of(data: Any, name: str, given: Any) -> np.ndarray:
    """Return one value for each row of a data set's arrays, [N].

    Args:
        data: The `Data`.
        name: Name of the argument, for messages.
        given: Name of an array with one value for each row, or of a column of a table; or an array of one value for
            each row, in the order in which the rows were given when the data was made.

    Raises:
        UserError: if there is no such array or column, or numbers of rows differ.
    """
    if not isinstance(given, str):
        if isinstance(given, Mapping) or np.ndim(given) != 1 or len(given) != data.splits.num_given:
            raise UserError(
                f"{name} is {shown(given)}, expected one value for each of the {data.splits.num_given} rows that data "
                f"{data.name!r} was made of, in their order, or the name of an array or a column"
            )
        return np.asarray(given)[data.splits.origin]
    arrays = {path.removeprefix("inputs."): array for path, array in leaves(data.arrays)}
    columns = {path: array for path, array in arrays.items() if array.size == len(array)}
    if given in columns:
        array = columns[given]
        return np.asarray(array[:] if isinstance(array, LazyArray) else array).reshape(-1)
    names = data.info.get("input_names", ())
    own = [index for index, one in enumerate(names) if one == given or one.startswith(f"{given}=")]
    if not own:
        known = [*columns, *dict.fromkeys(one.partition("=")[0] for one in names)]
        raise UserError(
            f"{name} is {shown(given)}, which is no array or column of data {data.name!r}"
            f"{did_you_mean(given, known) or '.'} It has {listed(known)}; or give an array of one value for each row"
        )
    inputs = data.arrays["inputs"]
    values = inputs[:] if isinstance(inputs, LazyArray) else inputs
    return np.unique(values[:, own], axis=0, return_inverse=True)[1].reshape(-1)


def _ends(rows: range) -> tuple[int, int]:
    return rows.start, rows.stop
