"""Histograms of weights and gradients for TensorBoard, at every evaluation."""

from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from accelnet.experiment import Experiment
from accelnet.parallel.layout import to_addressable
from accelnet.parallel.rules import path_names
from accelnet.training.events import Event, Moment
from accelnet.training.step import make_gradient
from accelnet.training.summaries import at_evaluations

_BINS = 30


def histograms(experiment: Experiment, workdir: str | Path) -> Event:
    """Return an event that writes histograms of weights and gradients for TensorBoard into a work directory.

    They are written at every evaluation, or, without a validation split, every epoch. The price: the gradient of a
    batch is one more program to compile, and each time one step more, and all weights go to the host.

    Args:
        experiment: What is trained.
        workdir: Work directory of the run.

    Returns:
        An event for `fit(events=[...])`.

    Raises:
        UserError: if several processes take part.

    Example:
        >>> import tempfile, accelnet as an
        >>> experiment = an.Experiment(
        ...     data=an.data.xor(),
        ...     model=lambda rngs: an.models.MLP(2, (2,), 1, rngs=rngs),
        ...     batch_size=4,
        ...     steps=3,
        ...     optimizer=an.optim.sgd(0.1),
        ...     objective=an.objectives.sigmoid_cross_entropy(),
        ... )
        >>> histograms(experiment, tempfile.mkdtemp()).when
        Every(steps=None, epochs=1, seconds=None)
    """
    return at_evaluations(experiment, workdir, "histograms", _Histograms(experiment))


class _Histograms:
    def __init__(self, experiment: Experiment) -> None:
        self._experiment = experiment
        self._gradient = jax.jit(partial(_gradient, experiment))

    def __call__(self, moment: Moment) -> list[Any]:
        from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]
        from tensorboardX.summary import make_histogram

        trees = {"weights": moment.state.params}
        if self._experiment.data.stream is None:  # whose batches come once
            trees["gradients"] = self._gradient(moment.state, self._batch(moment))
        return [
            Summary.Value(tag=f"{kind}/{path}", histo=make_histogram(np.asarray(finite, np.float64), _BINS, None))
            for kind, tree in trees.items()
            for path, leaf in path_names(to_addressable(tree))
            if (finite := (flat := np.ravel(np.asarray(leaf, np.float32)))[np.isfinite(flat)]).size
        ]

    def _batch(self, moment: Moment) -> dict[str, Any]:
        """Return the microbatches of the next step."""
        order, seed = self._experiment.order, int(moment.state.seed)
        rows, mask = order.block(range(moment.step, moment.step + 1), seed=seed)
        taken = self._experiment.data.take(rows[0].reshape(-1))
        return jax.tree.map(lambda a: a.reshape(*rows.shape[1:], *a.shape[1:]), taken) | {"mask": mask[0]}


def _gradient(experiment: Experiment, state: Any, batches: Any) -> Any:
    def microbatch(_: Any, number: Any, __: Any) -> Any:
        return jax.tree.map(lambda array: array[number], batches)

    return make_gradient(experiment)(state, microbatch)[0]
