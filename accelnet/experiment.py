"""Experiment: what is trained, on what, with what, for how long."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from accelnet.errors import UserError

# Every script's annotation names the class, for `--help` too: what it needs is imported when one is made.
if TYPE_CHECKING:
    import jax
    import optax

    from accelnet.data.dataset import Data
    from accelnet.data.order import Order
    from accelnet.models.precision import Precision
    from accelnet.models.pure import PureModel
    from accelnet.parallel.rules import Rule
    from accelnet.training.events import EarlyStopping, Event, Every
    from accelnet.training.settings import Remat

# Evaluation keeps no activations for a backward pass, so small training batches may be evaluated in larger ones.
_MIN_EVAL_BATCH_SIZE = 256
# Of a training split with fewer rows the final evaluation takes no time that anybody notices.
_FEW_ROWS = 10_000


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Experiment:
    """Say what is trained. Frozen, validated when it is made, and free of side effects.

    Args:
        data: Data set.
        model: Callable `model(rngs=...) -> nnx.Module`, an `nnx.Module`, a Linen module, or one of these `Compressed`.
        optimizer: Any Optax transformation. Its update gets what it asks for of `value`, `grad`, `value_fn`, `grad_fn`,
            `obj_fn`, `key`, `step` and `progress` (the share of the run that is done).
        objective: Loss and metrics as an `Objective`, or a loss alone.
        batch_size: Examples per update, at least 1; "full" for the whole training split (gradient descent).
        epochs: Passes over the training split, above 0. Give this or `steps`.
        steps: Updates, at least 1.
        microbatch_size: Examples per forward and backward pass; gradients are accumulated over the parts of a batch,
            exactly. None: the whole batch at once, but at most 1,024 examples of a full batch.
        eval_batch_size: Examples per evaluation batch. None: at least 256.
        seed: Seed of the weights, the order and all noise; 0 to 2**32 - 1.
        precision: "float32"; "bfloat16": computation in bfloat16, weights in float32 (on a CPU, what is multiplied is
            rounded and all else float32); "float16": computation in float16 with dynamic loss scaling.
        remat: What the backward pass computes again instead of keeping: "none"; "products": all but the results of
            matrix products and convolutions; "blocks": all but the values named "block" by
            `jax.ad_checkpoint.checkpoint_name`, the block boundaries of accelnet's models.
        deterministic: Whether a GPU, too, gives the same bits in every run, and after resuming; it may be slower then.
        log_every: When training metrics are recorded. None: about 100 times a run.
        eval_every: When the validation split is evaluated. None: every epoch, but at most 50 times a run.
        save_every: When a checkpoint is written, beside those of the best evaluations so far. None: every 5 minutes.
        keep_last: Number of newest checkpoints that are kept.
        keep_best: Number of checkpoints that are kept for their validation metric, the best.
        best_metric: Metric that decides what is best, in its own direction.
        early_stopping: When to stop before the end. None: never.
        events: What else happens during training, after logging, evaluation and saving.
        final_evaluation: Splits evaluated at the end. None: all, but "train" only where it has at most 10,000 rows or
            the run sees as many examples as it has rows.
        initial: Weights to start from: nested dicts of arrays, a `Run`, a work directory, a function from the new
            params to others, an `Initial` that takes a part of one of these, or a sequence of such.
        frozen: Regular expressions of whole paths, as "backbone.*", of parameters without gradient and optimizer state.
        on_device: Whether the data is kept on the device. None: if it fits.
        sharding_rules: Pairs of a regular expression for a parameter's whole path, such as "layers.0.linear.kernel",
            and the `jax.sharding.PartitionSpec` that tells which axes of the mesh cut it. The first match counts; rules
            of the model (accelnet's, partitioned initializers, a class attribute `sharding_rules`) come after them.
        name: Name of the experiment, in results.
        config: Settings of the script, recorded with the results and compared on resuming.
        script: File of the script, recorded with the results, by which the run can be made again; "" without one.

    Raises:
        UserError: if a value is out of its range.

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
    """

    data: Data
    model: Any
    optimizer: Any
    objective: Any
    batch_size: int | Literal["full"] = 128
    epochs: float | None = None
    steps: int | None = None
    microbatch_size: int | None = None
    eval_batch_size: int | None = None
    seed: int = 0
    precision: Precision = "float32"
    remat: Remat = "none"
    deterministic: bool = False
    log_every: Every | None = None
    eval_every: Every | None = None
    save_every: Every | None = None
    keep_last: int = 2
    keep_best: int = 1
    best_metric: str = "loss"
    early_stopping: EarlyStopping | None = None
    events: Sequence[Event] = ()
    final_evaluation: Sequence[str] | None = None
    initial: Any = None
    frozen: Sequence[str] = ()
    on_device: bool | None = None
    sharding_rules: Sequence[Rule] = ()
    name: str = "experiment"
    config: Mapping[str, Any] = field(default_factory=dict)
    script: str = ""

    def __post_init__(self) -> None:
        from accelnet import objectives
        from accelnet.arguments import integer, sequence
        from accelnet.models.adapter import check_model
        from accelnet.objectives.objective import Objective
        from accelnet.training.settings import MOST_STEPS, check_settings

        if not isinstance(self.objective, Objective) and callable(self.objective):
            if self.objective in vars(objectives).values():
                name = self.objective.__name__
                raise UserError(f"objective is the function {name} itself, expected what it returns: call it, {name}()")
            object.__setattr__(self, "objective", Objective(self.objective))
        for name in ("events", "frozen", "sharding_rules"):
            object.__setattr__(self, name, sequence(name, getattr(self, name)))
        check_settings(self)
        check_model(self.model)
        _ = self._padded_order, self.transformation  # they check sizes and the optimizer
        if self.epochs is not None:
            steps = math.ceil(self.epochs * self._padded_order.steps_per_epoch)
            integer(f"the number of steps of {self.epochs:g} epochs", steps, high=MOST_STEPS)

    def __repr__(self) -> str:
        from accelnet.signature import name_of

        rows = ", ".join(f"{split} {self.data.num_examples(split):,}" for split in self.data.splits)
        metrics = [name for name in self.objective.metrics if name != "loss"]
        lines = [
            f"experiment  {self.name}",
            f"data        {self.data.name}: {rows}",
            f"model       {name_of(self.model)}",
            f"objective   {name_of(self.objective.loss)}" + (f", with {', '.join(metrics)}" if metrics else ""),
            f"training    {self.total_steps:,} updates of {self.order.batch_size:,} examples",
            f"            {self.precision}, seed {self.seed}",
        ]
        return "\n".join(line if len(line) <= 118 else line[:115] + "..." for line in lines)

    @cached_property
    def order(self) -> Order:
        """The batches of the training split."""
        order = self._padded_order
        return replace(order, whole_batches=True) if order.has_padding and self.couples_padding else order

    @cached_property
    def _padded_order(self) -> Order:
        from accelnet.data.order import order_of

        return order_of(self.data.splits["train"], self.batch_size, self.microbatch_size, self.data.tickets)

    @cached_property
    def couples_padding(self) -> bool:
        """Whether padding cannot be taken out of the loss, as `accelnet.training.padding` finds it."""
        from accelnet.training.padding import couples_padding

        return couples_padding(self.data, self.objective, lambda: self.pure_model)

    def sample_inputs(self) -> Any:
        """Return one example of prepared inputs, zeros [1, ...]; only shapes and dtypes matter."""
        from accelnet.training.padding import sample_batch

        return sample_batch(self.data, 1)["inputs"]

    def check_outputs(self, outputs: Any, batch: Any) -> None:
        """Refuse outputs and targets that do not suit the task, by their shapes and the data's ranges."""
        from accelnet.objectives.checks import check_outputs

        check_outputs(
            self.objective,
            outputs,
            batch.get("targets"),
            num_classes=self.data.info.get("num_classes"),
            target_range=self._target_range,
        )

    def _target_range(self) -> tuple[float, float] | None:
        found = [self.data.target_range(split).get("targets") for split in self.data.splits]
        ends = [one for one in found if one is not None]
        return (min(low for low, _ in ends), max(high for _, high in ends)) if ends else None

    @cached_property
    def pure_model(self) -> PureModel:
        """The model as pure functions."""
        from accelnet.models.adapter import adapt

        return adapt(self.model, frozen=self.frozen)

    @cached_property
    def transformation(self) -> optax.GradientTransformationExtraArgs:
        """The optimizer as the step calls it."""
        from accelnet.optim import adapt_optimizer

        return adapt_optimizer(self.optimizer)

    @property
    def best_is_lower(self) -> bool:
        """The direction of `best_metric`; where there is no validation split, and nothing is ordered, True."""
        return self.objective.metrics[self.best_metric].lower_is_better is not False

    @cached_property
    def follows_progress(self) -> bool:
        """Whether the optimizer's updates depend on the length of the run."""
        import jax

        from accelnet.optim import uses_progress

        key = jax.random.key(0)
        params, _ = jax.eval_shape(lambda: self.pure_model.init(key, self.sample_inputs()))
        return uses_progress(self.optimizer, params)

    @cached_property
    def placement_rules(self) -> tuple[Rule, ...]:
        """The user's sharding rules, and then those that the model brings along."""
        from accelnet.parallel.rules import ModelRule

        own = self.pure_model.rules(self.sample_inputs())
        return (*self.sharding_rules, *(ModelRule(pattern, spec) for pattern, spec in own))

    def progress(self, step: Any) -> jax.Array:
        """Return the share of the run that is done after a number of updates, float32."""
        import jax.numpy as jnp

        return jnp.asarray(step, jnp.float32) / self.total_steps

    @cached_property
    def final_splits(self) -> tuple[str, ...]:
        """Splits that are evaluated at the end."""
        if self.final_evaluation is not None:
            return tuple(self.final_evaluation)
        rows, seen = self.data.num_examples("train"), self.total_steps * self.order.batch_size
        if self.data.stream is not None:
            rows = math.inf  # its rows come once
        has_rows = [split for split in self.data.splits if self.data.num_examples(split)]
        return tuple(split for split in has_rows if split != "train" or rows <= max(seen, _FEW_ROWS))

    @property
    def total_steps(self) -> int:
        """Updates of the whole run."""
        return self.steps or max(1, math.ceil((self.epochs or 0.0) * self.order.steps_per_epoch))

    @property
    def resolved_eval_batch_size(self) -> int:
        """Examples per evaluation batch."""
        if self.eval_batch_size is not None:
            return self.eval_batch_size
        largest = max(len(rows) for rows in self.data.splits.values())
        return min(max(self.order.microbatch_size, _MIN_EVAL_BATCH_SIZE), largest)

    def description(self) -> dict[str, Any]:
        """Return what makes this run this run, as JSON values: compared when a run is resumed."""
        from accelnet.fingerprint import fingerprint
        from accelnet.models.compressed import Compressed

        small = {"compression": self.model.compression.as_json()} if isinstance(self.model, Compressed) else {}
        parts = {"model": self.model, "optimizer": self.optimizer, "objective": self.objective, "frozen": self.frozen}
        return {
            "experiment": self.name,
            "data": self.data.fingerprint(),
            "batch_size": self.order.batch_size,
            "microbatch_size": self.order.microbatch_size,
            "steps": self.total_steps,
            "seed": self.seed,
            "precision": self.precision,
            **{name: fingerprint(part, self.config) for name, part in parts.items()},
            **small,
            **({"deterministic": True} if self.deterministic else {}),
        } | {name: value for name, value in self.config.items() if name not in ("batch_size", "steps", "seed")}

    def replace(self, **changes: Any) -> Experiment:
        """Return a copy with other values, validated anew."""
        return dataclasses.replace(self, **changes)


def check_experiment(value: Any) -> Experiment:
    """Return an `Experiment`; another thing, such as the function that makes it, raises `UserError`."""
    from accelnet.arguments import instance

    return instance("experiment", value, Experiment, "an Experiment, which a script's function makes of its Config")
