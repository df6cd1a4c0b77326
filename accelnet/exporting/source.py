"""What is exported, and what its exports are compared with: a run, or an artifact alone."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from accelnet.artifact.model import Model
from accelnet.artifact.program import NotAccelnetsError
from accelnet.artifact.saving import forward_in
from accelnet.errors import UserError
from accelnet.exporting.difference import TOLERANCES
from accelnet.exporting.example_rows import example_rows
from accelnet.exporting.scores import make_score
from accelnet.training.run import Run

# Enough for a metric, and no more than is read in a moment.
_MOST_ROWS = 2048
_BATCH = 256

Answers = dict[str, np.ndarray]


@dataclass(frozen=True)
class ExportedModel:
    """Hold a model that is exported, and rows to check its exports with.

    Attributes:
        model: Its artifact.
        answer: Function of weights by name and encoded inputs that gives the answers, for JAX to trace. None: there is
            only the artifact's program.
        reason: Why there is no such function.
        rows: Encoded inputs, arrays [N, ...]; N is a multiple of `size`.
        size: Rows of a batch.
        told: What the rows are, in words.
        score: Function of the answers to all rows that gives the metrics; None without targets.
        timed: Whether exports are timed beside the model.
    """

    model: Model
    answer: Callable[..., Any] | None
    reason: str
    rows: Any
    size: int
    told: str
    score: Callable[[Mapping[str, np.ndarray]], dict[str, float]] | None
    timed: bool = True

    @property
    def count(self) -> int:
        """Number of rows."""
        return len(jax.tree.leaves(self.rows)[0])

    @property
    def sizes(self) -> list[int]:
        """Batch sizes at which exports are timed: 1 and `size`, where the program takes any."""
        if not self.timed:
            return []
        return [self.size] if self.model.schema["batch"] else sorted({1, self.size})

    @property
    def tolerance(self) -> float:
        """Difference that counts as rounding, as a share of the largest output."""
        few_bits = any(np.dtype(one.dtype) in (np.int8, np.uint8) for one in self.model.weights.values())
        own = TOLERANCES.get(str(self.model.recipe["precision"]), TOLERANCES["float32"])
        return max(own, TOLERANCES["int8"]) if few_bits else own

    @functools.cached_property
    def call(self) -> Callable[..., Any]:
        """Compiled function of weights by name and encoded inputs that gives the answers."""
        return jax.jit(self.model.exported().call if self.answer is None else self.answer)

    @property
    def shapes(self) -> Any:
        """Inputs of the program by shape and dtype, with the sizes that may be any."""
        exported = self.model.exported()
        (_, inputs), _ = jax.tree.unflatten(exported.in_tree, exported.in_avals)
        return jax.tree.map(lambda aval: jax.ShapeDtypeStruct(aval.shape, aval.dtype), inputs)

    @functools.cached_property
    def reference(self) -> Callable[[Any], Answers]:
        """The compiled function from encoded inputs to answers, on the CPU, where the other runtimes compute."""
        weights = jax.device_put(dict(self.model.weights), _cpu())
        return lambda inputs: {k: np.asarray(one) for k, one in jax.device_get(self.call(weights, inputs)).items()}

    @functools.cached_property
    def own_score(self) -> dict[str, float]:
        """Metrics of the model itself on the rows; empty without targets."""
        if self.score is None:
            return {}
        parts = [self.reference(inputs) for inputs in batches(self.rows, self.size)]
        return self.score({name: np.concatenate([one[name] for one in parts]) for name in parts[0]})

    def closed(self) -> Callable[[Any], Any]:
        """Return the function of encoded inputs alone, with the weights inside, for JAX to trace.

        Raises:
            UserError: if there is none.
        """
        if self.answer is None:
            raise UserError(
                f"{self.model.path} holds a program and not its layers ({self.reason}): export it with the script that "
                "made it, `python script.py export --workdir ...`, or an.export(run, ...); stablehlo needs no layers"
            )
        return functools.partial(self.answer, dict(self.model.weights))


def source_of_model(model: Model) -> ExportedModel:
    """Return an artifact alone as a source, with rows drawn from its schema.

    Args:
        model: The artifact.
    """
    answer, reason = None, ""
    try:
        answer = model.rebuilt()
    except NotAccelnetsError as error:
        reason = str(error)
    size = model.schema["batch"] or _BATCH
    rows = _as_program_takes(example_rows(model.schema, size))
    return ExportedModel(model, answer, reason, rows, size, "random rows", None)


def source_of_run(run: Run, model: Model) -> ExportedModel:
    """Return a run as a source, with rows of its validation split, or of another where there is none.

    Args:
        run: The run.
        model: Its artifact, of the same weights.
    """
    experiment, data = run.experiment, run.experiment.data
    split = next(name for name in ("validation", "test", "train") if data.num_examples(name))
    rows = data.splits[split]
    size = model.schema["batch"] or min(experiment.resolved_eval_batch_size, len(rows), _MOST_ROWS)
    count = size * max(1, min(len(rows), _MOST_ROWS) // size)
    index = rows.start + np.arange(count) * len(rows) // count
    batch = data.take(index)
    forward = forward_in(
        experiment.pure_model, (run.params, run.model_state), data, experiment.precision, run.step,
        float(experiment.progress(run.step)),
    )  # fmt: skip
    answer = forward.answer(experiment.objective.task, data.fitted.get("target"))
    score = make_score(run, batch, size)
    return ExportedModel(model, answer, "", _as_program_takes(batch["inputs"]), size, split, score)


def batches(inputs: Any, size: int) -> list[Any]:
    """Cut inputs into batches.

    Example:
        >>> batches(np.arange(4), 2)
        [array([0, 1]), array([2, 3])]
    """
    count = len(jax.tree.leaves(inputs)[0])
    return [jax.tree.map(lambda one, at=at: one[at : at + size], inputs) for at in range(0, count, size)]


def _cpu() -> Any:
    try:
        return jax.devices("cpu")[0]
    except RuntimeError:  # JAX_PLATFORMS leaves it out
        return jax.devices()[0]


def _as_program_takes(inputs: Any) -> Any:
    """Give inputs the types that programs have for them, such as int32 for int64."""
    return jax.tree.map(lambda one: np.asarray(one, jax.dtypes.canonicalize_dtype(one.dtype)), inputs)
