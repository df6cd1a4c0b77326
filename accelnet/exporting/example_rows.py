"""Rows that an artifact takes, drawn from its schema: what an export is checked with where there is no data."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from accelnet.artifact.schema import BYTES, ArraySchema, held_of

_STEPS = 8  # where there may be any number


def example_rows(schema: Mapping[str, Any], count: int, seed: int = 0) -> Any:
    """Draw encoded inputs that a schema allows.

    Numbers are normal, with the means and deviations that were fitted; pixels are uniform; lengths are from 1 to the
    number of steps, tokens those that there are, and other whole numbers 0 or 1.

    Args:
        schema: Schema of an artifact.
        count: Number B of rows.
        seed: Seed of the draw.

    Returns:
        Arrays [B, ...], as the schema's inputs.

    Example:
        >>> schema = {"inputs": {"dtype": "uint8", "shape": ["batch", 2]}, "fitted": {}, "kind": "classes"}
        >>> rows = example_rows(schema | {"tokenizer": None, "outputs": {}}, 3)
        >>> rows.shape, rows.dtype
        ((3, 2), dtype('uint8'))
    """
    held, rng = held_of(schema["inputs"]), np.random.default_rng(seed)
    steps = _steps_of(held)

    def draw(path: Any, one: ArraySchema) -> np.ndarray:
        sizes = [count, *(steps if isinstance(size, str) else size for size in one.shape[1:])]
        if one.dtype.kind not in "iub":
            return _numbers(rng, sizes, schema["fitted"]).astype(one.dtype)
        if path and str(getattr(path[-1], "key", "")) == "lengths":
            return rng.integers(1, steps + 1, sizes).astype(one.dtype)
        return rng.integers(0, _symbols(one, schema), sizes).astype(one.dtype)

    return jax.tree_util.tree_map_with_path(draw, held)


def with_steps(inputs: Any, schema: Mapping[str, Any], steps: int) -> Any:
    """Cut inputs of any number of steps to fewer, and their lengths.

    Args:
        inputs: Encoded inputs, arrays [B, ...].
        schema: Schema of the artifact.
        steps: Steps that are left.
    """
    held = held_of(schema["inputs"])

    def cut(path: Any, one: ArraySchema, array: np.ndarray) -> np.ndarray:
        if len(one.shape) > 1 and isinstance(one.shape[1], str):
            return array[:, :steps]
        return np.minimum(array, steps) if path and str(getattr(path[-1], "key", "")) == "lengths" else array

    return jax.tree_util.tree_map_with_path(cut, held, inputs)


def _steps_of(held: Any) -> int:
    """Return the steps of sequences: as many as the arrays beside the lengths have."""
    sizes = [one.shape[1] for one in jax.tree.leaves(held) if len(one.shape) > 1]
    return next((size for size in sizes if isinstance(size, int)), _STEPS)


def _numbers(rng: np.random.Generator, sizes: list[int], fitted: Mapping[str, Any]) -> np.ndarray:
    values = rng.normal(size=sizes)
    mean, std = (np.asarray(fitted.get(name, ()), np.float64) for name in ("mean", "std"))
    fits = mean.shape == std.shape and mean.ndim == 1 and mean.shape[0] in (1, sizes[-1])
    return values * std + mean if fits else values


def _symbols(held: ArraySchema, schema: Mapping[str, Any]) -> int:
    """Return how many values a whole number of the inputs may have."""
    if held.dtype == np.uint8:
        return 256
    if "vocabulary" in schema["fitted"]:
        return len(schema["fitted"]["vocabulary"])
    if schema["tokenizer"] == BYTES:
        return 256
    tokens = schema["kind"] == "tokens" and schema["outputs"].get("outputs", {}).get("shape", [])
    return int(tokens[-1]) if tokens and isinstance(tokens[-1], int) else 2
