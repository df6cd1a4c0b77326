"""Experiment: what is trained, on what, with what, for how long."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import cached_property
from pathlib import PurePath
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jax.sharding import PartitionSpec

from accelnet import objectives
from accelnet.arguments import check_patterns, names, number, shown, whole, word
from accelnet.data.dataset import Data
from accelnet.data.order import Order
from accelnet.errors import UserCodeError, UserError, user_code
from accelnet.fingerprint import fingerprint
from accelnet.models.adapter import adapt
from accelnet.models.pure import PureModel
from accelnet.objectives.checks import check_outputs
from accelnet.objectives.objective import Objective
from accelnet.optim import adapt_optimizer, uses_progress
from accelnet.parallel.rules import ModelRule, Rule
from accelnet.signature import described, wants
from accelnet.training.events import EarlyStopping, Event, Every

Precision = Literal["float32", "bfloat16", "float16"]
Remat = Literal["none", "products", "blocks"]

# Evaluation keeps no activations for a backward pass, so small training batches may be evaluated in larger ones.
_MIN_EVAL_BATCH_SIZE = 256
# Of a training split with fewer rows the final evaluation takes no time that anybody notices.
_FEW_ROWS = 10_000
_MOST_STEPS = 2**31 - 1  # the state counts in int32
_RHYTHMS = ("log_every", "eval_every", "save_every")


@dataclass(frozen=True, kw_only=True, eq=False)
class Experiment:
    """Say what is trained. Frozen, validated when it is made, and free of side effects.

    Args:
        data: the data set.
        model: a callable `model(rngs=...) -> nnx.Module`, an `nnx.Module`, or a Linen module.
        optimizer: any Optax transformation. Its update gets what it asks for of `value`, `grad`, `value_fn`, `grad_fn`,
            `obj_fn`, `key`, `step` and `progress` (the share of the run that is done).
        objective: the loss and the metrics, or a loss alone, as of `Objective`.
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
        best_metric: metric that "best" means, in the direction that the metric says.
        early_stopping: when to stop before the end. None: never.
        events: what else happens during training, after logging, evaluation and saving.
        final_evaluation: splits evaluated at the end. None: all, but "train" only where it has at most 10,000 rows or
            the run sees as many examples as it has rows.
        initial: weights to start from: nested dicts of arrays, a `Run`, a work directory, a function from the new
            params to others, or an `Initial` that takes a part of one of these; or a sequence of `Initial`s.
        frozen: regular expressions of whole paths, such as "backbone.*": parameters that are not trained. They have no
            gradient and no optimizer state.
        on_device: whether the data is kept on the device. None: if it fits.
        sharding_rules: which mesh axis cuts which parameter: pairs of a regular expression for a parameter's whole
            path, such as "layers.0.linear.kernel", and a `jax.sharding.PartitionSpec`. They come before those that the
            model brings along (accelnet's models, partitioned initializers, or a class attribute `sharding_rules` of
            an nnx module), and the first that matches counts. Without a mesh they mean nothing.
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

    def __post_init__(self) -> None:
        if not isinstance(self.objective, Objective) and callable(self.objective):
            if self.objective in vars(objectives).values():
                name = self.objective.__name__
                raise UserError(f"objective is the function {name} itself, expected what it returns: call it, {name}()")
            object.__setattr__(self, "objective", Objective(self.objective))
        self._check_kinds()
        self._check_lengths()
        self._check_names()
        _ = self._padded_order, self.transformation  # they check sizes and the optimizer

    def _check_kinds(self) -> None:
        for name, kind, expected in (
            ("data", Data, "a Data, as an.data.from_arrays(...)"),
            ("objective", Objective, "an Objective, as an.objectives.squared_error(), or a loss function"),
            ("early_stopping", EarlyStopping | None, "an EarlyStopping or None"),
            ("on_device", bool | None, "True, False or None"),
            ("config", Mapping, "a dict"),
            *((name, Every | None, "a rhythm, as Every(steps=10), or None") for name in _RHYTHMS),
        ):
            value = getattr(self, name)
            if isinstance(value, type) or not isinstance(value, kind):
                raise UserError(f"{name} is {shown(value)}, expected {expected}")
        for name in ("events", "frozen", "sharding_rules"):
            value = getattr(self, name)
            if isinstance(value, str) or not isinstance(value, Sequence):
                raise UserError(f"{name} is {shown(value)}, expected a list")
            object.__setattr__(self, name, tuple(value))
        for event in self.events:
            if not isinstance(event, Event):
                raise UserError(
                    f"events has {shown(event)} in it, expected Events, as Event(Every(epochs=1), function)"
                )
        for rule in self.sharding_rules:
            if not (isinstance(rule, tuple | list) and len(rule) == 2 and isinstance(rule[0], str)):
                raise UserError(f"sharding_rules has {shown(rule)} in it, expected pairs (pattern, PartitionSpec)")
            if not isinstance(rule[1], PartitionSpec):
                raise UserError(f"the sharding rule {rule[0]!r} has {shown(rule[1])}, expected a PartitionSpec")
        check_patterns("frozen", self.frozen)
        for name, value in self.config.items():
            if not _is_plain(value):
                raise UserError(
                    f"config has {name}={shown(value)}, expected numbers, text, lists and dicts: what is recorded has "
                    "to be the same in another process"
                )
        word("name", self.name)

    def _check_lengths(self) -> None:
        if (self.epochs is None) == (self.steps is None):
            raise UserError(f"epochs is {self.epochs} and steps is {self.steps}: give exactly one of them")
        if self.epochs is not None:
            number("epochs", self.epochs, above=0)
        for name, lowest in (
            ("steps", 1), ("eval_batch_size", 1), ("microbatch_size", 1), ("keep_last", 1), ("keep_best", 0),
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None or name.startswith("keep"):
                whole(name, value, lowest, _MOST_STEPS)
        whole("seed", self.seed, 0, 2**32 - 1)
        for name, choices in (("precision", Precision), ("remat", Remat)):
            word(name, getattr(self, name), get_args(choices))
        if isinstance(self.batch_size, str):
            if self.batch_size != "full":
                raise UserError(f'batch_size is {self.batch_size!r}, expected a whole number or "full"')
        else:
            whole("batch_size", self.batch_size, 1)

    def _check_names(self) -> None:
        used = {"best_metric": self.best_metric}
        if self.early_stopping is not None:
            used["early_stopping.metric"] = self.early_stopping.metric
            if not self.data.num_examples("validation"):
                raise UserError(f"early_stopping needs a validation split, and data {self.data.name!r} has none")
        for name, metric in used.items():
            word(name, metric, tuple(self.objective.metrics))
        if self.data.num_examples("validation"):
            for metric in used.values():
                self.objective.lower_is_better(metric)
        if self.final_evaluation is not None:
            for split in names("final_evaluation", self.final_evaluation):
                word("a split of final_evaluation", split, tuple(self.data.splits))

    @cached_property
    def order(self) -> Order:
        """The batches of the training split."""
        order = self._padded_order
        return replace(order, whole_batches=True) if order.has_padding and self.couples_padding else order

    @cached_property
    def _padded_order(self) -> Order:
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
    def couples_padding(self) -> bool:
        """Whether padding cannot be taken out of the loss: one number for a batch, or examples that see each other.

        A loss that asks for `mask` sees to it itself. Whether a loss of each example depends on the others is found by
        its effect, on random outputs; one that also asks for the model or its params is taken at its word.
        """
        asked = wants(self.objective.loss).names
        if "mask" in asked or (getattr(self.objective.loss, "__module__", "") or "").startswith("accelnet."):
            return False
        outputs, loss = jax.eval_shape(self._sample_loss)
        if loss.ndim == 0:
            return True
        try:
            with jax.ensure_compile_time_eval():
                return not asked & {"model", "params", "sown"} and self._sees_others(outputs)
        except (UserCodeError, jax.errors.JAXTypeError):
            # It fails, which the step will say, with the shapes that it has there; or it closes over traced numbers.
            return False

    def _sees_others(self, like: Any) -> bool:
        rng = np.random.default_rng(0)
        rows = self.data.splits["train"][: len(jax.tree.leaves(like)[0])]
        batch = self.data.prepare({**self.data.take(np.array(rows)), "mask": np.ones(len(rows), bool)})
        given = {"key": jax.random.key(0), "step": jnp.int32(0), "progress": jnp.float32(0)}

        def drawn(leaf: Any) -> Any:
            both = rng.normal(size=(2, *leaf.shape)).astype(np.float32)
            both[1, :-1] = both[0, :-1]  # the last example alone differs
            return jnp.asarray(both, leaf.dtype)

        outputs = jax.tree.map(drawn, like)
        losses = jax.jit(jax.vmap(lambda one: self.objective.raw(one, batch, {**given, "train": True})[0]))(outputs)
        first, second = np.asarray(losses)[:, : len(rows) - 1]
        return not np.allclose(first, second, rtol=1e-4, atol=1e-6, equal_nan=True)

    def _sample_loss(self) -> tuple[Any, jax.Array]:
        """Compute outputs and loss of a few examples of zeros in training; only their shapes matter."""
        pure, key = self.pure_model, jax.random.key(0)
        batch = self._sample_batch(min(4, self.data.num_examples("train")))
        given = {"step": jnp.int32(0), "progress": jnp.float32(0)}
        params, state = pure.init(key, batch["inputs"])

        def model(inputs: Any, *, params: Any = params, train: bool = True, method: str | None = None) -> Any:
            return pure.apply(params, state, inputs, key=key, train=train, method=method, **given)[0]

        outputs, _, sown = pure.apply(params, state, batch["inputs"], key=key, train=True, sown=True, **given)
        offered = {"model": model, "params": params, "key": key, "train": True, "sown": sown, **given}
        return outputs, self.objective.raw(outputs, batch, offered)[0]

    def sample_inputs(self) -> Any:
        """Return one example of prepared inputs, zeros [1, ...]; only shapes and dtypes matter."""
        return self._sample_batch(1)["inputs"]

    def _sample_batch(self, rows: int) -> Any:
        batch = jax.tree.map(
            lambda a: jnp.zeros((rows, *a.shape[1:]), jax.dtypes.canonicalize_dtype(a.dtype)), dict(self.data.arrays)
        )
        batch |= {"mask": jnp.ones((rows,), bool)}
        with user_code("prepare", described([batch])):
            return self.data.prepare(batch)

    def check_outputs(self, outputs: Any, batch: Any) -> None:
        """Refuse outputs and targets that do not suit the task, by their shapes and the data's ranges."""
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
        return adapt(self.model, frozen=self.frozen)

    @cached_property
    def transformation(self) -> optax.GradientTransformationExtraArgs:
        """The optimizer as the step calls it."""
        return adapt_optimizer(self.optimizer)

    @property
    def best_is_lower(self) -> bool:
        """The direction of `best_metric`; where there is no validation split, and nothing is ordered, True."""
        return self.objective.metrics[self.best_metric].lower_is_better is not False

    @cached_property
    def follows_progress(self) -> bool:
        """Whether the optimizer's updates depend on the length of the run."""
        key = jax.random.key(0)
        params, _ = jax.eval_shape(lambda: self.pure_model.init(key, self.sample_inputs()))
        return uses_progress(self.optimizer, params)

    @cached_property
    def placement_rules(self) -> tuple[Rule, ...]:
        """The user's sharding rules, and then those that the model brings along."""
        own = self.pure_model.rules(self.sample_inputs())
        return (*self.sharding_rules, *(ModelRule(pattern, spec) for pattern, spec in own))

    def progress(self, step: Any) -> jax.Array:
        """Return the share of the run that is done after a number of updates, float32."""
        return jnp.asarray(step, jnp.float32) / self.total_steps

    @cached_property
    def final_splits(self) -> tuple[str, ...]:
        """Splits that are evaluated at the end."""
        if self.final_evaluation is not None:
            return tuple(self.final_evaluation)
        rows, seen = self.data.num_examples("train"), self.total_steps * self.order.batch_size
        has_rows = [split for split in self.data.splits if self.data.num_examples(split)]
        return tuple(split for split in has_rows if split != "train" or rows <= max(seen, _FEW_ROWS))

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
        } | {name: value for name, value in self.config.items() if name not in ("batch_size", "steps", "seed")}

    def replace(self, **changes: Any) -> "Experiment":
        """Return a copy with other values, validated anew."""
        return dataclasses.replace(self, **changes)


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(name, str) and _is_plain(one) for name, one in value.items())
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    # Of a population's experiments, numbers that differ between members are traced.
    traced = isinstance(value, Tracer) or hasattr(value, "__jax_array__")
    return traced or value is None or isinstance(value, bool | int | float | str | PurePath | np.generic | Enum)
