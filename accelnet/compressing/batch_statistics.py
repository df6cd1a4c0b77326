"""Batch statistics of weights that were changed without training."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from accelnet.experiment import Experiment
from accelnet.parallel.layout import ONE_DEVICE
from accelnet.training.batch import training_batch

_STATISTICS_BATCHES = 32


def with_batch_statistics(experiment: Experiment, params: Any, model_state: Any) -> Any:
    """Return the model's state with batch statistics of its own activations: their mean over training batches.

    Weights that were changed have other activations than those that the running averages were taken of.

    Args:
        experiment: Experiment whose model they suit.
        params: Parameters, nested dict.
        model_state: State of the model; what is no floating-point number stays.
    """
    order, apply = experiment.order, experiment.pure_model.apply
    rows = experiment.data.splits["train"]
    size = min(order.batch_size, len(rows))
    count = min(_STATISTICS_BATCHES, len(rows) // size)
    chosen = rows.start + np.random.default_rng(experiment.seed).permutation(len(rows))[: count * size]

    @jax.jit
    def statistics(params: Any, model_state: Any, batch: Any, index: Any) -> Any:
        part = ONE_DEVICE.parts.index()
        batch, key = training_batch(
            experiment, batch, ONE_DEVICE, part, jnp.uint32(experiment.seed), index, jnp.int32(0)
        )
        offered = {"step": index, "progress": experiment.progress(index)}
        settings = {"key": key, "train": True, "batch_statistics": True}
        return apply(params, model_state, batch["inputs"], **settings, **offered)[1]

    mean = jax.tree.map(np.asarray, model_state)
    for index in range(count):
        batch = experiment.data.take(np.sort(chosen[index * size : (index + 1) * size]))
        new = statistics(params, model_state, {**batch, "mask": np.ones(size, bool)}, jnp.int32(index))
        mean = jax.tree.map(partial(_mean, index), mean, jax.device_get(new))
    return jax.tree.map(lambda one, like: jnp.asarray(one, jnp.result_type(like)), mean, model_state)


def _mean(index: int, before: Any, new: Any) -> Any:
    """Add the value of one more batch to the mean; what is no floating-point number stays."""
    return before + (new - before) / (index + 1) if np.issubdtype(np.asarray(new).dtype, np.floating) else before
