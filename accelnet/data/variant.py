"""A data set made of another one: the same rows in another order, or under other fitted values."""

import copy
import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from accelnet.data.checks import check_weights
from accelnet.data.fitted import SHARED_WITH_INFO, plain
from accelnet.data.normalize import refit_standardized, standardize
from accelnet.data.row_views import reordered
from accelnet.data.splits import Splits
from accelnet.errors import UserError
from accelnet.signature import wants


class _Prepare(functools.partial[Any]):
    """A `prepare` that has what it names beside the batch."""


def changed(data: Any, **fields: Any) -> Any:
    """Return a copy of a `Data` with other fields, which the caller has checked; "fitted" reaches `prepare` too."""
    other = copy.copy(data)  # a replacement would look at every value again
    for of_the_other in ("_fingerprint", "kept", "tickets"):
        vars(other).pop(of_the_other, None)
    for name, value in fields.items():
        if name != "fitted":
            object.__setattr__(other, name, value)
    if "fitted" in fields:
        set_fitted(other, plain(fields["fitted"]))
    return other


def set_fitted(data: Any, fitted: dict[str, Any]) -> None:
    """Give a `Data` its fitted values, and `prepare` those that it names."""
    shared = {key: fitted[key] for key in SHARED_WITH_INFO if key in fitted}
    object.__setattr__(data, "fitted", fitted)
    object.__setattr__(data, "info", {**data.info, **shared})
    function = own_prepare(data)
    asked = wants(function).names
    named = {name: value for name, value in (("fitted", fitted), ("coding", data.coding)) if name in asked}
    object.__setattr__(data, "prepare", _Prepare(function, **named) if named else function)


def own_prepare(data: Any) -> Callable[..., Any]:
    """Return a data set's `prepare` as it was given."""
    return data.prepare.func if isinstance(data.prepare, _Prepare) else data.prepare


def rearranged(
    data: Any, order: np.ndarray, ranges: Mapping[str, range], fitted: Mapping[str, Any] | None = None
) -> Any:
    """Return a `Data` of the same rows in another order and other splits, fitted to its own training rows.

    Args:
        data: The `Data`.
        order: int [N], every row once.
        ranges: Rows of each split, of that order.
        fitted: What was fitted to these training rows, where it is known. None: it is fitted.

    Raises:
        UserError: if values were fitted and nothing says how, or the weights of all training rows are 0.
    """
    old = data.splits
    groups = None if old.groups is None else old.groups[order]
    splits = Splits(ranges, old.origin[order], old.num_given, groups, old.by_time)
    sampling = data.sampling[order] if isinstance(data.sampling, np.ndarray) else data.sampling
    other = changed(data, arrays=reordered(dict(data.arrays), order), splits=splits, sampling=sampling)
    check_weights(other.name, other.arrays, other.splits["train"])
    fit = refit_of(data)
    if fit is None:
        return other
    return changed(other, fitted={**data.fitted, **fit(other)} if fitted is None else fitted)


def refuse_stream(data: Any, what: str) -> None:
    """Raise UserError if a stream gives the training rows in its own order."""
    if data.stream is not None:
        raise UserError(
            f"data {data.name!r} is a stream, whose rows cannot be {what}: do so where they come from, or give rows "
            f"that can be read by number to from_source or from_arrays"
        )


def refit_of(data: Any) -> Callable[[Any], Mapping[str, Any]] | None:
    """Return the function that fits a data set's values again; None where there is nothing to fit.

    Raises:
        UserError: if numbers were fitted, and nothing says how.
    """
    if data.refit is not None or not _has_floats(data.fitted):
        return data.refit
    if own_prepare(data) is standardize:
        return refit_standardized
    raise UserError(
        f"data {data.name!r} has fitted numbers, and nothing says how they are fitted to other training rows: give "
        f"Data a function, refit=lambda data: {{...}}, from a Data to them"
    )


def _has_floats(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(_has_floats, value.values()))
    return isinstance(value, float) or (isinstance(value, tuple) and any(map(_has_floats, value)))
