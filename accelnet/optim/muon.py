"""Muon: momentum made orthogonal, for matrices; AdamW for everything else."""

import math
from collections.abc import Callable, Hashable
from typing import Any

import jax
import optax

from accelnet.arguments import function
from accelnet.errors import UserError
from accelnet.optim.decay import Mask, decayed, descend, names
from accelnet.optim.declare import CONSTANT, algorithm
from accelnet.optim.schedules import Schedule

# Of AdamW's updates, measured in its Source: with it one rate and one decay suit both kinds of parameters.
_UPDATE_RMS = 0.2


def matrices(params: Any) -> Any:
    """Say which parameters Muon updates: kernels that map many features to many.

    These are weights (see `decayed`) without "embed" in their path and with more than one input: dense and
    recurrent kernels [in, out], convolution kernels [..., in, out] read as [... * in, out]. Embeddings, whose
    rows are looked up one by one, depthwise kernels and those on one input channel, [h, w, 1, out], go to
    AdamW. The output layer cannot be told from the others: leave it out by an own function if it should go to
    AdamW too.

    Args:
        params: pytree of arrays, [...] each.

    Returns:
        The same tree of bools.

    Example:
        >>> import jax.numpy as jnp
        >>> matrices({"conv": {"kernel": jnp.zeros((3, 3, 8, 16)), "bias": jnp.zeros(16)}})
        {'conv': {'bias': False, 'kernel': True}}

    Source: Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024.
    """

    def is_matrix(path: tuple[Any, ...], leaf: Any, weight: bool) -> bool:
        return weight and leaf.shape[-2] > 1 and not any("embed" in name for name in names(path))

    return jax.tree_util.tree_map_with_path(is_matrix, params, decayed(params))


@algorithm(momentum="[0, 1)", weight_decay="[0, inf)", b1="[0, 1)", fixed={"b2": "[0, 1)", "eps": "[0, inf)"})
def muon(
    learning_rate: Any,
    *,
    schedule: Schedule = CONSTANT,
    momentum: Any = 0.95,
    weight_decay: Any = 0.01,
    decay_mask: Mask = decayed,
    muon_mask: Callable[[Any], Any] = matrices,
    b1: Any = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
) -> optax.GradientTransformation:
    """Step by the orthogonal part of the momentum: `U V^T` where it is `U S V^T`.

    Five Newton-Schulz steps approach it. `p = p - rate (0.2 sqrt(max(in, out)) U V^T + weight_decay * p)`:
    the factor gives the update the size of AdamW's, so rate and decay are AdamW's. The momentum is
    Nesterov's, freed of its start at 0 as in `nadam`. muon_mask, from params to a pytree of bools, says which
    parameters, of two axes or more, Muon updates; AdamW updates the others with b1, b2 and eps.

    Source: Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024; Liu et al., "Muon
    is scalable for LLM training", 2025, equation 4 for the factor.
    """
    orthogonal = optax.contrib.scale_by_muon(beta=momentum, weight_dimension_numbers=_axes)
    directions: dict[Hashable, optax.GradientTransformation] = {
        "muon": optax.chain(orthogonal, optax.stateless(_size_like_adam)),
        "adam": optax.scale_by_adam(b1, b2, eps),
    }
    function("muon_mask", muon_mask, "a function from the params to a pytree of bools")
    direction = optax.partition(directions, lambda params: _labels(params, muon_mask(params)))
    return descend(direction, learning_rate * schedule, weight_decay, decay_mask)


def _axes(params: Any) -> Any:
    return jax.tree.map(
        lambda leaf: optax.contrib.MuonDimensionNumbers(tuple(range(leaf.ndim - 1)), leaf.ndim - 1), params
    )


def _labels(params: Any, chosen: Any) -> Any:
    def label(path: tuple[Any, ...], leaf: Any, chosen: bool) -> str:
        if chosen and leaf.ndim < 2:
            raise UserError(f"muon_mask chose {'/'.join(names(path))} of shape {leaf.shape}, expected 2 or more axes")
        return "muon" if chosen else "adam"

    return jax.tree_util.tree_map_with_path(label, params, chosen)


def _size_like_adam(updates: Any, _: Any) -> Any:
    def scale(leaf: jax.Array) -> jax.Array:
        return leaf * (_UPDATE_RMS * math.sqrt(max(math.prod(leaf.shape[:-1]), leaf.shape[-1])))

    return jax.tree.map(scale, updates)
