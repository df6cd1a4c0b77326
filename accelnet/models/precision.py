"""The precision that a model computes in."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from accelnet.ops.kernels import multiplies_bfloat16

Tree = Any
Precision = Literal["float32", "bfloat16", "float16"]

_COMPUTE_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float16": jnp.float16}


def cast_floats(tree: Tree, dtype: Any) -> Tree:
    """Cast the floating-point leaves of a pytree, leaving integers and booleans."""
    return jax.tree.map(lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)


def with_precision(apply: Callable[..., Any], precision: Precision) -> Callable[..., Any]:
    """Return the `apply` of a `PureModel` in a precision; outputs are float32 and the model's state keeps its types."""
    if precision == "float32":
        return apply
    dtype = _COMPUTE_DTYPES[precision]

    def applied(params: Tree, model_state: Tree, inputs: Tree, **settings: Any) -> Any:
        # Batch statistics stay float32: their small updates would be lost in 8 bits of mantissa.
        low = cast_floats((params, inputs), dtype)
        outputs, after, *sown = apply(low[0], model_state, low[1], dtype=dtype, **settings)
        after = jax.tree.map(lambda a, b: a.astype(b.dtype), after, model_state)
        return cast_floats(outputs, jnp.float32), after, *(cast_floats(one, jnp.float32) for one in sown)

    return applied


def precision_note(precision: Precision, params: Tree) -> str | None:
    """Say where a precision is not faster than float32 on this process's CPU; None where it is, or none is at hand.

    Args:
        precision: That of a run.
        params: Its weights or their shapes.

    Example:
        >>> precision_note("float32", {}) is None
        True
    """
    if precision != "bfloat16" or jax.default_backend() != "cpu":
        return None
    if not multiplies_bfloat16():
        return (
            "precision='bfloat16' is no faster than float32 here, and products are computed in float32: this processor "
            "has no products of bfloat16 that are faster (AMD's AVX512-BF16), or there are no compiled kernels"
        )
    if any(leaf.ndim > 2 for leaf in jax.tree.leaves(params)):
        return (
            "precision='bfloat16' makes products of dense and recurrent layers faster here; convolutions are computed "
            "in float32, in the same time"
        )
    return None


def to_inputs_dtype(arrays: Any, /, *, dtype: Any = None, inexact: bool = True) -> Any:
    """Cast a layer's weights to its inputs' dtype, where Flax would widen the inputs to the weights'.

    It is for `promote_dtype=` of Flax's layers: `arrays` are inputs, kernel and bias, and the others are not read.
    """
    del dtype, inexact
    inputs = arrays[0]
    return tuple(None if array is None else array.astype(inputs.dtype) for array in arrays)
