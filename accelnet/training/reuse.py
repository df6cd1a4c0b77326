"""One function for all runs of an experiment in a process: what jax has traced and compiled for one serves the next."""

import dataclasses
import threading
import weakref
from collections.abc import Callable
from typing import Any

from accelnet.data.abstract_feed import AbstractFeed
from accelnet.data.dataset import Data
from accelnet.experiment import Experiment
from accelnet.fingerprint import fingerprint
from accelnet.parallel.layout import Layout

# What programs get as operands, and what happens on the host between two calls. The length counts as its steps.
_OUTSIDE = {
    "data", "seed", "epochs", "steps", "log_every", "eval_every", "save_every", "keep_last", "keep_best", "best_metric",
    "early_stopping", "events", "final_evaluation", "initial", "name", "config", "script",
}  # fmt: skip
# Functions of all data sets that are kept, the last that were used: an experiment has four, of some megabytes each.
_MOST = 32
_USED: dict[Any, weakref.ref[Data]] = {}
_ONE_AT_A_TIME = threading.Lock()


class Reused:
    """Make functions of an experiment, or find those that were made for the same experiment before.

    Two are the same if their data, model, optimizer and all else that decides about programs are the same objects, and
    these have not changed in between, as far as fingerprints tell. So another seed, work directory or event asks for no
    compilation; jax itself compiles a function anew where settings of jax are others. What is kept lives as long as the
    data at most.

    Args:
        experiment: What is trained.

    Example:
        >>> import numpy as np, accelnet as an
        >>> experiment = Experiment(
        ...     data=an.data.xor(),
        ...     model=lambda rngs: an.models.MLP(2, (4,), 1, rngs=rngs),
        ...     optimizer=an.optim.adam(1e-2),
        ...     objective=an.objectives.sigmoid_cross_entropy(),
        ...     batch_size=4,
        ...     steps=3,
        ... )
        >>> def make(experiment):
        ...     return lambda: experiment.total_steps
        >>> first = Reused(experiment)(make)
        >>> [Reused(experiment.replace(**other))(make) is first for other in ({"seed": 1}, {"steps": 4})]
        [True, False]
    """

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        names = (field.name for field in dataclasses.fields(experiment) if field.name not in _OUTSIDE)
        settings = [getattr(experiment, name) for name in names]
        of_data = experiment.data.prepare, experiment.data.augment
        objects = id(experiment.data), *map(_identity, settings)
        self._key = *objects, experiment.total_steps, fingerprint((settings, of_data))

    def __call__(self, make: Callable[..., Any], feed: AbstractFeed | None = None, layout: Layout | None = None) -> Any:
        """Return `make(experiment)` or `make(experiment, feed, layout)`, or what it made before.

        Args:
            make: Function of a module that makes a function to compile.
            feed: How batches reach it; it may be closed later.
            layout: Devices on which batches and weights lie.
        """
        arguments = [argument for argument in (feed, layout) if argument is not None]
        key = (
            make,
            self._key,
            None if feed is None else (type(feed), feed.eval_batch_size, feed.max_steps, feed.axes),
            None if layout is None else (layout.mesh, layout.strategy, tuple(layout.rules)),
        )
        data = self.experiment.data
        with _ONE_AT_A_TIME:
            # With the experiment, so that no other object gets the number of one in the key.
            function, _ = data.kept[key] = data.kept.get(key) or (make(self.experiment, *arguments), self.experiment)
            _USED.pop(key, None)
            _USED[key] = weakref.ref(data)
            while len(_USED) > _MOST:
                oldest = next(iter(_USED))
                if (other := _USED.pop(oldest)()) is not None:
                    other.kept.pop(oldest, None)
        return function


def _identity(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_identity, value))
    return value if value is None or isinstance(value, int | float | str) else id(value)
