"""A chunk of training steps as one compiled loop, cut where something has to happen on the host."""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from accelnet.data.abstract_feed import AbstractFeed
from accelnet.experiment import Experiment
from accelnet.optim import learning_rates
from accelnet.parallel.layout import ONE_DEVICE, SAME, Layout
from accelnet.scopes import FAILURE, LOOP, scope
from accelnet.training.state import TrainState
from accelnet.training.step import make_train_step

Tree = Any


class Failure(flax.struct.PyTreeNode):
    """A step whose loss was not finite, or, at the end of a chunk, weights that are not.

    Attributes:
        happened: Whether there was one, bool scalar.
        loss: Loss at that step, float32 scalar.
        grad_norm: Global norm of the gradients there, float32 scalar; 0 if the loss was finite.
        param_norm: Global norm of the weights that the loss was computed with, or of those at the end, float32 scalar.
    """

    happened: jax.Array
    loss: jax.Array
    grad_norm: jax.Array
    param_norm: jax.Array

    def explain(self, where: str) -> str:
        """Tell what happened, in words."""
        if np.isfinite(self.loss):
            norm = f"the update {where} made the global norm of the weights {self.param_norm:.4g}"
            return f"{norm}, after a loss of {self.loss:.4g}"
        norms = f"{self.grad_norm:.4g} and that of the weights {self.param_norm:.4g}"
        return f"the loss became {self.loss} {where}; there the global norm of the gradients was {norms}"


def make_train_chunk(experiment: Experiment, feed: AbstractFeed, layout: Layout = ONE_DEVICE) -> Callable[..., Any]:
    """Return the function that runs a number of steps.

    `train_chunk(state, operand, num_steps, reset) -> (state, report)`. `num_steps` is an int32 operand, so one
    program serves chunks of every length, and where a run is cut into chunks cannot change a bit of it.
    `reset` (bool) empties the metrics first. `report` holds "metrics" (float32 scalars by name, over the steps
    since the last reset), "loss" of the last step, "rates" (learning rates of the last update by name, as of
    `accelnet.optim.learning_rates`) and "failure". A step whose loss is not finite ends the chunk.
    """
    step = make_train_step(experiment, layout, feed.order.num_microbatches, _observe_failure)
    objective = experiment.objective

    def microbatch(operand: Tree, number: Any, part: Any) -> Tree:
        data, index, step, seed = operand
        with scope("input"):
            return feed.train_batch(data, index, step, number, seed, part)

    def train_chunk(state: TrainState, operand: Tree, num_steps: jax.Array, reset: jax.Array) -> Any:
        metrics = jax.tree.map(lambda new, old: jnp.where(reset, new, old), objective.empty(), state.metrics)

        def goes_on(carry: Any) -> jax.Array:
            index, _, _, failure = carry
            return (index < num_steps) & ~failure.happened

        def body(carry: Any) -> Any:
            index, state, _, _ = carry
            operands = (operand, index, state.step, state.seed)
            after, loss, failure = step(state, microbatch, operands, (feed.train_spec, SAME, SAME, SAME))
            return index + 1, after, loss, failure

        nothing = jnp.float32(0)  # NaN would be taken for a fault by jax_debug_nans
        start = jnp.int32(0), state.replace(metrics=metrics), nothing, Failure(jnp.bool_(False), *[nothing] * 3)
        with scope(LOOP):
            _, state, loss, failure = jax.lax.while_loop(goes_on, body, start)
        # The last update can spoil the weights without a loss that shows it; such weights must not be saved as good.
        norm = _norm(state.params)
        spoiled = Failure(~jnp.isfinite(norm), loss, nothing, norm)
        failure = jax.tree.map(lambda a, b: jnp.where(failure.happened, a, b), failure, spoiled)
        report = {
            "metrics": objective.compute(state.metrics),
            "loss": loss,
            "rates": {name: jnp.asarray(rate, jnp.float32) for name, rate in learning_rates(state.opt_state).items()},
            "failure": failure,
        }
        return state, report

    return train_chunk


def _observe_failure(loss: jax.Array, grads: Tree, params: Tree) -> tuple[Tree, Failure]:
    failed, nothing = ~jnp.isfinite(loss), jnp.float32(0)
    # The norms cost a pass over the gradients, 4 % of an MLP's step: only when there is something to say.
    with scope(FAILURE):  # by which `plan` knows that this does not count
        norms = jax.lax.cond(
            failed, lambda *trees: tuple(map(_norm, trees)), lambda *_: (nothing, nothing), grads, params
        )
    # No norm is below 0. So the update has to wait for the norms; free to do it before, XLA copied all weights in every
    # step, to have them for the norms afterwards: 4 % of an MLP's step.
    params = jax.tree.map(lambda p: jnp.where(norms[1] < 0, jnp.zeros((), p.dtype), p), params)
    return params, Failure(failed, loss, *norms)


def _norm(tree: Tree) -> jax.Array:
    """Return the global norm, float32 scalar, in half as many operations to trace as `optax.tree.norm`."""
    squares = jnp.float32(0)
    for leaf in jax.tree.leaves(tree):
        x = jnp.abs(leaf) if jnp.iscomplexobj(leaf) else leaf
        squares += jnp.sum(jax.lax.square(x.astype(jnp.promote_types(x.dtype, jnp.float32))))
    return jnp.sqrt(squares).astype(jnp.float32)
