"""When a run logs, saves and evaluates, where its experiment does not say."""

from accelnet.experiment import Experiment
from accelnet.training.rhythm import Every, Rhythm

_LOGS_PER_RUN = 100
_EVALUATIONS_PER_RUN = 50
SAVE_SECONDS = 300.0


def rhythms_of(experiment: Experiment) -> dict[str, Rhythm]:
    """Return when a run of an experiment logs, saves and evaluates, by name.

    Example:
        >>> import accelnet as an
        >>> experiment = an.Experiment(
        ...     data=an.data.xor(),
        ...     model=lambda rngs: an.models.MLP(2, (2,), 1, rngs=rngs),
        ...     batch_size=4,
        ...     steps=500,
        ...     optimizer=an.optim.sgd(0.1),
        ...     objective=an.objectives.sigmoid_cross_entropy(),
        ... )
        >>> {name: (rhythm.steps, rhythm.seconds) for name, rhythm in rhythms_of(experiment).items()}
        {'log': (5, None), 'save': (None, 300.0)}
    """
    total, per_epoch = experiment.total_steps, experiment.order.steps_per_epoch
    rhythms: dict[str, Rhythm] = {
        "log": experiment.log_every or Every(steps=max(1, total // _LOGS_PER_RUN)),
        "save": experiment.save_every or Every(seconds=SAVE_SECONDS),
    }
    if experiment.data.num_examples("validation"):
        epochs = -(-total // (per_epoch * _EVALUATIONS_PER_RUN))
        rhythms["eval"] = experiment.eval_every or Every(epochs=max(1, epochs))
    return rhythms
