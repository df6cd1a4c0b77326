"""Values in place of a table's missing ones: they depend on the training rows, so each fold has its own."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from accelnet.data.columns import input_names


class Fills(NamedTuple):
    """Say where filled values stand among the inputs of a table.

    Attributes:
        inputs: Inputs with filled values, int64 [F].
        flags: Inputs that are 1 where these are missing, int64 [F].
        columns: Columns that they come from, int64 [F].
        values: What was filled in, in the units of the file, float64 [F].
    """

    inputs: np.ndarray
    flags: np.ndarray
    columns: np.ndarray
    values: np.ndarray


def fills_of(fitted: Mapping[str, Any]) -> Fills | None:
    """Return where values were filled and an input tells it; None where there are none.

    Args:
        fitted: Fitted values; those of a table have "columns".

    Example:
        >>> hue, size = {"name": "hue", "kind": "boolean"}, {"name": "size", "kind": "number"}
        >>> fills_of({"columns": (hue, {**size, "fill": 2.5, "flag": True})})
        Fills(inputs=array([1]), flags=array([2]), columns=array([1]), values=array([2.5]))
    """
    found, start = [], 0
    for index, column in enumerate(fitted.get("columns", ())):
        if column.get("flag") and "fill" in column:
            found.append((start, start + 1, index, column["fill"]))
        start += len(input_names([column]))
    if not found:
        return None
    inputs, flags, columns, values = map(np.array, zip(*found, strict=True))
    return Fills(inputs, flags, columns, values.astype(np.float64))


def refilled(inputs: Any, fitted: Mapping[str, Any], coding: Mapping[str, Any], xp: Any = jnp) -> Any:
    """Put the fitted values where others were filled in.

    Args:
        inputs: [B, C], as the arrays hold them.
        fitted: Fitted values.
        coding: What was done to the rows; "fills" of "inputs" are what was filled in.
        xp: `jax.numpy` or `numpy`.

    Returns:
        The inputs; unchanged where the fitted values are what was filled in.

    Example:
        >>> columns = ({"name": "size", "kind": "number", "fill": 3.0, "flag": True},)
        >>> inputs = np.array([[1.0, 0.0], [2.5, 1.0]], np.float32)
        >>> refilled(inputs, {"columns": columns}, {"inputs": {"fills": (2.5,)}}, np).tolist()
        [[1.0, 0.0], [3.0, 1.0]]
    """
    before = coding.get("inputs", {}).get("fills")
    fills = None if before is None else fills_of(fitted)
    if fills is None or tuple(before or ()) == tuple(fills.values.tolist()):
        return inputs
    offset = np.zeros(inputs.shape[1]) + np.asarray(coding["inputs"].get("offset", 0.0), np.float64)
    fill = np.zeros(inputs.shape[1])
    flag = np.arange(inputs.shape[1])
    is_filled = np.zeros(inputs.shape[1], bool)
    fill[fills.inputs], flag[fills.inputs], is_filled[fills.inputs] = fills.values, fills.flags, True
    missing = (inputs[:, flag] == 1) & xp.asarray(is_filled)[None, :]
    return xp.where(missing, xp.asarray((fill - offset).astype(np.float32))[None, :], inputs)


def refit_fills(data: Any) -> tuple[Mapping[str, Any], ...] | None:
    """Describe the columns of a table again, with the means of its training rows in place of missing values.

    Args:
        data: `Data` of a table.

    Returns:
        Descriptions of the columns; None where no input tells what was filled.
    """
    fills = fills_of(data.fitted)
    if fills is None or "fills" not in data.coding.get("inputs", {}):
        return None
    train = data.arrays["inputs"][: data.splits["train"].stop]
    offset = np.zeros(train.shape[1]) + np.asarray(data.coding["inputs"].get("offset", 0.0), np.float64)
    columns = [dict(column) for column in data.fitted["columns"]]
    for index, flag, column in zip(fills.inputs, fills.flags, fills.columns, strict=True):
        present = train[:, index][train[:, flag] == 0]
        if len(present):  # else what was filled in stays
            columns[column]["fill"] = float(present.mean(dtype=np.float64) + offset[index])
    return tuple(columns)
