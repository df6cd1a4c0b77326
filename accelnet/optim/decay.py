"""Which parameters weight decay pulls to zero."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

# A pytree of bools like the params, or a function from params to one.
Mask = Any | Callable[[Any], Any]


def decayed(params: Any) -> Any:
    """Choose the parameters that weight decay applies to: weights, not biases and not the scales of norms.

    A leaf is a weight if it has two axes or more and its own name holds neither "bias" nor "scale" (the names
    that Flax uses; stacked layers have biases of two axes). Kernels of dense, convolutional and recurrent
    layers are weights, and so are embeddings. It is the default `decay_mask=`; any function of this form can
    take its place.

    Args:
        params: pytree of arrays, [...] each.

    Returns:
        The same tree of bools.

    Example:
        >>> decayed({"dense": {"kernel": jnp.zeros((3, 4)), "bias": jnp.zeros(4)}, "norm": {"scale": jnp.ones(4)}})
        {'dense': {'bias': False, 'kernel': True}, 'norm': {'scale': False}}
    """

    def is_weight(path: tuple[Any, ...], leaf: Any) -> bool:
        name = names(path)[-1] if path else ""
        return jnp.ndim(leaf) >= 2 and "bias" not in name and "scale" not in name

    return jax.tree_util.tree_map_with_path(is_weight, params)


def names(path: tuple[Any, ...]) -> list[str]:
    """Name each step of a path into a pytree, in lower case: `['embed_0', 'embedding']`."""
    return [jax.tree_util.keystr((key,), simple=True).lower() for key in path]


def descend(
    direction: optax.GradientTransformation, rate: Any, weight_decay: Any = None, decay_mask: Mask = decayed
) -> optax.GradientTransformation:
    """Step along a direction and shrink the weights: `update = -rate (direction + weight_decay * params)`.

    Args:
        direction: transformation of gradients into the direction.
        rate: learning rate of this update, float32 scalar.
        weight_decay: float32 scalar; None leaves the weights alone.
        decay_mask: parameters to shrink, as a pytree of bools or a function of the params.

    Returns:
        The transformation.

    Example:
        >>> optimizer = descend(optax.identity(), 0.5, 0.1, decayed)
        >>> updates, _ = optimizer.update(jnp.ones((1, 1)), optimizer.init(jnp.ones((1, 1))), jnp.ones((1, 1)))
        >>> f"{updates[0, 0]:.2f}"
        '-0.55'

    Source: Loshchilov and Hutter, "Decoupled weight decay regularization", 2019, algorithms 1 and 2, with the
    learning rate as a factor of the decay, as PyTorch and Optax have it.
    """
    decay = [] if weight_decay is None else [optax.add_decayed_weights(weight_decay, mask=decay_mask)]
    return optax.chain(direction, *decay, optax.scale_by_learning_rate(rate))
