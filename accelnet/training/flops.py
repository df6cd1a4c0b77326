"""FLOPs of a training step: forward, backward and optimizer apart."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Jaxpr

from accelnet.experiment import Experiment
from accelnet.ops.flops import Flops, count_jaxpr_flops
from accelnet.training.batch import prepared
from accelnet.training.state import TrainState, abstract_state
from accelnet.training.step import make_gradient, make_loss, make_update


@dataclass(frozen=True)
class StepFlops:
    """Hold the operations of one update of a whole batch, whatever number of devices computes it.

    Attributes:
        forward: Operations of the loss of all examples, and the metrics.
        backward: Operations of the gradients; with remat also what is computed again.
        optimizer: Operations of the update.

    Example:
        >>> StepFlops(Flops(elementwise=1), Flops(elementwise=2), Flops(elementwise=3)).total
        6
    """

    forward: Flops
    backward: Flops
    optimizer: Flops

    @property
    def total(self) -> int:
        """All operations."""
        return sum(part.total for part in self._parts)

    @property
    def product_flops(self) -> int:
        """Operations of the matrix products and convolutions."""
        return sum(part.product_flops for part in self._parts)

    @property
    def _parts(self) -> tuple[Flops, ...]:
        return self.forward, self.backward, self.optimizer

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values: operations by part, and the matrix products with how often each is computed."""
        products: Counter[Any] = Counter()
        for part in self._parts:
            products.update(part.products)
        rows = [
            {**product._asdict(), "count": count, "flops": product.flops * count} for product, count in products.items()
        ]
        parts = {name: getattr(self, name).total for name in ("forward", "backward", "optimizer")}
        rows.sort(key=lambda row: -row["flops"])
        return {**parts, "matrix_products": self.product_flops, "products": rows}


def step_flops(experiment: Experiment, platform: str | None = None, *, microbatch_size: int | None = None) -> StepFlops:
    """Count the operations of a step from its jaxpr; nothing is compiled or run.

    Args:
        experiment: What is trained. Recurrent layers count once per time step, microbatches each.
        platform: Platform whose programs of accelnet's operations count, as of `accelnet.ops.flops.count_flops`. None:
            the plain ones, the count that is comparable between machines.
        microbatch_size: Examples of a microbatch, such as one device's share. None: those of the experiment.

    Example:
        >>> import numpy as np, accelnet as an
        >>> data = an.data.from_arrays(np.eye(20, 3, dtype=np.float32), np.arange(20) % 2, num_classes=2)
        >>> experiment = an.Experiment(
        ...     data=data,
        ...     model=lambda rngs: an.models.MLP(3, (4,), 2, rngs=rngs),
        ...     optimizer=an.optim.sgd(0.1),
        ...     objective=an.objectives.softmax_cross_entropy(),
        ...     batch_size=5,
        ...     steps=1,
        ... )
        >>> flops = step_flops(experiment)
        >>> flops.forward.product_flops == 2 * 5 * (3 * 4 + 4 * 2)
        True
        >>> flops.backward.product_flops == 2 * 5 * (3 * 4 + 2 * 4 * 2)  # no gradient of the inputs
        True
    """
    return trace_step(experiment, microbatch_size).flops(platform)


@dataclass(frozen=True)
class TracedStep:
    """A step as jaxprs.

    Attributes:
        forward: Loss of one microbatch.
        gradient: Gradients of a batch, with its augmentation and `forward`.
        update: What the step does with the gradients.
        num_microbatches: Microbatches of a batch.
    """

    forward: Jaxpr
    gradient: Jaxpr
    update: Jaxpr
    num_microbatches: int
    _counted: dict[str | None, StepFlops] = field(default_factory=dict, init=False, repr=False, compare=False)

    def flops(self, platform: str | None = None) -> StepFlops:
        """Count the operations, as `step_flops` does; once for a platform."""
        if platform not in self._counted:
            one, gradient, update = (
                count_jaxpr_flops(part, platform=platform) for part in (self.forward, self.gradient, self.update)
            )
            forward = Flops()
            forward.add(one, self.num_microbatches)
            self._counted[platform] = StepFlops(forward, _difference(gradient, forward), update)
        return self._counted[platform]


def trace_step(
    experiment: Experiment, microbatch_size: int | None = None, state: TrainState | None = None
) -> TracedStep:
    """Trace a step on one device from shapes alone, with a state of shapes where it is known already."""
    order = experiment.order
    size = microbatch_size or order.microbatch_size
    state = state or abstract_state(experiment)

    def examples(array: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((size, *array.shape[1:]), jax.dtypes.canonicalize_dtype(array.dtype))

    batch = jax.tree.map(examples, dict(experiment.data.arrays)) | {"mask": jax.ShapeDtypeStruct((size,), jnp.bool_)}
    loss = make_loss(experiment)

    def forward(params: Any, frozen: Any, model_state: Any, batch: Any) -> Any:
        # A key made here: as an argument it would be one more thing to describe.
        settings = {"key": jax.random.key(0), "train": True, "frozen": frozen}
        return loss(params, model_state, prepared(experiment, batch), **settings)

    def whole(operand: Any, _number: Any, _part: Any) -> Any:
        return operand

    gradients = make_gradient(experiment)
    gradient, results = jax.make_jaxpr(lambda state, batch: gradients(state, whole, batch), return_shape=True)(
        state, batch
    )

    def update(state: TrainState, batch: Any, results: Any) -> Any:
        def of(params: Any) -> Any:
            return gradients(state.replace(params=params), whole, batch)

        return make_update(experiment)(state, *results, of)

    return TracedStep(
        jax.make_jaxpr(forward)(state.params, state.frozen, state.model_state, batch).jaxpr,
        gradient.jaxpr,
        jax.make_jaxpr(update)(state, batch, results).jaxpr,
        order.num_microbatches,
    )


def _difference(whole: Flops, part: Flops) -> Flops:
    return Flops(
        products=whole.products - part.products,
        elementwise=max(0, whole.elementwise - part.elementwise),
        unknown_loops=max(0, whole.unknown_loops - part.unknown_loops),
    )
