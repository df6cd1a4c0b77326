"""Run: what is left in hand when an experiment has been trained."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from accelnet.arguments import path as checked_path
from accelnet.artifact.saving import save_model
from accelnet.errors import UserError
from accelnet.experiment import Experiment
from accelnet.models.precision import with_precision
from accelnet.models.pure import merged
from accelnet.parallel.layout import to_addressable
from accelnet.parallel.rules import path_names
from accelnet.training.batch import prepared
from accelnet.training.curves import curves
from accelnet.training.evaluation import Weights
from accelnet.training.profile import Profile, read_profile
from accelnet.training.record import ROW_FIELDS
from accelnet.training.state import TrainState
from accelnet.training.timing import account_line
from accelnet.wording import shown, size


@dataclass(frozen=True, eq=False, repr=False)
class Run:
    """A trained experiment.

    Attributes:
        experiment: What was trained.
        state: `TrainState` at the end.
        metrics: Metrics of the final weights, by split and name: `run.metrics["test"]["accuracy"]`. They are exact
            over every example, without dropout or augmentation. Empty for a split that was not evaluated.
        rows: Metrics recorded on the way.
        result: Content of result.json.
        weights: Weights that the state is evaluated with: its params, or their average with the batch statistics that
            belong to it. None: those of the state.
    """

    experiment: Experiment
    state: TrainState
    metrics: Mapping[str, Mapping[str, float]]
    rows: list[dict[str, Any]]
    result: Mapping[str, Any]
    weights: Weights | None = None
    _find_best: Callable[[], "Run"] | None = None

    def __repr__(self) -> str:
        arrays = [leaf for leaf in jax.tree.leaves(self._weights.params) if hasattr(leaf, "nbytes")]
        lines = [f"run         {self.experiment.name}, step {self.step:,} of {self.experiment.total_steps:,}"]
        for split, metrics in list(self.metrics.items())[:7]:
            told = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items() if value is not None)
            lines += [f"{split:<11.11} {told}"] if told else []
        weights = sum(leaf.size for leaf in arrays), size(sum(leaf.nbytes for leaf in arrays))
        lines.append(f"weights     {weights[0]:,} numbers, {weights[1]}")
        if "timing" in self.result:
            lines.append("time        " + account_line(self.result["timing"]).removeprefix("time "))
        lines.append("what next   run.plot(), run.predict(inputs), run.model, run.best, run.save('model.accelnet')")
        return "\n".join(line if len(line) <= 118 else line[:115] + "..." for line in lines)

    @property
    def step(self) -> int:
        """Updates made."""
        return int(self.state.step)

    @cached_property
    def _weights(self) -> Weights:
        return self.weights or Weights.of(self.state)

    @property
    def params(self) -> Any:
        """The final weights, averaged ones where the optimizer keeps such, frozen ones among them.

        Where they lie on the devices of several processes, all of these have to ask.
        """
        return merged(to_addressable(self._weights.params), to_addressable(self._weights.frozen))

    @property
    def model_state(self) -> Any:
        """The model's state that belongs to `params`: batch statistics and whatever else the model keeps."""
        return to_addressable(self._weights.model_state)

    @property
    def profile(self) -> Profile:
        """Where the time of a step went, of a run with `profile=True`."""
        workdir = self.result.get("workdir")
        if workdir is None:
            raise UserError("the run has no work directory and no profile: train with workdir= and profile=True")
        return read_profile(Path(workdir))

    @cached_property
    def model(self) -> Any:
        """The live Flax module with its weights, in evaluation mode (Linen: bound)."""
        return self.experiment.pure_model.module(self.params, self.model_state)

    @cached_property
    def best(self) -> "Run":
        """The run as it was at the evaluation with the best validation metric, evaluated on the same splits.

        Raises:
            UserError: if there was no validation, or the weights were not kept: without a work directory they are kept
                with `EarlyStopping(restore_best=True)` or `keep_best` of at least 1, in one process.
        """
        if self._find_best is None:
            raise UserError("the best weights of this run were not kept: train in a work directory (workdir=...)")
        return self._find_best()

    @cached_property
    def _forward(self) -> Callable[..., Any]:
        experiment = self.experiment
        apply = with_precision(experiment.pure_model.apply, experiment.precision)

        def forward(params: Any, model_state: Any, batch: Any, key: Any, step: Any) -> Any:
            given = {"step": step, "progress": experiment.progress(step)}
            inputs = prepared(experiment, batch)["inputs"]
            outputs, _ = apply(params, model_state, inputs, key=key, train=False, **given)
            return outputs

        return jax.jit(forward)

    def predict(self, inputs: Any, *, key: jax.Array | None = None) -> jax.Array:
        """Compute outputs of raw inputs, prepared as in training, in the run's precision.

        Args:
            inputs: Inputs as in the data's arrays: [B, ...] or a dict of such, or what `Data.encode` takes.
            key: Key of the noise of a model that draws some in evaluation too. None: always the same.

        Returns:
            The model's outputs, [B, ...].

        Raises:
            UserError: if the inputs are of other shapes or kinds than the data's.
        """
        if not (key is None or _is_key(key)):
            raise UserError(f"key is {shown(key)}, expected a PRNG key, as jax.random.key(0), or None")
        batch = _raw_batch(self.experiment, inputs)
        weights = (self.params, self.model_state)
        key = jax.random.key(0) if key is None else key
        # Without memory for the outputs, whoever reads them would wait for ever: see `fetched`.
        return jax.block_until_ready(self._forward(*weights, batch, key, self._weights.step))

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the trained model into one file, which `accelnet.load` reads without the script and the data.

        It is a zip of weights, of the program from raw inputs to answers for any batch on a CPU, a GPU or a TPU, of
        names, units, metrics, settings and versions, and of a model card. The same run gives the same bytes.

        Args:
            path: File, whose name ends in ".accelnet". Where the weights lie on the devices of several processes, all
                of these have to call it, and the first one writes.

        Returns:
            The path.

        Raises:
            UserError: if jax cannot export the model, or the file cannot be written.
        """
        experiment, weights = self.experiment, (self.params, self.model_state)
        path = checked_path("path", path)
        if jax.process_index():
            return path
        metrics = {split: values for split, values in self.metrics.items() if values}
        for row in self.rows:  # of a checkpoint that was restored without an evaluation
            if row["step"] == self.step and row["split"] not in ("train", *metrics):
                metrics[row["split"]] = {name: value for name, value in row.items() if name not in ROW_FIELDS}
        told = {"experiment": experiment.name, "settings": experiment.config, "data": experiment.data.fingerprint()}
        return save_model(
            path,
            model=experiment.pure_model,
            weights=weights,
            data=experiment.data,
            task=experiment.objective.task,
            precision=experiment.precision,
            progress=float(experiment.progress(self._weights.step)),
            metrics={"step": self.step, "metrics": metrics, "intervals": {}},
            config=told,
        )

    def plot(self) -> Any:
        """Return the curves of the run: loss, metrics and learning rate against steps (a Matplotlib figure)."""
        return curves(self.rows, title=self.experiment.name, directions=self.experiment.objective.directions)


def _is_key(value: Any) -> bool:
    dtype = getattr(value, "dtype", None)
    words = dtype == jnp.uint32 and value.ndim == 1  # a key of jax.random.PRNGKey
    return dtype is not None and (words or jnp.issubdtype(dtype, jax.dtypes.prng_key))


def _raw_batch(experiment: Experiment, inputs: Any) -> dict[str, Any]:
    """Return a batch as the data's `prepare` takes it: with targets, which it may look at, of zeros."""
    arrays = dict(experiment.data.arrays)
    if not any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(inputs)):  # under jit: as the arrays
        inputs = experiment.data.encode(inputs)
    expected, given = ({name: np.shape(leaf) for name, leaf in path_names(tree)} for tree in (arrays["inputs"], inputs))
    lengths = {shape[:1] for shape in given.values()}
    fits = expected.keys() == given.keys() and all(given[name][1:] == expected[name][1:] for name in expected)
    if not fits or len(lengths) != 1 or lengths == {(0,)} or () in lengths:
        rows = {name or "inputs": ["B", *shape[1:]] for name, shape in expected.items()}
        came = {name or "inputs": list(shape) for name, shape in given.items()}
        raise UserError(f"inputs to predict have shapes {came}, expected {rows}, of B examples, at least one")
    (num_rows,) = next(iter(lengths))

    def zeros(array: Any) -> jax.Array:
        return jnp.zeros((num_rows, *array.shape[1:]), jax.dtypes.canonicalize_dtype(array.dtype))

    others = {name: jax.tree.map(zeros, array) for name, array in arrays.items() if name not in ("inputs", "weights")}
    return {**others, "inputs": jax.tree.map(jnp.asarray, inputs), "mask": jnp.ones((num_rows,), bool)}
