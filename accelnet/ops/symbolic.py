"""Sizes that are not known yet, as those of programs that are exported for any batch."""

from typing import Any

from jax.errors import InconclusiveDimensionOperation


def is_below(size: Any, bound: Any) -> bool:
    """Say whether a size is below a bound; a symbolic size that could be on either side counts as large.

    Args:
        size: Whole number, or a dimension of `jax.export.symbolic_shape`.
        bound: The same.

    Example:
        >>> from jax.export import symbolic_shape
        >>> (batch,) = symbolic_shape("batch")
        >>> is_below(3, 4), is_below(batch, 1), is_below(batch, 1024)
        (True, False, False)
    """
    try:
        return bool(size < bound)
    except InconclusiveDimensionOperation:
        return False
