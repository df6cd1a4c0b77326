"""How long a run takes: its steps, and what else a training spends time on."""

import math
from dataclasses import dataclass

from accelnet.experiment import Experiment
from accelnet.planning.targets.accelerators import Accelerator
from accelnet.training.events import Every

# As the training loop has it where the experiment says nothing: each epoch, but at most so often.
_EVALUATIONS_PER_RUN = 50
# Bytes/s from a host to one of its devices: a general figure for PCIe (JAX Scaling Book), a stated model.
_HOST_RATE = 15e9
NOT_COUNTED = (
    "starting machines and processes", "reading and decoding data on the host", "checkpoints", "events of your own",
    "stopping early",
)  # fmt: skip


@dataclass(frozen=True)
class RunTime:
    """Where the time of a run goes, in seconds.

    Attributes:
        compile: Lowering and compiling both programs, as long as it took on this machine; None if nothing was compiled.
        train: All steps.
        evaluation: Evaluating the validation split at the experiment's rhythm, and every split at the end.
        input: Moving data to the devices, as far as computing does not hide it.
    """

    compile: float | None
    train: float
    evaluation: float
    input: float

    @property
    def total(self) -> float:
        """Sum of the parts that are known."""
        return (self.compile or 0.0) + self.train + self.evaluation + self.input

    def to_dict(self) -> dict[str, float | None]:
        """Return JSON values, named in seconds."""
        return {f"{name}_seconds": value for name, value in vars(self).items()}


def run_time(
    experiment: Experiment,
    accelerator: Accelerator,
    *,
    step_seconds: float,
    eval_batch_seconds: float,
    eval_batch_size: int,
    compile_seconds: float | None,
    streamed: bool,
    num_parts: int = 1,
) -> RunTime:
    """Estimate the time of a whole run, to its last step; `NOT_COUNTED` lists what is left out.

    Args:
        experiment: Experiment that is run.
        accelerator: Kind of device that it runs on.
        step_seconds: Time of one training step.
        eval_batch_seconds: Time of one evaluation batch.
        eval_batch_size: Examples of an evaluation batch.
        compile_seconds: Time of compiling both programs; None if not known.
        streamed: Whether batches come from the host. Otherwise the data is moved once, before the first step.
        num_parts: Devices that share a batch.
    """
    train = experiment.total_steps * step_seconds
    batches = num_evaluation_batches(experiment, eval_batch_size, train)
    rate = accelerator.memory_bandwidth if accelerator.platform == "cpu" else _HOST_RATE
    data = experiment.data
    if streamed:
        row_seconds = data.nbytes / max(1, data.num_rows) / num_parts / rate
        waiting = max(0.0, experiment.order.batch_size * row_seconds - step_seconds) * experiment.total_steps
        waiting += max(0.0, eval_batch_size * row_seconds - eval_batch_seconds) * batches
    else:
        waiting = data.nbytes / rate
    return RunTime(compile_seconds, train, batches * eval_batch_seconds, waiting)


def num_evaluation_batches(experiment: Experiment, eval_batch_size: int, train_seconds: float) -> int:
    """Count the evaluation batches of a run that goes to its last step.

    Args:
        experiment: Experiment that is run.
        eval_batch_size: Examples of a batch.
        train_seconds: Time of all steps, for a rhythm in seconds.
    """

    def batches(split: str) -> int:
        return math.ceil(len(experiment.data.splits.get(split, range(0))) / eval_batch_size)

    validations = num_validations(experiment, train_seconds) if batches("validation") else 0
    return validations * batches("validation") + sum(map(batches, experiment.final_splits))


def num_validations(experiment: Experiment, train_seconds: float) -> int:
    """Count how often a run evaluates its validation split before the end's evaluation of every split.

    Args:
        experiment: Experiment that is run to its last step.
        train_seconds: Time of all steps, for a rhythm in seconds.
    """
    total, per_epoch = experiment.total_steps, experiment.order.steps_per_epoch
    rhythm = experiment.eval_every or Every(epochs=max(1, -(-total // (per_epoch * _EVALUATIONS_PER_RUN))))
    if rhythm.seconds is not None:
        return int(train_seconds / rhythm.seconds) + 1
    if rhythm.epochs is not None and rhythm.epochs * per_epoch <= 1:
        return total
    count, step = 0, 0
    while step < total:  # the last step counts, due or not
        step = rhythm.next_step(step, per_epoch) or total
        count += 1
    return count
