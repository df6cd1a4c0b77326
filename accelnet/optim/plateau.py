"""The one schedule that looks at the loss."""

from typing import Any

import optax

from accelnet.arguments import integer
from accelnet.errors import UserError
from accelnet.optim.declare import in_float32
from accelnet.optim.ranges import Range, check_number


def reduce_on_plateau(
    *,
    factor: float = 0.1,
    patience: int = 10,
    window_steps: int = 1,
    cooldown: int = 0,
    min_scale: float = 0.0,
) -> optax.GradientTransformationExtraArgs:
    """Multiply updates by `factor`, once more each time the loss stopped improving.

    Better means lower by more than 1 in 10,000: the rule is that of `optax.contrib.reduce_on_plateau`. It stands
    after the algorithm in a chain and looks at `value`, the training loss, in `update(grads, opt_state, params,
    value=loss)`.

    Args:
        factor: number in (0, 1).
        patience: number of windows without improvement until the next reduction, at least 1.
        window_steps: number of losses averaged into one value to compare, at least 1. A single batch's loss is noisy:
            an epoch's number of steps is a good start.
        cooldown: number of windows after a reduction that do not count, at least 0.
        min_scale: factor at which reduction ends, in [0, 1).

    Returns:
        The transformation, which needs value in update.

    Raises:
        UserError: an argument is out of its range.

    Example:
        >>> import jax.numpy as jnp
        >>> from accelnet.optim import learning_rate, sgd
        >>> optimizer = optax.chain(sgd(0.5), reduce_on_plateau(factor=0.5, patience=1))
        >>> params = jnp.array([1.0])
        >>> state = optimizer.init(params)
        >>> for loss in (1.0, 1.0):
        ...     _, state = optimizer.update(params, state, params, value=loss)
        >>> float(learning_rate(state))
        0.25
    """
    factor = check_number("factor", factor, Range.parse("(0, 1)"))
    min_scale = check_number("min_scale", min_scale, Range.parse("[0, 1)"))
    patience, window_steps = integer("patience", patience, 1), integer("window_steps", window_steps, 1)
    cooldown = integer("cooldown", cooldown, 0)
    inner = optax.contrib.reduce_on_plateau(
        factor, patience, cooldown=cooldown, accumulation_size=window_steps, min_scale=min_scale
    )

    def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> tuple[Any, Any]:
        if "value" not in extra_args:
            raise UserError("reduce_on_plateau needs the loss: call optimizer.update(..., value=loss)")
        return inner.update(updates, state, params, **extra_args)

    return in_float32(optax.GradientTransformationExtraArgs(inner.init, update))
