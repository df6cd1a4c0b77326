"""The precision that a model computes in."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

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


def to_inputs_dtype(arrays: Any, /, *, dtype: Any = None, inexact: bool = True) -> Any:
    """Cast a layer's weights to its inputs' dtype, where Flax would widen the inputs to the weights'.

    It is for `promote_dtype=` of Flax's layers: `arrays` are inputs, kernel and bias, and the others are not read.
    """
    del dtype, inexact
    inputs = arrays[0]
    return tuple(None if array is None else array.astype(inputs.dtype) for array in arrays)
