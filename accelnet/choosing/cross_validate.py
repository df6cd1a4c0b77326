"""Cross-validate an experiment: train it once for each fold, with the same programs, and say how good it is."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from accelnet import runtime
from accelnet.arguments import flags, instance
from accelnet.choosing.cross_validation import CrossValidation, CrossValidationFile, make_cross_validation
from accelnet.data.dataset import Data
from accelnet.data.feed import AbstractFeed
from accelnet.data.folds import Folds
from accelnet.data.variant import changed, refit_of
from accelnet.errors import DivergenceError, UserError
from accelnet.experiment import Experiment, check_experiment
from accelnet.json_file import plain_value
from accelnet.parallel.memory import exhaustion_explained
from accelnet.terminal import say
from accelnet.training.ends import begin, finish
from accelnet.training.hosts import HANG_SECONDS, Hosts, supervised
from accelnet.training.program import Programs, check_fits, prepare
from accelnet.training.progress import PartOfProgress, Progress, make_progress
from accelnet.training.timing import Timing
from accelnet.training.workdir import DiskWorkdir, Workdir
from accelnet.training.writable import check_workdir

# Array that tells a program which fold's `prepare` a batch is for.
_NUMBER = "number of the fold"


def cross_validate(
    experiment: Experiment,
    folds: Folds,
    *,
    workdir: str | Path | None = None,
    progress: bool = True,
    mesh: str | Mesh | None = None,
) -> CrossValidation:
    """Train an experiment once for each fold, and evaluate each on the rows that it did not see.

    Every fold is an ordinary run with the experiment's seed. Folds of equal numbers of training rows share their
    programs, which are compiled once. The test split is not evaluated. Early stopping, and whatever else looks at the
    validation split, makes the results look better than they are.

    Args:
        experiment: What is trained; its data is what the folds were made of.
        folds: `experiment.data.folds(...)`.
        workdir: Directory of cross_validation.json and, in fold-1, fold-2 and so on, of the runs. What is finished
            there is not trained again. None: nowhere.
        progress: Show a progress display on standard error.
        mesh: As of `fit`.

    Returns:
        The `CrossValidation`.

    Raises:
        UserError: if folds are of other data, or `workdir` holds another cross-validation.
        DivergenceError: if the loss of a fold became NaN or infinite.
        PreemptedError: after SIGTERM, when the state is saved.

    Example:
        >>> import numpy as np, accelnet as an
        >>> data = an.data.from_arrays(np.eye(24, 2, dtype=np.float32), np.arange(24) % 2, num_classes=2)
        >>> experiment = an.Experiment(
        ...     data=data,
        ...     model=lambda rngs: an.models.MLP(2, (4,), 2, rngs=rngs),
        ...     optimizer=an.optim.adam(1e-2),
        ...     objective=an.objectives.softmax_cross_entropy(),
        ...     batch_size=4,
        ...     epochs=1,
        ... )
        >>> result = cross_validate(experiment, data.folds(4, stratify="targets"), progress=False)
        >>> sorted(result.metrics), result.compiles
        (['accuracy', 'loss'], {'train': 1, 'eval': 1})
    """
    runtime.prepare()
    check_experiment(experiment)
    flags(progress=progress)
    instance("folds", folds, Folds, "what experiment.data.folds(...) returns")
    if folds.data is not experiment.data and folds.data.fingerprint() != experiment.data.fingerprint():
        raise UserError(
            f"the folds are of the data {folds.data.name!r}, other rows than those of the experiment's data "
            f"{experiment.data.name!r}: give experiment.data.folds(...)"
        )
    directory = check_workdir(workdir)
    directory = None if directory is None else Path(directory).absolute()
    file = CrossValidationFile(directory, experiment.description() | {"folds": folds.fingerprint()})
    file.read()
    if len(file.folds) == len(folds):
        result = make_cross_validation(experiment.name, file.folds, file.compiles)
        file.write(result)
        return result
    with supervised(directory, HANG_SECONDS) as hosts, exhaustion_explained(), ExitStack() as stack:
        if jax.process_count() > 1:
            raise UserError("a cross-validation trains in one process, on its devices: start one")
        first = _of_fold(experiment, folds[0])
        shared = _Shared(first, folds, mesh)
        display = make_progress(experiment.name, first.total_steps * len(folds), show=progress)
        stack.callback(display.close)
        for number in range(len(file.folds), len(folds)):
            file.folds.append(_train(experiment, shared, number, directory, hosts, display))
            file.write()
    result = make_cross_validation(experiment.name, file.folds, shared.compiles)
    file.write(result)
    return result


def _of_fold(experiment: Experiment, fold: Data) -> Experiment:
    """Return the experiment on the rows of a fold, which leaves the test split alone."""
    made = experiment.replace(data=fold)
    splits = dict.fromkeys((*made.final_splits, "validation"))
    return made.replace(final_evaluation=[split for split in splits if split != "test"])


def _train(
    experiment: Experiment, shared: "_Shared", number: int, directory: Path | None, hosts: Hosts, display: Progress
) -> dict[str, Any]:
    """Train and evaluate one fold, and return JSON values."""
    timing = Timing()
    of_fold = _of_fold(experiment, shared.folds[number])
    feed, programs = shared.programs(of_fold, number)
    part = PartOfProgress(display, number * shared.share, shared.share / of_fold.total_steps)
    work = Workdir(of_fold)
    if directory is not None:
        path = directory / f"fold-{number + 1}"
        work = DiskWorkdir(path, of_fold, hosts, resume=True, allow_change=False, note=say)
    try:
        loop, state = begin(of_fold, feed, programs, work, hosts, part, timing)
        run = finish(loop, loop.train(state))
    except DivergenceError as error:
        raise DivergenceError(f"fold {number + 1} of {len(shared.folds)}: {error}") from error
    finally:
        work.close()
        feed.close()
    rows = {f"{split}_rows": of_fold.data.num_examples(split) for split in ("train", "validation")}
    metrics = {split: values for split, values in run.metrics.items() if values}
    return plain_value({**rows, "metrics": metrics, "seconds": run.result["timing"]["total_seconds"]})


class _Shared:
    """The programs of all folds: one set for each number of training rows.

    What was fitted is a constant of a program. So the one of several folds has the `prepare` of each, and takes that
    of the fold whose number is in the batch.

    Args:
        first: Experiment of the first fold.
        folds: The folds.
        mesh: As of `fit`.
    """

    def __init__(self, first: Experiment, folds: Folds, mesh: str | Mesh | None) -> None:
        self.folds, self._mesh = folds, mesh
        self.share = first.total_steps  # each fold counts as long as the first, the largest
        # The first fold is the largest; of as few rows as one evaluation batch holds, their number would decide.
        self._eval_batch_size = first.resolved_eval_batch_size
        count = 1 if refit_of(folds.data) is None else len(folds)
        self._prepare = _Choice([folds[number].prepare for number in range(count)])
        self._made: dict[Any, tuple[AbstractFeed, Programs]] = {}

    @property
    def compiles(self) -> dict[str, int]:
        """Number of compilations of each program, of all folds together."""
        found: dict[str, int] = {}
        for _, programs in self._made.values():
            found |= {name: found.get(name, 0) + count for name, count in programs.compiles.items()}
        return found

    def programs(self, experiment: Experiment, number: int) -> tuple[AbstractFeed, Programs]:
        """Return how the batches of a fold reach the programs, and the programs."""
        data = experiment.data
        numbers = np.full(data.num_rows, number, np.int16)
        data = changed(data, arrays={**data.arrays, _NUMBER: numbers}, prepare=self._prepare)
        key = experiment.order, experiment.total_steps
        if key not in self._made:
            self._made[key] = prepare(experiment.replace(data=data, eval_batch_size=self._eval_batch_size), self._mesh)
            check_fits(self._made[key][1], self._made[key][0])
        feed, programs = self._made[key]
        feed = dataclasses.replace(feed, data=data, order=dataclasses.replace(feed.order, tickets=data.tickets))

        def rest(num_rows: int) -> tuple[Any, AbstractFeed]:
            return programs.evaluate_rest(num_rows)[0], feed.with_eval_batch_size(num_rows)

        return feed, dataclasses.replace(programs, evaluate_rest=rest)


class _Choice:
    """A `prepare` that is the one of the fold whose number is in the batch."""

    def __init__(self, prepares: Sequence[Callable[[Any], Any]]) -> None:
        self._prepares = prepares

    def __call__(self, batch: Mapping[str, Any]) -> Any:
        rest = {name: array for name, array in batch.items() if name != _NUMBER}
        if len(self._prepares) == 1:
            return self._prepares[0](rest)
        return jax.lax.switch(jax.numpy.asarray(batch[_NUMBER])[0].astype(np.int32), self._prepares, rest)
