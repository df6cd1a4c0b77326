"""What is shown of a run while it trains, and to whom else."""

from collections.abc import Sequence
from pathlib import Path

from accelnet.experiment import Experiment
from accelnet.tracking.tracker import Tracker, Tracking
from accelnet.training.progress import Progress, make_progress
from accelnet.training.settings import settings_of


def display_of(experiment: Experiment, *, show: bool) -> Progress:
    """Return the display of a run: with its epochs, and the validation metric that matters most.

    That is `best_metric`, or, where it is the loss, the first other metric with a direction.

    Args:
        experiment: What is trained.
        show: Whether anything is shown.

    Example:
        >>> import accelnet as an
        >>> experiment = an.Experiment(
        ...     data=an.data.xor(),
        ...     model=lambda rngs: an.models.MLP(2, (2,), 1, rngs=rngs),
        ...     batch_size=4,
        ...     steps=2,
        ...     optimizer=an.optim.sgd(0.1),
        ...     objective=an.objectives.sigmoid_cross_entropy(),
        ... )
        >>> display_of(experiment, show=False).update(1)
    """
    directions = experiment.objective.directions
    ordered = [name for name, lower in directions.items() if lower is not None and name != "loss"]
    metric = experiment.best_metric if experiment.best_metric != "loss" else next(iter(ordered), "loss")
    steps_per_epoch = experiment.order.steps_per_epoch if experiment.data.stream is None else None
    return make_progress(
        experiment.name, experiment.total_steps, show=show, steps_per_epoch=steps_per_epoch, metric=metric,
        lower_is_better=directions.get(metric),
    )  # fmt: skip


def tracking_of(experiment: Experiment, trackers: Sequence[Tracker], workdir: Path | None) -> Tracking:
    """Begin the tracking of a run under its name, or that of its work directory, with its settings."""
    name = experiment.name if workdir is None else f"{experiment.name}-{workdir.name}"
    return Tracking(trackers, {**settings_of(experiment), **experiment.config}, name, workdir)
