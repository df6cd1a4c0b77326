"""What an artifact takes and gives, as plain values: shapes, types, names, and what was fitted to the training rows."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from accelnet.artifact.outputs import KINDS
from accelnet.artifact.program import BATCH, STEPS
from accelnet.data.columns import NAMED, input_names
from accelnet.data.encoding import encode_inputs
from accelnet.data.fitted import plain
from accelnet.errors import UserError
from accelnet.wording import listed, shown

BYTES, OWN = "bytes", "the user's own"
_COLUMNS = ("number", "boolean", "time", *NAMED)
SHAPE = {
    "inputs": dict,
    "fitted": {
        "columns?": [{"name": str, "kind": str, "names": [str], "fill?": float}],
        "picture?": {"height": int, "width": int, "channels": int, "resize": str},
        "class_names?": [str],
        "vocabulary?": str,
    },
    "coding": dict,
    "tokenizer": (str, None),
    "kind": str,
    "outputs": {str: {"dtype": str, "shape": list}},
    "batch": (int, None),
}


@dataclass(frozen=True)
class ArraySchema:
    """Say what one array of the inputs is like.

    Attributes:
        shape: Sizes; the first, that of the batch, is a name, and so is that of steps which may be any number.
        dtype: Type of its numbers.
    """

    shape: tuple[Any, ...]
    dtype: np.dtype

    @property
    def ndim(self) -> int:
        """Number of its axes."""
        return len(self.shape)

    def fits(self, array: Any) -> bool:
        """Say whether an array has this shape."""
        pairs = zip(self.shape, array.shape, strict=False)
        return self.ndim == array.ndim and all(isinstance(a, str) or a == b for a, b in pairs)


def described_arrays(avals: Any) -> Any:
    """Describe arrays, or a dict of them, by dtype and shape; a size that is not known is a name.

    Example:
        >>> described_arrays(jax.ShapeDtypeStruct((2, 3), np.float32))
        {'dtype': 'float32', 'shape': [2, 3]}
    """
    if isinstance(avals, Mapping):
        return {name: described_arrays(one) for name, one in avals.items()}
    return {"dtype": np.dtype(avals.dtype).name, "shape": [n if isinstance(n, int) else str(n) for n in avals.shape]}


def held_of(described: Mapping[str, Any]) -> Any:
    """Return the `ArraySchema` of described arrays, or the dict of them.

    Example:
        >>> held_of({"dtype": "uint8", "shape": ["batch", 8]}).fits(np.zeros((5, 8), np.uint8))
        True
    """
    if isinstance(described.get("dtype"), str):
        return ArraySchema(tuple(described["shape"]), np.dtype(jax.numpy.dtype(described["dtype"])))
    return {name: held_of(one) for name, one in described.items()}


def schema_of(data: Any, exported: Any, kind: str) -> dict[str, Any]:
    """Return the schema of an artifact.

    Args:
        data: `Data` of the run.
        exported: Its program, of weights and inputs.
        kind: Kind of the outputs.
    """
    (_, avals), _ = jax.tree.unflatten(exported.in_tree, exported.in_avals)
    outputs = jax.tree.unflatten(exported.out_tree, exported.out_avals)
    inputs = described_arrays(_with_types_of(avals, data.arrays["inputs"]))
    (size, *_) = jax.tree.leaves(avals)[0].shape
    tokenizer = data.info.get("tokenizer")
    return {
        "inputs": _with_batch(inputs),
        "fitted": data.fitted,
        "coding": data.coding,
        "tokenizer": tokenizer if tokenizer is None or tokenizer == BYTES else OWN,
        "kind": kind,
        "outputs": _with_batch(described_arrays(outputs)),
        "batch": size if isinstance(size, int) else None,
    }


def encode(raw: Any, schema: Mapping[str, Any]) -> Any:
    """Turn raw inputs into what the program takes.

    Args:
        raw: What `Data.encode` takes.
        schema: Schema, its values plain.

    Raises:
        UserError: if they are of another kind, shape or type, or hold an unknown name.
    """
    held, fitted = held_of(schema["inputs"]), schema["fitted"]
    if schema["tokenizer"] == OWN and isinstance(raw, str | list | tuple):
        raise UserError(f"inputs are {shown(raw)}, expected tokens: the tokenizer is no part of the artifact")
    tokenizer = BYTES if schema["tokenizer"] == BYTES else None
    arrays = encode_inputs(raw, fitted, held, schema["coding"], tokenizer)
    sizes = {len(one) for one in jax.tree.leaves(arrays)}
    if not all(jax.tree.leaves(jax.tree.map(ArraySchema.fits, held, arrays))) or len(sizes) != 1:
        came = jax.tree.map(lambda one: list(one.shape), arrays)
        expected = jax.tree.map(lambda one: list(one.shape), held)
        raise UserError(f"inputs have shape {came}, expected {expected}")
    _check_steps(held, arrays)
    return arrays


def _check_steps(held: Any, arrays: Any) -> None:
    """Refuse sequences without a step, and lengths that are none: a model would make something of them."""
    pairs = zip(jax.tree.leaves(held), jax.tree.leaves(arrays), strict=True)
    counts = sorted({array.shape[1] for one, array in pairs if one.ndim > 1 and one.shape[1] == STEPS})
    if not counts:
        return
    if len(counts) > 1 or not counts[0]:
        raise UserError(f"inputs have {listed(counts)} steps, expected one number of at least 1")
    lengths = arrays.get("lengths") if isinstance(arrays, Mapping) else None
    if lengths is not None and not ((lengths >= 1) & (lengths <= counts[0])).all():
        raise UserError(f"lengths are {lengths.tolist()[:8]}, expected 1 to {counts[0]}, the number of steps")


def read_schema(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a schema as it was before its way through JSON: lists of fitted values as tuples.

    Raises:
        ValueError: if it is of no kind that there is.
    """
    kinds = [column["kind"] for column in values["fitted"].get("columns", ())]
    if values["kind"] not in KINDS or not set(kinds) <= set(_COLUMNS):
        raise ValueError(f"schema.json has the kinds {listed([values['kind'], *kinds])}, which are not all known")
    if values["batch"] is not None and values["batch"] < 1:
        raise ValueError(f"schema.json has batch {values['batch']}, expected at least 1")
    return {**values, **{name: plain(values[name], name) for name in ("fitted", "coding")}}


def input_words(schema: Mapping[str, Any]) -> str:
    """Describe in words what an artifact takes.

    Example:
        >>> input_words({"inputs": {"dtype": "uint8", "shape": ["batch", 8]}, "fitted": {}, "tokenizer": None})
        'arrays uint8 [batch, 8]'
    """
    fitted = schema["fitted"]
    if "columns" in fitted:
        columns = [column["name"] for column in fitted["columns"]]
        return f"tables with the columns {listed(columns)} ({len(input_names(fitted['columns']))} inputs)"
    if "picture" in fitted:
        form = fitted["picture"]
        return f"pictures, which become {form['height']} x {form['width']} x {form['channels']} ({form['resize']})"
    words = ", ".join(_words(schema["inputs"], ""))
    text = f", or text of the {len(fitted['vocabulary'])} known characters" if "vocabulary" in fitted else ""
    return f"arrays {words}{text or (', or text' if schema['tokenizer'] == BYTES else '')}"


def _words(described: Mapping[str, Any], name: str) -> list[str]:
    if isinstance(described.get("dtype"), str):
        return [f"{name} {described['dtype']} [{', '.join(map(str, described['shape']))}]".strip()]
    return [text for key, one in described.items() for text in _words(one, f"{name}.{key}".strip("."))]


def _with_types_of(avals: Any, arrays: Any) -> Any:
    """Give inputs the types that the data holds, not those that jax has for them."""
    return jax.tree.map(lambda aval, one: ArraySchema(aval.shape, one.dtype), avals, arrays)


def _with_batch(described: Any) -> Any:
    if isinstance(described.get("dtype"), str):
        return {**described, "shape": [BATCH, *described["shape"][1:]]}
    return {name: _with_batch(one) for name, one in described.items()}
