"""What a state is evaluated with, and a chunk of evaluation batches as one compiled loop."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from accelnet.data.abstract_feed import AbstractFeed
from accelnet.experiment import Experiment
from accelnet.models.precision import with_precision
from accelnet.models.pure import merged
from accelnet.optim import eval_params
from accelnet.parallel.layout import ONE_DEVICE, SAME, Layout
from accelnet.parallel.noise import shard_key
from accelnet.scopes import LOOP, scope
from accelnet.training.batch import num_examples, prepared, training_batch
from accelnet.training.state import EVALUATION, TrainState, random_key
from accelnet.training.step import make_loss, merge_parts

Tree = Any

# Batches that the statistics of averaged weights are computed from: 4,096 examples at the usual 64.
_STATISTICS_BATCHES = 64


class Weights(flax.struct.PyTreeNode):
    """What a state is evaluated with.

    Attributes:
        params: Parameters that are trained, or their average where the optimizer keeps such.
        frozen: Parameters that are not trained.
        model_state: State of the model, with the batch statistics that belong to these params.
        step: Updates so far, int32 scalar.
    """

    params: Any
    frozen: Any
    model_state: Any
    step: Any

    @classmethod
    def of(cls, state: Any) -> "Weights":
        """Return the weights that are trained."""
        return cls(state.params, state.frozen, state.model_state, state.step)


def keeps_average(state: TrainState) -> bool:
    """Say whether a state, or one of shapes, is evaluated with other weights than those that are trained."""
    same = []

    def look(state: TrainState) -> Any:
        params = eval_params(state.opt_state, state.params)
        same.append(params is state.params)
        return params

    jax.eval_shape(look, state)
    return not same[0]


def make_weights(experiment: Experiment, feed: AbstractFeed, layout: Layout = ONE_DEVICE) -> Callable[..., Weights]:
    """Return the function that gives the weights to evaluate a state with.

    `weights(state, operand) -> Weights`. `operand` is that of the training steps 0 to `num_statistics_batches(...)`.
    Averaged weights have other activations than those that they are the average of, and with running averages of the
    latter a network can lose most of its accuracy. So BatchNorm's statistics are computed anew: the mean over batches,
    as training sees them.

    Source: Izmailov et al., "Averaging Weights Leads to Wider Optima and Better Generalization", 2018, section 3.2.
    """
    apply = with_precision(experiment.pure_model.apply, experiment.precision)
    count = num_statistics_batches(experiment, feed)

    def of_part(cuts: Tree, params: Tree, others: Any, operand: Tree) -> Tree:
        frozen, model_state, seed = others
        part, params = layout.parts.index(), merged(layout.parts.gather(params, cuts), frozen)

        def add(index: Any, mean: Tree) -> Tree:
            batch = feed.train_batch(operand, index, index, jnp.int32(0), seed, part)
            batch, key = training_batch(experiment, batch, layout, part, seed, index, jnp.int32(0))
            mask = batch["mask"] if experiment.order.has_padding else None
            settings = {"key": key, "train": True, "axes": layout.batch_axes, "batch_statistics": True, "mask": mask}
            offered = {"step": index, "progress": experiment.progress(index)}
            _, new, *_ = apply(params, model_state, batch["inputs"], **settings, **offered)
            return jax.tree.map(lambda a, b: a if b is None else a + (b - a) / (index + 1), mean, new)

        return layout.parts.agreed(jax.lax.fori_loop(0, count, add, model_state))

    def weights(state: TrainState, operand: Tree) -> Weights:
        params, model_state = eval_params(state.opt_state, state.params), state.model_state
        if params is not state.params and jax.tree.leaves(model_state):
            cuts = layout.cuts(params)
            of_parts = layout.parts.map(partial(of_part, cuts), (cuts, SAME, feed.train_spec), SAME)
            with scope("statistics"):
                model_state = of_parts(params, (state.frozen, model_state, state.seed), operand)
        return Weights(params, state.frozen, model_state, state.step)

    return weights


def num_statistics_batches(experiment: Experiment, feed: AbstractFeed) -> int:
    """Return from how many training batches the statistics of averaged weights are computed."""
    whole = max(1, experiment.order.num_examples // experiment.order.batch_size)
    return min(whole, _STATISTICS_BATCHES, feed.max_steps or _STATISTICS_BATCHES)


def make_eval_chunk(experiment: Experiment, feed: AbstractFeed, layout: Layout = ONE_DEVICE) -> Callable[..., Any]:
    """Return the function that evaluates a number of batches.

    `eval_chunk(weights, metrics, operand, first, num_batches, start, stop) -> (metrics, values)`: the metric states
    with the batches `first` to `first + num_batches` of the rows `start` to `stop` merged in, and what they compute to.
    """
    loss = make_loss(experiment, layout.parts)
    objective = experiment.objective

    def of_part(cuts: Tree, params: Tree, others: Tree, operand: Tree, numbers: Any) -> Tree:
        part, params = layout.parts.index(), layout.parts.gather(params, cuts)
        frozen, model_state, step = others
        first, num_batches, start, stop = numbers

        def body(index: jax.Array, metrics: Tree) -> Tree:
            with scope("input"):
                batch = feed.eval_batch(operand, index, first, start, stop, part)
            batch = prepared(experiment, batch)
            # Noise in evaluation, such as a VAE's, is that of the batch's number: the same in every evaluation.
            key = random_key(jnp.uint32(0), EVALUATION, first + index)
            key = shard_key(key, part, layout.num_parts, num_examples(batch))
            settings = {"key": key, "train": False, "frozen": frozen, "step": step}
            _, (_, _, states, _) = loss(params, model_state, batch, **settings)
            return objective.merge(metrics, states)

        with scope(LOOP):
            states = jax.lax.fori_loop(0, num_batches, body, objective.empty())
        return merge_parts(experiment, layout.parts, states)

    def eval_chunk(
        weights: Weights, metrics: Tree, operand: Tree,
        first: jax.Array, num_batches: jax.Array, start: jax.Array, stop: jax.Array,
    ) -> Any:  # fmt: skip
        cuts = layout.cuts(weights.params)
        of_parts = layout.parts.map(partial(of_part, cuts), (cuts, SAME, feed.eval_spec, SAME), SAME)
        others = (weights.frozen, weights.model_state, weights.step)
        states = of_parts(weights.params, others, operand, (first, num_batches, start, stop))
        metrics = objective.merge(metrics, states)
        return metrics, objective.compute(metrics)

    return eval_chunk
