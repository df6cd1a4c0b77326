"""Short trainings that ask whether a long one is worth starting."""

import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np

from accelnet.arguments import integer
from accelnet.data.variant import changed, refuse_stream
from accelnet.errors import UserError
from accelnet.experiment import Experiment
from accelnet.training.events import Every
from accelnet.training.run import Run

_STEPS = 2


def rehearsal(experiment: Experiment) -> Experiment:
    """Return the experiment at its shortest: two updates, and two batches of each split.

    Args:
        experiment: What is to be trained.

    Example:
        >>> import accelnet as an
        >>> experiment = an.Experiment(
        ...     data=an.data.xor(),
        ...     model=lambda rngs: an.models.MLP(2, (2,), 1, rngs=rngs),
        ...     batch_size=4,
        ...     epochs=900,
        ...     optimizer=an.optim.sgd(0.1),
        ...     objective=an.objectives.sigmoid_cross_entropy(),
        ... )
        >>> rehearsal(experiment).total_steps
        2
    """
    size = _STEPS * experiment.order.batch_size
    keeps = experiment.data.stream is not None  # its training rows have no numbers
    ranges = {
        split: rows if keeps and split == "train" else rows[: max(size, 1)]
        for split, rows in experiment.data.splits.items()
    }
    every = Every(steps=1)
    return experiment.replace(
        data=_with_ranges(experiment, ranges), steps=_STEPS, epochs=None, log_every=every, eval_every=every,
        final_evaluation=None,
    )  # fmt: skip


def rehearse(experiment: Experiment, train: Callable[[Experiment, str], Run], restore: Callable[..., Run]) -> Run:
    """Train an experiment at its shortest, save it, and restore it; nothing is kept.

    Args:
        experiment: What is to be trained.
        train: Function that trains an experiment in a directory, such as `fit`.
        restore: Function that evaluates what is in there, such as `evaluate`.

    Returns:
        The run as it was restored.

    Raises:
        UserError: if what was restored is not what was saved.
    """
    short = rehearsal(experiment)
    with tempfile.TemporaryDirectory() as directory:
        run = train(short, directory)
        restored = restore(short, directory, splits=short.final_splits)
    for split, metrics in restored.metrics.items():
        for name, value in metrics.items():
            saved = run.metrics[split][name]
            if not np.allclose(saved, value, rtol=1e-4, atol=1e-6, equal_nan=True):
                raise UserError(
                    f"{name} of {split} was {saved} before the state was saved and {value} after it was restored: "
                    "the model or the data holds something that is not part of the state, such as a global variable"
                )
    return restored


def overfitting(experiment: Experiment, batches: int) -> Experiment:
    """Return the experiment on its first batches alone, again and again, without augmentation; they validate it, too.

    A model, a loss and an optimizer that work bring the loss of a few batches near its minimum.

    Args:
        experiment: What is to be trained.
        batches: Number of batches, 1 to those of an epoch.

    Raises:
        UserError: if there are fewer batches, or the data is a stream.

    Example:
        >>> import accelnet as an
        >>> experiment = an.Experiment(
        ...     data=an.data.digits(),
        ...     model=lambda rngs: an.models.MLP(64, (8,), 10, rngs=rngs),
        ...     batch_size=32,
        ...     optimizer=an.optim.adam(0.01),
        ...     objective=an.objectives.softmax_cross_entropy(),
        ...     epochs=10,
        ... )
        >>> few = overfitting(experiment, 2)
        >>> few.data.num_examples("train"), few.data.num_examples("validation"), few.total_steps
        (64, 64, 400)
    """
    integer("the number of batches to overfit", batches, 1, experiment.order.steps_per_epoch)
    refuse_stream(experiment.data, "repeated")
    rows = experiment.data.splits["train"][: batches * experiment.order.batch_size]
    ranges = dict.fromkeys(experiment.data.splits, range(rows.stop, rows.stop)) | {"train": rows, "validation": rows}
    return experiment.replace(
        data=_with_ranges(experiment, ranges, augment=None),
        steps=experiment.total_steps,
        epochs=None,
        final_evaluation=None,
    )


def _with_ranges(experiment: Experiment, ranges: dict[str, range], **fields: Any) -> Any:
    old: Any = experiment.data.splits
    splits = type(old)(ranges, old.origin, old.num_given, old.groups, old.by_time)
    return changed(experiment.data, splits=splits, **fields)
