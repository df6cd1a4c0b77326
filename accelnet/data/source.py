"""Data from anything that has rows: data sets of Grain, Hugging Face and PyTorch, lists, and the user's own."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from accelnet import arguments
from accelnet.data.arrays import leaves
from accelnet.data.dataset import Data
from accelnet.data.fields import Field, fields_of
from accelnet.data.fitted import checked
from accelnet.data.normalize import fit, standardize, with_cast_targets
from accelnet.data.row_cache import open_cache
from accelnet.data.row_views import JoinedRows, first_rows, reordered
from accelnet.data.rows import Rows, lazy_arrays
from accelnet.data.source_rows import SourceRows
from accelnet.data.splits import TENTH, Share, divide
from accelnet.data.workers import InProcesses
from accelnet.errors import UserError, user_code
from accelnet.wording import listed, shown


def from_source(
    source: Any,
    *,
    inputs: Field | None = None,
    targets: Field | None = None,
    weights: str | int | None = None,
    name: str = "source",
    validation: Any = TENTH,
    test: Any = TENTH,
    stratify: Any = None,
    groups: Any = None,
    time: Any = None,
    splits: Any = None,
    seed: int = 0,
    workers: int = 0,
    cache: bool | int = False,
    normalize: bool = True,
    num_classes: int | None = None,
    class_names: Sequence[str] | None = None,
    fitted: Mapping[str, Any] | None = None,
) -> Data:
    """Make a data set of a source of rows, which are read when they are needed.

    Args:
        source: Object with `__len__` and `__getitem__` (row -> dict or tuple of arrays, pictures or numbers), such as
            a list, a Grain source, or a data set of Hugging Face or of PyTorch. Where it has `__getitems__` (list of
            rows -> list of rows), that is called with many rows at once. One thread at a time calls it.
        inputs: Field of a row, a name or a position; several (a list of names, or a dict of argument: field)
            become the model's keyword arguments. None: "inputs" of a dict, the first part of a tuple.
        targets: The same for the targets. None: "targets" of a dict, the second part of a tuple.
        weights: Field of how much an example counts, at least 0; None for 1.
        name: Name of the data in results.
        validation: Fraction of the rows to hold out at random, 0 for none; or a source of its own.
        test: The same.
        stratify: Classes [N] of which every split gets its share; "targets" reads those of all rows.
        groups: Numbers or text [N]; no group is in two splits.
        time: Numbers or times [N]; the latest rows are the test, those before them validation.
        splits: The rows of each split by name, as indices, bool masks [N] or ranges, or a name for each row [N].
        seed: Seed of the rows held out, at least 0.
        workers: Processes that read, 0 for this one; see `accelnet.data.workers.InProcesses` for when they pay.
        cache: Keep rows that were read in a private file, for other epochs and other runs: True for at most 20 GB and a
            quarter of the free disk, or a number of bytes. The source must then give the same rows every time.
        normalize: Standardize the last axis of float or uint8 inputs, as `from_arrays` does, with mean and deviation of
            the training rows: of at most 2**20 of them, evenly spaced, and 256 MiB.
        num_classes: Number that targets, whole numbers or booleans, must be below. Names of classes are counted.
        class_names: Names of the classes 0, 1, .... None: those that the source has (`features[targets].names`
            or `classes`), if any. Targets may be such names.
        fitted: `data.fitted` of an earlier run, to take over its means, deviations and names of classes.

    Returns:
        Data whose arrays are lazy. The first rows say shapes and types, and every row is checked when it is read:
        float64 becomes float32 and int64 becomes int32.

    Raises:
        UserError: if the source has no rows or no such fields, or as of `Data`. While rows are read: if a row is
            missing or unlike the first ones in shape or type, values are NaN or infinite, or labels are out of range.

    Example:
        >>> rows = [{"image": np.full((2, 2), index, np.uint8), "label": index % 2} for index in range(10)]
        >>> data = from_source(rows, inputs="image", targets="label", num_classes=2)
        >>> data.arrays["inputs"].shape, data.num_examples("train"), data.take(np.array([0]))["targets"].dtype
        ((10, 2, 2), 8, dtype('int32'))
    """
    arguments.word("name", name)
    arguments.flag("normalize", normalize)
    known = {} if fitted is None else checked(fitted)
    _check_source("source", source)
    fields = fields_of(_first(source, name), inputs, targets, weights)
    class_names = class_names or known.get("class_names") or _own_class_names(source, fields["targets"])
    class_names = None if class_names is None else arguments.names("class_names", class_names)

    labels = num_classes is not None or class_names is not None

    def rows_of(source: Any, what: str) -> Rows:
        return SourceRows(source, fields, class_names=class_names, labels=labels, what=what)

    parts, fractions = [rows_of(source, f"source {name!r}")], {}
    held_out = {}
    for split, given in (("validation", validation), ("test", test)):
        if hasattr(given, "__getitem__"):
            _check_source(split, given)
            held_out[split], fractions[split] = rows_of(given, f"source {name!r}, {split}"), 0.0
            _check_alike(parts[0], held_out[split], f"source {name!r}, {split}")
        else:
            fractions[split] = given if isinstance(given, Share) else arguments.fraction(split, given)
    rows = _read(JoinedRows([*parts, *held_out.values()]) if held_out else parts[0], name, workers, cache)
    if isinstance(stratify, str) and stratify == "targets":
        stratify = lazy_arrays(rows)["targets"][: len(parts[0])]
    division = {"labels": stratify, "groups": groups, "time": time, "splits": splits}
    order, ranges = divide(len(parts[0]), seed, **fractions, **division)
    start = len(parts[0])
    for split, some in held_out.items():
        ranges[split] = range(len(order), len(order) + len(some))
        order = np.concatenate([order, np.arange(start, start + len(some))])
        start += len(some)
    arrays = reordered(lazy_arrays(rows), order)

    own: dict[str, Any] = {}
    info: dict[str, Any] = {}
    if class_names is not None:
        own["class_names"] = class_names
        num_classes = _agreed(name, num_classes, class_names)
    if num_classes is not None:
        info["num_classes"] = arguments.integer("num_classes", num_classes, low=1)
    values, prepare = arrays["inputs"], with_cast_targets
    if normalize and not isinstance(values, Mapping) and (values.dtype.kind == "f" or values.dtype == np.uint8):
        prepare = standardize
        own |= fit(first_rows(values, len(ranges["train"])))
    data = Data(name, arrays, ranges, prepare, info=info, fitted=own)
    return data if fitted is None else data.refitted(fitted)


def _read(rows: Rows, name: str, workers: int, cache: bool | int) -> Rows:
    """Read rows in processes, and keep them, where that is wanted."""
    if arguments.integer("workers", workers, low=0):
        rows = InProcesses(rows, workers)
    if cache is False:
        return rows
    # What the source gives at some rows stands for all of them, as in a fingerprint.
    digest = hashlib.blake2b(repr(rows.shapes).encode() + rows.identity())
    for _, values in leaves(rows.read(rows.hashed_rows())):
        digest.update(np.ascontiguousarray(values).view(np.uint8).data)
    return open_cache(rows, cache, key=name.encode() + digest.digest())


def _first(source: Any, name: str) -> Any:
    with user_code(f"source {name!r}, its __len__,"):
        length = len(source)
    if not length:
        raise UserError(f"source {name!r} has no rows")
    with user_code(f"source {name!r}, asked for row 0,"):
        return source[0]


def _check_source(what: str, source: Any) -> None:
    if isinstance(source, Mapping) and any(hasattr(part, "__getitems__") for part in source.values()):
        raise UserError(
            f"{what} holds the splits {listed(source)}, expected the rows of one: give source[{next(iter(source))!r}], "
            f"and others as validation and test"
        )
    if isinstance(source, Mapping) or hasattr(source, "iloc") or hasattr(source, "__dataframe__"):
        raise UserError(
            f"{what} is {shown(source)}, expected rows: give columns to accelnet.data.table and arrays to from_arrays"
        )
    if isinstance(source, str | bytes) or not (hasattr(source, "__len__") and hasattr(source, "__getitem__")):
        advice = (
            ": what can only be iterated over is for accelnet.data.from_batches" if hasattr(source, "__iter__") else ""
        )
        raise UserError(f"{what} is {shown(source)}, expected an object with __len__ and __getitem__{advice}")
    if isinstance(source, np.ndarray):
        raise UserError(
            f"{what} is {shown(source)}, expected rows that are dicts or tuples: give arrays to from_arrays"
        )


def _own_class_names(source: Any, field: Field) -> Sequence[str] | None:
    """Return the names of classes that a source knows, as those of Hugging Face and of torchvision do."""
    features = getattr(source, "features", None)
    if isinstance(features, Mapping) and isinstance(field, str):
        return getattr(features.get(field), "names", None)
    classes = getattr(source, "classes", None)
    strings = isinstance(classes, list | tuple) and all(isinstance(one, str) for one in classes)
    return classes if strings and classes and field == 1 else None


def _agreed(name: str, num_classes: int | None, class_names: Sequence[str]) -> int:
    if num_classes not in (None, len(class_names)):
        raise UserError(f"{name}: num_classes is {shown(num_classes)}, but the classes are {listed(class_names)}")
    return len(class_names)


def _check_alike(first: Rows, other: Rows, what: str) -> None:
    for (path, one), (_, two) in zip(leaves(first.shapes), leaves(other.shapes), strict=True):
        if (one.shape, one.dtype) != (two.shape, two.dtype):
            raise UserError(
                f"{what}: {path} are {two.dtype} {list(two.shape)}, those to train on {one.dtype} {list(one.shape)}"
            )
