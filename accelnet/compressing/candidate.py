"""Candidates of the search: networks in the place of the original, what they cost, and how they came to be."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp

from accelnet.experiment import Experiment
from accelnet.models.precision import with_precision
from accelnet.ops.flops import count_flops
from accelnet.training.padding import sample_batch
from accelnet.training.run import Run

Weighing = tuple[Experiment, Any, Any]  # an experiment, with the params and the model's state that suit it


@dataclass(frozen=True)
class Cost:
    """What a network costs, known from shapes alone.

    Attributes:
        parameters: Numbers that were trained, or stand for such.
        bytes: Bytes of parameters and state.
        flops: Floating-point operations of one example's outputs.
    """

    parameters: int
    bytes: int
    flops: int


def cost_of(experiment: Experiment) -> Cost:
    """Compute the cost of an experiment's network in closed form: nothing is compiled or run.

    Args:
        experiment: The experiment.

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
        >>> cost_of(experiment)
        Cost(parameters=17, bytes=68, flops=33)
    """
    inputs = jax.eval_shape(lambda: sample_batch(experiment.data, 1)["inputs"])
    key = jax.random.key(0)
    params, state = jax.eval_shape(lambda: experiment.pure_model.init(key, experiment.sample_inputs()))
    apply = with_precision(experiment.pure_model.apply, experiment.precision)
    given = {"step": jnp.int32(0), "progress": jnp.float32(1)}

    def outputs(params: Any, state: Any, inputs: Any) -> Any:
        return apply(params, state, inputs, key=key, train=False, **given)[0]

    leaves = jax.tree.leaves((params, state))
    return Cost(
        parameters=sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params)),
        bytes=sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves),
        flops=count_flops(outputs, params, state, inputs).total,
    )


def weighing_of(run: Run) -> Weighing:
    """Return the experiment of a run, with its weights."""
    return run.experiment, run.params, run.model_state


@dataclass(frozen=True)
class Proposal:
    """A network that may be worth a training.

    Attributes:
        name: Name in results.
        how: Ways by which it came to be: "widths", "ranks", "bits".
        experiment: Experiment with it in the place of the original.
        cost: Its cost.
        weigh: Function that computes its weights from the original's, without training.
    """

    name: str
    how: tuple[str, ...]
    experiment: Experiment
    cost: Cost
    weigh: Callable[[], Weighing]

    @property
    def same(self) -> Any:
        """What is equal for equal networks."""
        return getattr(self.experiment.model, "compression", self.name)


@dataclass(frozen=True, eq=False)
class Candidate:
    """A network with weights, one of those among which the answer is.

    Attributes:
        name: Name in results.
        how: Ways by which it came to be: "widths", "ranks", "bits", "teacher", "scratch"; empty for the original.
        cost: Its cost in closed form.
        run: The run: experiment and weights.
        training: JSON values of its training: "epochs", "total_epochs", "rate" and "seconds". None: it had none beside
            the original's.
    """

    name: str
    how: tuple[str, ...]
    cost: Cost
    run: Run = field(repr=False)
    training: Mapping[str, Any] | None = None

    @property
    def structure(self) -> str:
        """A value that is equal for networks that compute the same program, whatever their weights."""
        return json.dumps(self.compression, sort_keys=True) if self.compression else self.name

    @property
    def compression(self) -> dict[str, Any]:
        """What was changed of the model's constructor and layers, as JSON values; empty where nothing was."""
        made = getattr(self.run.experiment.model, "compression", None)
        return {} if made is None else made.as_json()
