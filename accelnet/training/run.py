"""Run: what is left in hand when an experiment has been trained."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp

from accelnet.experiment import Experiment
from accelnet.optim import eval_params
from accelnet.parallel.layout import whole
from accelnet.training.curves import curves
from accelnet.training.state import TrainState


@dataclass(frozen=True, eq=False)
class Run:
    """A trained experiment.

    Attributes:
        experiment: what was trained.
        state: the `TrainState` at the end.
        metrics: of the final weights, by split and name: `run.metrics["test"]["accuracy"]`. Exact over every
            example of the split, without dropout or augmentation.
        rows: the metrics recorded on the way.
        result: what result.json holds.

    Source: original.
    """

    experiment: Experiment
    state: TrainState
    metrics: Mapping[str, Mapping[str, float]]
    rows: list[dict[str, Any]] = field(repr=False)
    result: Mapping[str, Any] = field(repr=False)

    @property
    def step(self) -> int:
        """Updates made."""
        return int(self.state.step)

    @property
    def params(self) -> Any:
        """The final weights, averaged ones where the optimizer keeps such.

        Where they lie on the devices of several processes, all of these have to ask.
        """
        return whole(eval_params(self.state.opt_state, self.state.params))

    @cached_property
    def model(self) -> Any:
        """The live Flax module with its weights, in evaluation mode (Linen: bound)."""
        return self.experiment.pure_model.module(self.params, whole(self.state.model_state))

    def predict(self, inputs: Any) -> jax.Array:
        """Compute outputs of raw inputs, prepared as in training.

        Args:
            inputs: as in the data's arrays: [B, ...] or a dict of such.

        Returns:
            The model's outputs, [B, ...].
        """
        inputs = jax.tree.map(jnp.asarray, inputs)
        rows = len(jax.tree.leaves(inputs)[0])
        # Sources prepare targets along with the inputs, so there have to be some.
        others = {name: array for name, array in self.experiment.data.arrays.items() if name != "inputs"}
        others = jax.tree.map(lambda a: jnp.zeros((rows, *a.shape[1:]), jax.dtypes.canonicalize_dtype(a.dtype)), others)
        batch = self.experiment.data.prepare({**others, "inputs": inputs, "mask": jnp.ones((rows,), bool)})
        outputs, _ = self.experiment.pure_model.apply(
            self.params, whole(self.state.model_state), batch["inputs"], key=jax.random.key(0), train=False
        )
        return outputs

    def plot(self) -> Any:
        """Return the curves of the run: loss, metrics and learning rate against steps (a Matplotlib figure)."""
        return curves(self.rows, title=self.experiment.name)
