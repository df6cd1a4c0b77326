"""A training loop by hand, which gives an optimizer all that the engine gives it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from accelnet.optim import adapt_optimizer, eval_params

NUM_STEPS = 20


def make_params(dtype=jnp.float32):
    generator = np.random.default_rng(0)
    shapes = {"first": {"kernel": (3, 8), "bias": (8,)}, "last": {"kernel": (8, 2), "bias": (2,)}}
    draw = lambda shape: jnp.asarray(0.5 * generator.normal(size=shape), dtype)  # noqa: E731
    return jax.tree.map(draw, shapes, is_leaf=lambda node: isinstance(node, tuple))


def loss_of(params):
    """Return the mean squared error of a small net on 32 examples of a linear function."""
    inputs = np.random.default_rng(1).normal(size=(32, 3)).astype(np.float32)
    targets = inputs @ np.array([[1.0, 0.5], [-1.0, 0.25], [0.5, 1.0]], np.float32)
    hidden = jnp.tanh(inputs @ params["first"]["kernel"] + params["first"]["bias"][None])
    outputs = hidden @ params["last"]["kernel"] + params["last"]["bias"][None]
    return jnp.mean((outputs.astype(jnp.float32) - targets) ** 2)


def step_with(optimizer, num_steps=NUM_STEPS):
    def step(number, carry):
        params, state = carry
        value, grads = jax.value_and_grad(loss_of)(params)
        updates, state = optimizer.update(
            grads,
            state,
            params,
            value=value,
            grad=grads,
            value_fn=loss_of,
            grad_fn=lambda params, *_: jax.grad(loss_of)(params),
            obj_fn=loss_of,
            key=jax.random.fold_in(jax.random.key(3), number),
            step=jnp.asarray(number, jnp.int32),
            progress=jnp.asarray(number, jnp.float32) / num_steps,
        )
        return optax.apply_updates(params, updates), state

    return step


def train(optimizer, num_steps=NUM_STEPS, dtype=jnp.float32):
    """Return params, state and the loss of the params to evaluate with; the state is donated, as the engine does."""
    optimizer = adapt_optimizer(optimizer)
    params = make_params(dtype)
    state = optimizer.init(params)
    loop = jax.jit(
        lambda params, state: jax.lax.fori_loop(0, num_steps, step_with(optimizer, num_steps), (params, state)),
        donate_argnums=(0, 1),
    )
    params, state = loop(params, state)
    return params, state, float(loss_of(eval_params(state, params)))
