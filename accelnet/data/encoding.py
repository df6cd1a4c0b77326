"""Raw inputs to what the arrays hold, and outputs to what the user's file holds, on the host."""

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

from accelnet.data.arrays import native
from accelnet.data.columns import NAMED, encode_columns, input_names
from accelnet.data.pictures import encode_pictures
from accelnet.data.rows import LazyArray
from accelnet.data.table_source import open_source
from accelnet.data.tables import Table
from accelnet.data.tokenizer import decode_tokens, encode_tokens
from accelnet.data.vocabulary import decode as decode_text
from accelnet.data.vocabulary import encode as encode_text
from accelnet.errors import UserError
from accelnet.wording import listed, shown


def encode_inputs(
    inputs: Any, fitted: Mapping[str, Any], held: Any, coding: Mapping[str, Any], tokenizer: Any = None
) -> Any:
    """Turn raw inputs into arrays like those that a data set holds: what `Data.encode` does."""
    if isinstance(held, Mapping):
        return _encode_dict(inputs, held, coding)
    if "columns" in fitted:
        inputs = _encode_table(inputs, fitted["columns"])
    if tokenizer is not None:
        inputs = _encode_texts(inputs, partial(encode_tokens, tokenizer))
    elif "vocabulary" in fitted:
        inputs = _encode_texts(inputs, partial(encode_text, vocabulary=fitted["vocabulary"]))
    if "picture" in fitted:
        inputs = encode_pictures(inputs, fitted["picture"])
    return _encode_array(inputs, held, coding.get("inputs", {}).get("offset"), "inputs", len(fitted.get("mean", ())))


def decode_outputs(outputs: Any, fitted: Mapping[str, Any], tokenizer: Any = None) -> Any:
    """Turn outputs or targets into what the user's file holds: what `Data.decode` does."""
    if isinstance(outputs, Mapping):
        return outputs
    outputs = np.asarray(outputs)
    if "target" in fitted:
        return undo_target(outputs, fitted["target"])
    if outputs.dtype.kind not in "iu":
        return outputs
    if "class_names" in fitted:
        names = np.array(fitted["class_names"])
        if outputs.size and not 0 <= outputs.min() <= outputs.max() < len(names):
            raise UserError(f"classes are {outputs.min()} to {outputs.max()}, expected 0 to {len(names) - 1}")
        return names[outputs]
    if "vocabulary" in fitted or tokenizer is not None:
        rows = outputs.reshape(-1, outputs.shape[-1]) if outputs.ndim else outputs[None]
        known = fitted.get("vocabulary", "")
        texts = [decode_text(row, known) if tokenizer is None else decode_tokens(tokenizer, row) for row in rows]
        return texts[0] if outputs.ndim == 1 else texts
    return outputs


def with_offsets(arrays: dict[str, Any], coding: Mapping[str, Any]) -> dict[str, Any]:
    """Return arrays with the numbers of the user's file: what `Data.raw` does."""

    def add(keys: Any, array: np.ndarray) -> np.ndarray:
        offset = coding.get(jax.tree_util.keystr(keys, simple=True, separator="."), {}).get("offset")
        return array if offset is None else array.astype(np.float64) + np.asarray(offset)

    return jax.tree.map_with_path(add, arrays)


def undo_target(values: Any, target: Mapping[str, Any]) -> np.ndarray:
    """Turn standardized targets or predictions back into what the file holds.

    Args:
        values: Array of any shape.
        target: Mean, deviation and whether a logarithm was taken, `info["target"]` of the data.

    Returns:
        float64 of that shape: values * std + mean, and its exponential where the target was a logarithm.

    Raises:
        UserError: if the values are no numbers, or the target does not say how to undo it.

    Example:
        >>> undo_target([0.0, 1.0], {"mean": 10.0, "std": 2.0, "log": False}).tolist()
        [10.0, 12.0]
    """
    if not isinstance(target, Mapping) or not {"mean", "std", "log"} <= set(target):
        raise UserError(f"target is {shown(target)}, expected info['target'] of the data: mean, std and log")
    array = native(values, "values")
    if array.dtype.kind not in "biufV":
        raise UserError(f"values have dtype {array.dtype}, expected numbers")
    values = array.astype(np.float64) * target["std"] + target["mean"]
    with np.errstate(over="ignore"):  # infinite, as it is in the program
        return np.exp(values) if target["log"] else values


def _encode_dict(inputs: Any, held: Mapping[str, Any], coding: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(inputs, Mapping) or set(inputs) != set(held):
        came = f"have {listed(inputs)}" if isinstance(inputs, Mapping) else f"are {shown(inputs)}"
        raise UserError(f"inputs {came}, expected a dict with {listed(held)}")
    offsets = {key: coding.get(f"inputs.{key}", {}).get("offset") for key in held}
    return {
        key: _encode_dict(inputs[key], one, {})
        if isinstance(one, Mapping)
        else _encode_array(inputs[key], one, offsets[key], f"inputs[{key!r}]", len(offsets[key] or ()))
        for key, one in held.items()
    }


def _encode_table(inputs: Any, columns: Sequence[Mapping[str, Any]]) -> Any:
    """Take whatever `table` reads, the values of one row too, rows that it has read, or an array of inputs."""
    if isinstance(inputs, Table):
        return encode_columns(columns, inputs)
    names = input_names(columns)
    rows = isinstance(inputs, list | tuple) and bool(inputs) and all(isinstance(row, Mapping) for row in inputs)
    table = isinstance(inputs, str | os.PathLike) or rows
    table = table or any(hasattr(inputs, one) for one in ("keys", "__arrow_c_stream__", "__arrow_c_array__"))
    if not table:
        array = native(inputs, "inputs")
        if array.ndim != 2 or array.shape[1] != len(names) or array.dtype.kind not in "biuf":
            raise UserError(
                f"inputs are {shown(inputs)}, expected a dict of columns, a list of rows as dicts, a frame, a file, or "
                f"numbers [B, {len(names)}] for {listed(names)}"
            )
        return array.astype(np.float64)
    source, used = open_source(inputs, "inputs"), [column["name"] for column in columns]
    source.check(used)
    return encode_columns(columns, source.read(used, {one["name"] for one in columns if one["kind"] in NAMED}))


def _encode_texts(inputs: Any, encode: Callable[[str], np.ndarray]) -> Any:
    texts = [inputs] if isinstance(inputs, str) else inputs
    if not isinstance(texts, list | tuple) or not texts or not all(isinstance(one, str) for one in texts):
        return inputs
    encoded = [encode(one) for one in texts]
    if len({len(one) for one in encoded}) > 1:
        raise UserError(f"texts have {listed(map(len, encoded))} symbols, expected all the same")
    return np.stack(encoded)


def _encode_array(values: Any, held: np.ndarray, offset: Any, where: str, features: int) -> np.ndarray:
    array = native(values, where)
    array = array[:] if isinstance(array, LazyArray) else array
    if array.dtype.kind not in "biufcV" or (array.dtype.kind == "c" and held.dtype.kind != "c"):
        raise UserError(f"{where} have dtype {array.dtype}, expected numbers as the data has them, {held.dtype}")
    if array.ndim != held.ndim or not len(array):
        shape = ", ".join(["B", *map(str, held.shape[1:])])
        raise UserError(f"{where} have shape {array.shape}, expected [{shape}] with B rows, at least one")
    if features and array.ndim > 1 and array.shape[-1] != features:
        raise UserError(f"{where} have {array.shape[-1]} features, expected {features}")
    if offset is not None:
        array = array.astype(np.float64) - np.asarray(offset)
    with np.errstate(invalid="ignore", over="ignore"):
        cast = array.astype(held.dtype)
    if held.dtype.kind in "biu":
        if not np.array_equal(cast, array):
            kind = "booleans" if held.dtype.kind == "b" else f"whole numbers that {held.dtype} can hold"
            raise UserError(f"{where} have dtype {array.dtype} and values that are no {kind}, as the data has them")
    elif not np.isfinite(cast).all():
        raise UserError(f"{where} are NaN or infinite, or {held.dtype} cannot hold them")
    return cast
