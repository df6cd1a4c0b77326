"""The step: gradients of one batch, summed over its microbatches, and one update."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from accelnet.experiment import Experiment, Precision, Remat
from accelnet.objectives.metric import safe_ratio
from accelnet.training.state import AUGMENT, NOISE, TrainState, random_key

Batch = dict[str, Any]
Tree = Any

_COMPUTE_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float16": jnp.float16}

# Primitives, and names given by `checkpoint_name`, whose results are dear to compute again; all else is recomputed
# under remat="products". A custom gradient hides the primitives of accelnet's own operations: these have names.
_PRODUCTS = ("dot_general", "conv_general_dilated")
_PRODUCT_NAMES = ("product", "block")


def cast_floats(tree: Tree, dtype: Any) -> Tree:
    """Cast the floating-point leaves of a pytree, leaving integers and booleans."""
    return jax.tree.map(lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)


def with_precision(apply: Callable[..., Any], precision: Precision) -> Callable[..., Any]:
    """Compute a model in a precision; outputs are float32 and the model's state keeps its types.

    Args:
        apply: of a `PureModel`.
        precision: "float32" leaves everything as it is.

    Returns:
        A function of the same signature.
    """
    if precision == "float32":
        return apply
    dtype = _COMPUTE_DTYPES[precision]

    def applied(params: Tree, model_state: Tree, inputs: Tree, *, key: jax.Array, train: bool) -> Any:
        # Batch statistics stay float32: their small updates would be lost in 8 bits of mantissa.
        low = cast_floats((params, inputs), dtype)
        outputs, after = apply(low[0], model_state, low[1], key=key, train=train, dtype=dtype)
        return cast_floats(outputs, jnp.float32), jax.tree.map(lambda a, b: a.astype(b.dtype), after, model_state)

    return applied


def with_remat(function: Callable[..., Any], remat: Remat) -> Callable[..., Any]:
    """Keep less for the backward pass and compute it again there.

    Source: Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016.
    """
    if remat == "none":
        return function
    if remat == "products":
        named = jax.checkpoint_policies.save_only_these_names(*_PRODUCT_NAMES)

        def policy(primitive: Any, *args: Any, **params: Any) -> bool:
            return primitive.name in _PRODUCTS or named(primitive, *args, **params)

    else:
        policy = jax.checkpoint_policies.save_only_these_names("block")
    return jax.checkpoint(function, policy=policy)


def make_loss(experiment: Experiment) -> Callable[..., Any]:
    """Return `loss(params, model_state, batch, *, key, train) -> (mean, (weight, metric states, model_state))`.

    The mean is over the examples of the batch that are not masked, by weight; `weight` is the sum of weights.
    """
    apply = with_precision(experiment.pure_model.apply, experiment.precision)

    def loss(params: Tree, model_state: Tree, batch: Batch, *, key: jax.Array, train: bool) -> Any:
        def forward(params: Tree, model_state: Tree, inputs: Tree) -> Any:
            return apply(params, model_state, inputs, key=key, train=train)

        forward = with_remat(forward, experiment.remat) if train else forward
        outputs, model_state = forward(params, model_state, batch["inputs"])
        total, weight, states = experiment.objective.totals(outputs, batch)
        return safe_ratio(total, weight), (weight, states, model_state)

    return loss


def make_gradient(experiment: Experiment) -> Callable[..., Any]:
    """Return the function that gives the gradient of a whole batch.

    The gradient of the batch's mean loss is the weighted mean of its microbatches' gradients, exactly:
    g = sum_j w_j g_j / sum_j w_j, so a batch may be larger than memory.

    Returns:
        `gradient(state, microbatch) -> (grads, loss, metric states, model_state)`, where `microbatch(j)` gives
        the j-th part of the batch. Gradients are float32; in float16 they are those of the unscaled loss.
    """
    loss = make_loss(experiment)
    augment = experiment.data.augment
    num_microbatches = experiment.order.num_microbatches

    def gradient(state: TrainState, microbatch: Callable[[Any], Batch]) -> Any:
        scale = 1.0 if state.loss_scale is None else state.loss_scale.scale

        def part(index: Any, model_state: Tree) -> Any:
            batch = experiment.data.prepare(microbatch(index))
            if augment is not None:
                batch = augment(random_key(state.seed, AUGMENT, state.step, index), batch)
            key = random_key(state.seed, NOISE, state.step, index)

            def scaled(params: Tree) -> Any:
                mean, aux = loss(params, model_state, batch, key=key, train=True)
                return mean * scale, (mean, *aux)

            grads, (mean, weight, states, after) = jax.grad(scaled, has_aux=True)(state.params)
            if state.loss_scale is not None:
                grads = jax.tree.map(lambda g: g.astype(jnp.float32) / scale, grads)
            return grads, mean, weight, states, after

        if num_microbatches == 1:
            grads, mean, _, states, model_state = part(jnp.int32(0), state.model_state)
            return grads, mean, states, model_state

        def add(index: Any, carry: Any) -> Any:
            grads, total, weights, states, model_state = carry
            new, mean, weight, new_states, model_state = part(index, model_state)
            grads = jax.tree.map(lambda a, b: a + b * weight, grads, new)
            return grads, total + mean * weight, weights + weight, merge(states, new_states), model_state

        merge = experiment.objective.merge
        zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), state.params)
        start = (zeros, jnp.float32(0), jnp.float32(0), experiment.objective.empty(), state.model_state)
        grads, total, weights, states, model_state = jax.lax.fori_loop(0, num_microbatches, add, start)
        grads = jax.tree.map(lambda g, p: safe_ratio(g, weights).astype(p.dtype), grads, state.params)
        return grads, safe_ratio(total, weights), states, model_state

    return gradient


def make_train_step(experiment: Experiment) -> Callable[..., Any]:
    """Return the step of an experiment, a pure function.

    Args:
        experiment: what is trained.

    Returns:
        `step(state, microbatch) -> (state, loss, grads)`: the state after one update, the mean loss before
        it (float32 scalar), and the gradients.

    Source: original.
    """
    gradient = make_gradient(experiment)
    optimizer = optax.with_extra_args_support(experiment.optimizer)

    def step(state: TrainState, microbatch: Callable[[Any], Batch]) -> tuple[TrainState, jax.Array, Tree]:
        grads, loss, states, model_state = gradient(state, microbatch)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params, value=loss)
        new = state.replace(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            model_state=model_state,
            opt_state=opt_state,
            metrics=experiment.objective.merge(state.metrics, states),
        )
        if state.loss_scale is not None:
            finite = jnp.isfinite(optax.tree.norm(grads))
            kept = state.replace(step=new.step, metrics=new.metrics)
            # An overflow of the scaled gradients skips the update: the scale was too large, not the loss wrong.
            new = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, kept)
            new = new.replace(loss_scale=state.loss_scale.adjust(finite))
        return new, loss, grads

    return step
