"""Trainings of the search: the run's own recipe, from given weights, at a learning rate that is found anew."""

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from accelnet.data.abstract_feed import AbstractFeed
from accelnet.errors import DivergenceError
from accelnet.experiment import Experiment
from accelnet.optim import hyperparams, with_hyperparams
from accelnet.parallel.memory import exhaustion_explained
from accelnet.terminal import say
from accelnet.training.ends import begin, finish
from accelnet.training.hosts import HANG_SECONDS, supervised
from accelnet.training.program import Programs, check_fits, prepare
from accelnet.training.progress import Progress
from accelnet.training.rhythm import Every
from accelnet.training.run import Run
from accelnet.training.state import LossScale, TrainState, separated
from accelnet.training.timing import Timing
from accelnet.training.workdir import DiskWorkdir, Workdir

FACTORS = (1.0, 0.3, 0.1)  # of the run's own rate: what is trained already needs less
SHARE = 0.1  # of the training, for each of them
_FEW_STEPS = 1000  # below which compiling takes longer than training


@dataclass(frozen=True, eq=False)
class Start:
    """Weights that a training starts from, as `Experiment.initial` takes them.

    Attributes:
        params: Parameters, nested dict of arrays.
        model_state: Whatever else the model keeps, nested dict of arrays.
    """

    params: Any
    model_state: Any


def state_of(experiment: Experiment, params: Any, model_state: Any, step: int) -> TrainState:
    """Return the `TrainState` with given weights; nothing is compiled but the optimizer's start.

    Args:
        experiment: Experiment whose model they suit.
        params: Parameters, frozen ones among them.
        model_state: State of the model.
        step: Updates so far.
    """
    trained, frozen = separated(jax.tree.map(jnp.array, params), experiment.frozen)
    return TrainState(
        step=jnp.int32(step),
        seed=jnp.uint32(experiment.seed),
        params=trained,
        model_state=jax.tree.map(jnp.array, model_state),
        opt_state=jax.jit(experiment.transformation.init)(trained),
        metrics=experiment.objective.empty(),
        loss_scale=LossScale.first() if experiment.precision == "float16" else None,
        frozen=frozen,
    )


def untrained_run(experiment: Experiment, params: Any, model_state: Any) -> Run:
    """Return weights that some method made as a `Run`, at the last step of its experiment.

    Args:
        experiment: Experiment whose model they suit.
        params: Parameters, frozen ones among them.
        model_state: State of the model.

    Example:
        >>> import accelnet as an
        >>> experiment = an.Experiment(
        ...     data=an.data.xor(),
        ...     model=lambda rngs: an.models.MLP(2, (4,), 1, rngs=rngs),
        ...     optimizer=an.optim.adam(0.01),
        ...     objective=an.objectives.squared_error(),
        ...     batch_size="full",
        ...     steps=5,
        ... )
        >>> params, model_state = experiment.pure_model.init(jax.random.key(0), experiment.sample_inputs())
        >>> untrained_run(experiment, params, model_state).step
        5
    """
    return Run(experiment, state_of(experiment, params, model_state, experiment.total_steps), {}, [], {})


def of_length(experiment: Experiment, factor: float) -> Experiment:
    """Return an experiment that is trained a multiple of its length; its settings say so too.

    Args:
        experiment: The experiment.
        factor: Multiple, above 0.
    """
    name = "epochs" if experiment.steps is None else "steps"
    now = getattr(experiment, name)
    new = now * factor if name == "epochs" else max(1, round(now * factor))
    new = int(new) if new == int(new) else new
    told = {name: new} if experiment.config.get(name) == now else {}
    return experiment.replace(**{name: new}, config={**experiment.config, **told})


def without_test(experiment: Experiment) -> Experiment:
    """Return an experiment whose end leaves the test split alone, and in which nothing of the user's happens."""
    return experiment.replace(final_evaluation=["validation"], events=())


def find_rate(
    experiment: Experiment, start: Start, display: Progress, factors: Sequence[float] = FACTORS
) -> dict[str, Any]:
    """Try a few learning rates in short trainings from the same weights, with the schedule scaled to their length.

    Args:
        experiment: Experiment that will be trained.
        start: Weights to start from.
        display: Where progress is shown.
        factors: Multiples of the experiment's own rate.

    Returns:
        "factor", the one with the lowest validation loss, and "tried": "factor", "learning_rate" and "loss" of each,
        None where it diverged. Where the optimizer has no rate that can be changed, the factor is 1 and none is tried.
    """
    short = of_length(experiment, SHARE).replace(early_stopping=None, keep_best=0)
    short = short.replace(eval_every=Every(steps=short.total_steps), log_every=Every(steps=short.total_steps))
    feed, programs = prepare(short)
    if len(factors) * short.total_steps < _FEW_STEPS:
        quickly = [replace(one, runs_once=True) for one in (programs.train, programs.evaluate)]
        programs = replace(programs, train=quickly[0], evaluate=quickly[1])
    tried: list[dict[str, Any]] = []
    try:
        peak = _rate(state_of(short, start.params, start.model_state, 0))
        if peak is None:
            return {"factor": 1.0, "tried": []}
        for factor in factors:
            try:
                run = _train(short, feed, programs, start, factor, None, display)
                loss = run.metrics["validation"]["loss"]
            except DivergenceError:
                loss = math.inf
            known = loss if math.isfinite(loss) else None
            tried.append({"factor": factor, "learning_rate": factor * peak, "loss": known})
    finally:
        feed.close()
    finite = [one for one in tried if one["loss"] is not None]
    best = min(finite, key=lambda one: one["loss"])["factor"] if finite else min(factors)
    return {"factor": best, "tried": tried}


def train(experiment: Experiment, start: Start | None, factor: float, workdir: Path | None, display: Progress) -> Run:
    """Train an experiment to its end from weights, at a multiple of its own learning rate; go on from `workdir`.

    Args:
        experiment: What is trained.
        start: Weights to start from. None: new ones.
        factor: Multiple of the rate.
        workdir: Directory of the run. None: nowhere.
        display: Where progress is shown.

    Raises:
        DivergenceError: if the loss became NaN or infinite.
    """
    feed, programs = prepare(experiment)
    try:
        check_fits(programs, feed)
        return _train(experiment, feed, programs, start, factor, workdir, display)
    finally:
        feed.close()


def _train(
    experiment: Experiment,
    feed: AbstractFeed,
    programs: Programs,
    start: Start | None,
    factor: float,
    workdir: Path | None,
    display: Progress,
) -> Run:
    def begun(_: Any) -> TrainState:
        assert start is not None
        state = _at_rate(state_of(experiment, start.params, start.model_state, 0), factor)
        return jax.tree.map(_placed, state, programs.abstract_state)

    # The weights are there: no program has to be compiled for a start.
    changed = programs if start is None else replace(programs, starting_from=lambda _: begun)
    with supervised(workdir, HANG_SECONDS) as hosts, exhaustion_explained(), ExitStack() as stack:
        work = Workdir(experiment)
        if workdir is not None:
            work = DiskWorkdir(workdir, experiment, hosts, resume=True, allow_change=False, note=say)
        stack.callback(work.close)
        loop, state = begin(experiment, feed, changed, work, hosts, display, Timing())
        return finish(loop, loop.train(state))


def _placed(leaf: Any, like: Any) -> Any:
    return leaf if like.sharding is None else jax.device_put(leaf, like.sharding)


def _rate(state: TrainState) -> float | None:
    rate = hyperparams(state.opt_state).get("learning_rate")
    return None if rate is None else float(rate)


def _at_rate(state: TrainState, factor: float) -> TrainState:
    rate = _rate(state)
    if rate is None or factor == 1.0:
        return state
    return state.replace(opt_state=with_hyperparams(state.opt_state, learning_rate=factor * rate))
