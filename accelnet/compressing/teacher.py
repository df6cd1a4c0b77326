"""Training by another network's outputs beside the targets."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from accelnet.arguments import number
from accelnet.data.dataset import Data
from accelnet.data.variant import changed, refuse_stream
from accelnet.errors import UserError
from accelnet.experiment import Experiment
from accelnet.models.precision import with_precision
from accelnet.objectives.objective import OFFERED, Objective, Task
from accelnet.objectives.weights import Batch
from accelnet.parallel.layout import ONE_DEVICE
from accelnet.signature import described, wants
from accelnet.training.batch import prepared, training_batch

Say = Callable[[str], None]

NAME = "teacher"  # of the array of its outputs
_MOST_BYTES = 1 << 30


def taught(
    experiment: Experiment,
    teacher: Experiment,
    params: Any,
    model_state: Any,
    *,
    share: float = 0.5,
    temperature: float = 2.0,
    say: Say = lambda _: None,
) -> Experiment:
    """Return an experiment that is trained by a teacher's outputs, too.

    In training, and only there, an example's loss is

        (1 - a) loss + a T^2 KL(softmax(teacher / T) || softmax(outputs / T))

    for classes and tokens, the same of two classes for each label, and `(1 - a) loss + a mean((outputs - teacher)^2)`
    for numbers. Validation and test have the loss of the experiment.

    The teacher's outputs are computed once, of every training row as it is, and are a further array of the data: no
    weights of the teacher's are in the program, in the state or in a checkpoint. Augmentation that moves or changes an
    example leaves its teacher's output as it is; one that mixes examples is refused.

    Args:
        experiment: What is to be trained.
        teacher: Experiment of the teacher, with data of the same rows.
        params: Parameters of the teacher.
        model_state: State of the teacher.
        share: a, the teacher's share of the loss, above 0 and at most 1.
        temperature: T, above 0.
        say: Function that is told what is being done.

    Raises:
        UserError: if the data is a stream, the task is another one, outputs are not finite or of another shape than the
            experiment's, would take more than 1 GiB, or examples are mixed.

    Example:
        >>> import accelnet as an
        >>> one, other = (
        ...     an.Experiment(
        ...         data=an.data.xor(),
        ...         model=lambda rngs, width=width: an.models.MLP(2, (width,), 1, rngs=rngs),
        ...         batch_size=4,
        ...         steps=1,
        ...         optimizer=an.optim.adam(1e-2),
        ...         objective=an.objectives.sigmoid_cross_entropy(),
        ...     )
        ...     for width in (8, 4)
        ... )
        >>> small = taught(other, one, *one.pure_model.init(jax.random.key(0)))
        >>> small.data.arrays["teacher"].shape
        (4, 1)

    Source: Hinton, Vinyals and Dean, "Distilling the knowledge in a neural network", 2015, section 2.
    """
    a, temperature = number("share", share, 0, 1), number("temperature", temperature, 0)
    if a == 0 or temperature == 0:
        raise UserError(f"share {share} and temperature {temperature} of a teacher, expected numbers above 0")
    if experiment.objective.task == "other":
        raise UserError(
            "the objective's task is 'other', and a teacher's outputs can be compared for classes, labels, tokens and "
            "numbers: give Objective(..., task=...)"
        )
    if "weights" in wants(experiment.objective.loss).names:
        raise UserError("the loss applies the weights itself, and a teacher's part needs them left to the objective")
    data = experiment.data
    refuse_stream(data, "seen by a teacher beforehand")
    _check_augmentation(experiment)
    outputs = _outputs_of(experiment, teacher, params, model_state, say)
    return experiment.replace(
        data=changed(data, arrays={**data.arrays, NAME: outputs}, prepare=_preparing(data)),
        objective=_with_teacher(experiment.objective, a, temperature),
    )


def _outputs_of(experiment: Experiment, teacher: Experiment, params: Any, model_state: Any, say: Say) -> np.ndarray:
    """Compute a teacher's outputs of all training rows; those of other rows are zeros."""
    data, rows = experiment.data, experiment.data.splits["train"]
    apply = with_precision(teacher.pure_model.apply, teacher.precision)
    step = jnp.int32(teacher.total_steps)
    given = {"key": jax.random.key(0), "train": False, "step": step, "progress": teacher.progress(step)}

    def outputs(params: Any, model_state: Any, batch: Any) -> Any:
        return apply(params, model_state, prepared(teacher, batch)["inputs"], **given)[0]

    def own() -> Any:
        new = experiment.pure_model.init(jax.random.key(0), experiment.sample_inputs())
        return experiment.pure_model.apply(*new, experiment.sample_inputs(), **given)[0]

    size = min(teacher.resolved_eval_batch_size, len(rows))

    def batch_of(first: int) -> Any:
        # The last batch is filled up with its first row: one shape, one program.
        index = np.arange(first, first + size)
        found = index < len(rows)
        return {**teacher.data.take(rows.start + np.where(found, index, first)), "mask": found}

    shape, expected = jax.eval_shape(outputs, params, model_state, batch_of(0)), jax.eval_shape(own)
    if getattr(shape, "shape", None) is None or shape.shape[1:] != getattr(expected, "shape", ())[1:]:
        raise UserError(
            f"the teacher's outputs are {described([shape])} of {size} examples, and the model's "
            f"{described([expected])} of one: expected arrays of the same shape"
        )
    kept = np.zeros((data.num_rows, *shape.shape[1:]), np.float32)
    if kept.nbytes > _MOST_BYTES:
        raise UserError(f"the teacher's outputs of all rows take {kept.nbytes:,} bytes, more than 1 GiB: leave it out")
    program = jax.jit(outputs)
    for first in range(0, len(rows), size):
        last = min(first + size, len(rows))
        say(f"teacher: {first:,} of {len(rows):,} rows")
        part = np.asarray(program(params, model_state, batch_of(first)), np.float32)
        kept[rows.start + first : rows.start + last] = part[: last - first]
    if not np.isfinite(kept).all():
        raise UserError("the teacher's outputs are not finite: its weights cannot be used")
    return kept


def _preparing(data: Data) -> Callable[[Any], Any]:
    """Return the data's `prepare` that hands on the teacher's outputs, whatever it makes of the others."""
    function = data.prepare

    def prepare(batch: Any) -> Any:
        rest = {name: value for name, value in batch.items() if name != NAME}
        return {**function(rest), NAME: batch[NAME]} if NAME in batch else function(rest)

    return prepare


def _check_augmentation(experiment: Experiment) -> None:
    """Refuse augmentation in whose examples others are seen, since a teacher has seen each alone."""
    train = experiment.data.splits["train"]
    if experiment.data.augment is None or len(train) < 3:
        return
    rows = np.array(train[: min(len(train), 9)])

    def inputs(rows: np.ndarray, step: int) -> Any:
        batch = {**experiment.data.take(rows), "mask": np.ones(len(rows), bool)}
        batch, _ = training_batch(experiment, batch, ONE_DEVICE, 0, np.uint32(0), jnp.int32(step), 0)
        return [np.asarray(leaf) for leaf in jax.tree.leaves(batch["inputs"])]

    for step in range(4):  # by chance one step may mix nothing
        one, other = (inputs(np.append(rows[:-2], last), step) for last in rows[-2:])
        # The last example alone is another.
        if not all(np.allclose(a[:-1], b[:-1], atol=1e-6) for a, b in zip(one, other, strict=True)):
            raise UserError(
                "the augmentation mixes examples, and a teacher has seen each of them alone: train without it, or "
                "without the teacher"
            )


def _with_teacher(objective: Objective, share: float, temperature: float) -> Objective:
    """Return an objective whose loss, in training, is partly the distance to the teacher's outputs."""

    def loss(outputs: Any, batch: Batch, *, train: bool, **offered: Any) -> Any:
        rest = {name: value for name, value in batch.items() if name != NAME}
        losses, own = objective.raw(outputs, rest, {"train": train, **offered})
        if train:
            distance = output_distance(objective.task, outputs, batch[NAME], temperature)
            distance = distance.mean(axis=tuple(range(losses.ndim, distance.ndim)))
            losses = (1 - share) * losses + share * distance
        return losses if own is None else (losses, own)

    # It asks for what the loss asks for, and whether it sees padding is found in the same way.
    names = sorted(wants(objective.loss).names & set(OFFERED) | {"train"})
    kind = inspect.Parameter
    asked = [kind(name, kind.POSITIONAL_OR_KEYWORD) for name in ("outputs", "batch")]
    asked += [kind(name, kind.KEYWORD_ONLY) for name in names]
    loss.__signature__ = inspect.Signature(asked)  # pyright: ignore[reportFunctionMemberAccess]
    loss.__module__ = getattr(objective.loss, "__module__", None) or ""
    metrics = {name: metric for name, metric in objective.metrics.items() if name != "loss"}
    return Objective(loss, metrics, objective.task)


def output_distance(task: Task, outputs: Any, teacher: Any, temperature: float) -> Any:
    """Return the distance of outputs to those of another network, float32 [B, ...].

    For classes, tokens and labels it is `T^2 KL(teacher || outputs)` at a temperature T, else the squared difference.

    Example:
        >>> outputs, teacher = jnp.zeros((1, 2)), jnp.array([[0.0, 20.0]])
        >>> [round(float(one), 3) for one in output_distance("classes", outputs, teacher, 1.0)]
        [0.693]
    """
    outputs, teacher = (jnp.asarray(one, jnp.float32) for one in (outputs, teacher))
    if task in ("numbers", "other"):
        return (outputs - teacher) ** 2
    outputs, teacher = outputs / temperature, teacher / temperature
    if task == "labels":  # of two classes each
        outputs, teacher = (jnp.stack([jnp.zeros_like(one), one], axis=-1) for one in (outputs, teacher))
    logs, wanted = jax.nn.log_softmax(outputs), jax.nn.log_softmax(teacher)
    return temperature**2 * jnp.sum(jnp.exp(wanted) * (wanted - logs), axis=-1)
