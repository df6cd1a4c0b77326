"""Experiment: what is trained, on what, with what, for how long."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, get_args

import optax

from accelnet.data.dataset import Data
from accelnet.data.order import Order
from accelnet.errors import UserError
from accelnet.models.adapter import PureModel, adapt
from accelnet.objectives.objective import Objective
from accelnet.parallel.rules import Rule
from accelnet.training.events import EarlyStopping, Every

Precision = Literal["float32", "bfloat16", "float16"]
Remat = Literal["none", "products", "blocks"]

# Evaluation keeps no activations for a backward pass, so small training batches may be evaluated in larger ones.
_MIN_EVAL_BATCH_SIZE = 256


@dataclass(frozen=True, kw_only=True, eq=False)
class Experiment:
    """Say what is trained. Frozen, validated when it is made, and free of side effects.

    Args:
        data: the data set.
        model: a callable `model(rngs=...) -> nnx.Module`, an `nnx.Module`, or a Linen module.
        optimizer: any Optax chain.
        objective: the loss and the metrics.
        batch_size: examples per update, at least 1; "full" for the whole training split (gradient descent).
        epochs: passes over the training split, above 0. Give this or `steps`.
        steps: updates, at least 1.
        microbatch_size: examples per forward and backward pass; gradients are accumulated over the parts
            of a batch, exactly. None: the whole batch at once, but at most 1,024 examples of a full batch.
        eval_batch_size: examples per evaluation batch. None: at least 256.
        seed: of the weights, the order and all noise; 0 to 2**32 - 1.
        precision: "float32"; "bfloat16": computation in bfloat16, weights in float32; "float16": the same
            with dynamic loss scaling.
        remat: what the backward pass computes again instead of keeping: "none"; "products": all but the
            results of matrix products and convolutions; "blocks": all but the values named "block" by
            `jax.ad_checkpoint.checkpoint_name`, the block boundaries of accelnet's models.
        log_every: when training metrics are recorded. None: about 100 times a run.
        eval_every: when the validation split is evaluated. None: every epoch, but at most 50 times a run.
        save_every: when a checkpoint is written, beside those after each evaluation. None: every 5 minutes.
        keep_last: checkpoints kept, the newest.
        keep_best: checkpoints kept, those with the best validation metric.
        best_metric: metric that "best" means; lower is better for losses, errors, perplexity and bits.
        early_stopping: when to stop before the end. None: never.
        on_device: whether the data is kept on the device. None: if it fits.
        sharding_rules: which mesh axis cuts which parameter: pairs of a regular expression for a parameter's whole
            path, such as "layers.0.linear.kernel", and a `jax.sharding.PartitionSpec`. They come before the default
            rules, and the first that matches counts. Without a mesh they mean nothing.
        name: of the experiment, in results.
        config: what the script's settings were, recorded with the results and compared on resuming.

    Raises:
        UserError: if a value is out of its range, saying which.

    Example:
        >>> import numpy as np, accelnet as an
        >>> data = an.data.from_arrays(np.eye(20, 3, dtype=np.float32), np.arange(20) % 2, num_classes=2)
        >>> experiment = Experiment(
        ...     data=data,
        ...     model=lambda rngs: an.models.MLP(3, (4,), 2, rngs=rngs),
        ...     optimizer=an.optim.adam(1e-2),
        ...     objective=an.objectives.softmax_cross_entropy(),
        ...     batch_size=4,
        ...     epochs=2,
        ... )
        >>> experiment.total_steps
        8

    Source: original.
    """

    data: Data
    model: Any
    optimizer: optax.GradientTransformation
    objective: Objective
    batch_size: int | Literal["full"] = 128
    epochs: float | None = None
    steps: int | None = None
    microbatch_size: int | None = None
    eval_batch_size: int | None = None
    seed: int = 0
    precision: Precision = "float32"
    remat: Remat = "none"
    log_every: Every | None = None
    eval_every: Every | None = None
    save_every: Every | None = None
    keep_last: int = 2
    keep_best: int = 1
    best_metric: str = "loss"
    early_stopping: EarlyStopping | None = None
    on_device: bool | None = None
    sharding_rules: Sequence[Rule] = ()
    name: str = "experiment"
    config: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if (self.epochs is None) == (self.steps is None):
            raise UserError(f"epochs is {self.epochs} and steps is {self.steps}: give exactly one of them")
        if self.epochs is not None and not (math.isfinite(self.epochs) and self.epochs > 0):
            raise UserError(f"epochs is {self.epochs}, expected a number above 0")
        for name, lowest in (("steps", 1), ("eval_batch_size", 1), ("keep_last", 1), ("keep_best", 0)):
            value = getattr(self, name)
            if value is not None and value < lowest:
                raise UserError(f"{name} is {value}, expected at least {lowest}")
        if not 0 <= self.seed < 2**32:
            raise UserError(f"seed is {self.seed}, expected 0 to 2**32 - 1")
        for name, choices in (("precision", Precision), ("remat", Remat)):
            if getattr(self, name) not in get_args(choices):
                raise UserError(f"{name} is {getattr(self, name)!r}, expected one of {', '.join(get_args(choices))}")
        if isinstance(self.batch_size, str) and self.batch_size != "full":
            raise UserError(f'batch_size is {self.batch_size!r}, expected a number or "full"')
        used = {"best_metric": self.best_metric}
        if self.early_stopping is not None:
            used["early_stopping.metric"] = self.early_stopping.metric
            if not self.data.num_examples("validation"):
                raise UserError(f"early_stopping needs a validation split, and data {self.data.name!r} has none")
        for name, metric in used.items():
            if metric not in self.objective.metrics:
                raise UserError(f"{name} is {metric!r}, expected one of {', '.join(self.objective.metrics)}")
        _ = self.order  # checks the sizes

    @cached_property
    def order(self) -> Order:
        """The batches of the training split."""
        rows = self.data.splits["train"]
        full = self.batch_size == "full"
        batch_size = len(rows) if isinstance(self.batch_size, str) else self.batch_size
        microbatch_size = self.microbatch_size or (min(batch_size, 1024) if full else batch_size)
        if microbatch_size > batch_size:
            raise UserError(
                f"microbatch_size {microbatch_size} is larger than batch_size {batch_size}: take at most the batch size"
            )
        return Order(len(rows), batch_size, microbatch_size, rows.start)

    @cached_property
    def pure_model(self) -> PureModel:
        """The model as pure functions."""
        return adapt(self.model)

    @property
    def total_steps(self) -> int:
        """Updates of the whole run."""
        if self.steps is not None:
            return self.steps
        assert self.epochs is not None
        return max(1, math.ceil(self.epochs * self.order.steps_per_epoch))

    @property
    def resolved_eval_batch_size(self) -> int:
        """Examples per evaluation batch."""
        if self.eval_batch_size is not None:
            return self.eval_batch_size
        largest = max(len(rows) for rows in self.data.splits.values())
        return min(max(self.order.microbatch_size, _MIN_EVAL_BATCH_SIZE), largest)

    def description(self) -> dict[str, Any]:
        """Return what makes this run this run, as JSON values: compared when a run is resumed."""
        return {
            "experiment": self.name,
            "data": self.data.fingerprint(),
            "batch_size": self.order.batch_size,
            "microbatch_size": self.order.microbatch_size,
            "steps": self.total_steps,
            "seed": self.seed,
            "precision": self.precision,
        } | {name: value for name, value in self.config.items() if name not in ("batch_size", "steps", "seed")}

    def replace(self, **changes: Any) -> "Experiment":
        """Return a copy with other values, validated anew."""
        return dataclasses.replace(self, **changes)
