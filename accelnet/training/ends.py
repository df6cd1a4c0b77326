"""The two ends of a run: the state that it begins with, and the `Run` that is made of the last one."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from accelnet.data.abstract_feed import AbstractFeed
from accelnet.experiment import Experiment
from accelnet.models.precision import precision_note
from accelnet.tracking.tracker import Tracking
from accelnet.training.evaluate import evaluate
from accelnet.training.hosts import Hosts
from accelnet.training.initial import initial_arrays
from accelnet.training.loop import Loop
from accelnet.training.profile import Recorder
from accelnet.training.program import Programs, going_on
from accelnet.training.progress import Progress
from accelnet.training.result import make_result
from accelnet.training.rhythm import Pace
from accelnet.training.rhythms import rhythms_of
from accelnet.training.run import Run
from accelnet.training.state import TrainState
from accelnet.training.timing import Timing
from accelnet.training.waiting import waited_for_data
from accelnet.training.workdir import Workdir


def begin(
    experiment: Experiment,
    feed: AbstractFeed,
    programs: Programs,
    work: Workdir,
    hosts: Hosts,
    display: Progress,
    timing: Timing,
    *,
    pace: Pace = Pace(),  # noqa: B008, it is frozen
    tracking: Tracking | None = None,
    recorder: Recorder | None = None,
) -> tuple[Loop, TrainState]:
    """Make the loop of a run, and the state that it begins with: a new one, or the one that `work` holds.

    What follows is `finish(loop, loop.train(state))`.

    Args:
        experiment: What is trained.
        feed: How batches reach the programs.
        programs: Programs of the experiment, or of another of the same shapes.
        work: Where rows and checkpoints go.
        hosts: Processes of the run.
        display: Where progress is shown.
        timing: Where the time went so far.
        pace: How much one call does.
        tracking: What else is told what is recorded.
        recorder: What traces some steps, if any.
    """
    tracking = tracking or Tracking()
    hosts.finishes.append(work.settle)
    hosts.mark(0, "compile")
    restored = work.open(programs.abstract_state)
    if restored is None:
        start = programs.starting_from(initial_arrays(experiment, programs.abstract_state))
        timing.measure("compile", programs.begin_compiling, experiment, start)
        state = timing.measure("compile", start, np.uint32(experiment.seed))
    else:
        timing.measure("compile", programs.begin_compiling, experiment, None, int(restored.state.step))
        state = going_on(restored.state, restored.changed, programs, experiment)
    timing.go_on({} if restored is None else restored.seconds, work.lost_seconds)
    if experiment.order.whole_batches:
        left = experiment.order.num_examples % experiment.order.batch_size
        display.note(
            f"the loss is one number for a batch: the last {left} examples of each epoch, which fill no batch, are "
            "left out (other ones in each epoch)"
        )
    if note := precision_note(experiment.precision, programs.abstract_state.params):
        display.note(note)
    for row in work.rows:  # of the run that goes on
        tracking.log(row)
        if row["split"] == "validation":
            display.evaluated(row["step"], row)
    rhythms = rhythms_of(experiment)
    if recorder is not None:
        programs, rhythms = recorder.attached(programs, rhythms, int(state.step), experiment.total_steps)
    loop = Loop(
        experiment, feed, programs, work, hosts, display, timing,
        rhythms=rhythms, events=experiment.events, pace=pace, tracking=tracking,
    )  # fmt: skip
    return loop, state


def finish(loop: Loop, state: TrainState) -> Run:
    """Evaluate the last state of a run, write the result, and return the `Run`.

    Args:
        loop: Loop of the run.
        state: State that it ended with.
    """
    experiment, work, timing = loop.experiment, loop.work, loop.timing
    metrics = _evaluate_at_end(loop, state)
    for split, values in metrics.items():
        if values and split not in ("train", "validation"):  # those that are evaluated only here
            loop.log(split, values)
    timing.measure("checkpoint", work.wait)
    spent = {f"{name}_seconds": timing.seconds[name] for name in ("input", "train")}
    if line := waited_for_data(experiment.data, **spent):
        loop.display.note(line)
    result = make_result(experiment, state, metrics, timing, loop.programs.compiles, work.path)
    run = Run(experiment, state, metrics, work.rows, result, loop.evaluator.weights(state), _find_best(loop))
    work.finish(run.result)
    return run


def _evaluate_at_end(loop: Loop, state: TrainState) -> dict[str, dict[str, Any]]:
    """Return the metrics of the splits that the experiment asks for, by split; empty ones for the others."""
    every = dict.fromkeys(("train", "validation", "test", *loop.experiment.data.splits))
    wanted = loop.experiment.final_splits
    return {split: loop.evaluator.evaluate(state, split) if split in wanted else {} for split in every}


def _find_best(loop: Loop) -> Callable[[], Run] | None:
    """Return the function that gives the run as it was at the best evaluation; None where that was not kept."""
    experiment, work = loop.experiment, loop.work
    if not work.keeps_best:
        return None
    if work.path is not None:
        return partial(evaluate, experiment, work.path, best=True, splits=experiment.final_splits)

    def best() -> Run:
        state = work.best(loop.programs.abstract_state)
        return Run(experiment, state, _evaluate_at_end(loop, state), work.rows, {}, loop.evaluator.weights(state))

    return best
