"""`evaluate`: compute the metrics of the weights of a run that is in a work directory."""

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from jax.sharding import Mesh

from accelnet import runtime
from accelnet.arguments import flags, names, number, path, word
from accelnet.errors import UserError
from accelnet.experiment import Experiment, check_experiment
from accelnet.parallel.layout import Strategy
from accelnet.parallel.memory import exhaustion_explained
from accelnet.terminal import say
from accelnet.training.checkpoint import Checkpoints
from accelnet.training.evaluator import Evaluator
from accelnet.training.hosts import HANG_SECONDS, supervised
from accelnet.training.program import check_fits, prepare
from accelnet.training.rows import best_step, with_rows
from accelnet.training.run import Run
from accelnet.training.stored import refitted


def evaluate(
    experiment: Experiment,
    workdir: str | Path,
    *,
    best: bool = False,
    splits: Sequence[str] | None = None,
    mesh: str | Mesh | None = None,
    strategy: Strategy = "jit",
    hang_timeout: float = HANG_SECONDS,
) -> Run:
    """Evaluate the weights of a run that is in a work directory.

    What was fitted to the training rows there, such as means and deviations, is applied to the data of `experiment`.

    Args:
        experiment: Experiment that was trained there.
        workdir: Directory of the run.
        best: Take the checkpoint with the best validation metric, not the newest.
        splits: Splits to evaluate. None: all; an empty list loads the weights alone.
        mesh: As of `fit`; it need not be that of the training.
        strategy: As of `fit`.
        hang_timeout: As of `fit`.

    Returns:
        The `Run` as it was at the checkpoint. Its result is empty.

    Raises:
        UserError: if there is no checkpoint, or it does not fit the experiment.
    """
    runtime.prepare()
    check_experiment(experiment)
    flags(best=best)
    number("hang_timeout", hang_timeout, above=0)
    workdir = path("workdir", workdir)
    if splits is not None:
        splits = [
            word("a split to evaluate", split, tuple(experiment.data.splits)) for split in names("splits", splits)
        ]
    with supervised(None, hang_timeout) as hosts, exhaustion_explained(), ExitStack() as stack:
        experiment = refitted(experiment, workdir, hosts)
        feed, programs = prepare(experiment, mesh, strategy)
        stack.callback(feed.close)
        check_fits(programs, feed)
        checkpoints = Checkpoints(workdir, hosts=hosts, complete=partial(with_rows, workdir, say))
        hosts.mark(0, "compile")
        step = best_step(checkpoints, experiment.best_metric, experiment.best_is_lower) if best else None
        found = checkpoints.restore(programs.abstract_state, step)
        if found is None:
            raise UserError(f"{workdir} holds no checkpoint yet: train in it first")
        state, record = found
        evaluator = Evaluator(experiment, feed, programs, hosts)
        wanted = experiment.data.splits if splits is None else splits
        metrics = {split: evaluator.evaluate(state, split) for split in wanted}
        return Run(experiment, state, metrics, list(record["rows"]), {}, evaluator.weights(state))
