"""A model made with smaller numbers, as shapes alone: what becomes shorter."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from accelnet.artifact.recipe import flattened
from accelnet.compressing.spaces import WidthAxis
from accelnet.errors import UserCodeError, UserError
from accelnet.experiment import Experiment
from accelnet.models.adapter import adapt
from accelnet.models.compressed import Compressed, Compression

_MOST_TRIED = 6  # smaller numbers of one width


class Made:
    """Hold a model, the shapes of its weights, and those of its outputs.

    Args:
        experiment: Experiment of the model, whose inputs it is called on.
        model: The model.

    Attributes:
        model: The model as pure functions.
        shapes: Shapes of its weights by name.
    """

    def __init__(self, experiment: Experiment, model: Any) -> None:
        self.model = adapt(model, frozen=experiment.frozen)
        self._inputs = experiment.sample_inputs()
        self._weights = jax.eval_shape(lambda: self.model.init(jax.random.key(0), self._inputs))
        self.shapes = {name: leaf.shape for name, leaf in flattened(self._weights).items()}

    def outputs(self) -> Any:
        """Return the shapes and types of the outputs."""
        offered = {"step": jnp.int32(0), "progress": jnp.float32(0)}

        def apply(weights: Any) -> Any:
            params, state = weights
            return self.model.apply(params, state, self._inputs, key=jax.random.key(0), train=False, **offered)[0]

        return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), jax.eval_shape(apply, self._weights))


class Trials:
    """Make an experiment's model with other numbers.

    Args:
        experiment: The experiment.

    Attributes:
        original: The model as it is.

    Raises:
        UserError: if no constructor can make the model again.
    """

    def __init__(self, experiment: Experiment) -> None:
        self.original = Compressed(experiment.model, Compression())
        self._experiment = experiment
        self._whole = self.made({})
        self._outputs = self._whole.outputs()

    def made(self, numbers: Mapping[str, int]) -> Made:
        """Return the model with other numbers."""
        return Made(self._experiment, Compressed(self.original, Compression(numbers)))

    def axes(
        self, paths: Sequence[str], values: Sequence[int], parts: Sequence[int]
    ) -> tuple[int, list[WidthAxis]] | str:
        """Find which axes of which weights become shorter with some numbers.

        Args:
            paths: Paths of the numbers, which stay in proportion.
            values: The numbers.
            parts: By which parts of their greatest common divisor they are tried to be smaller.

        Returns:
            By how much the first number is smaller in the first trial that succeeds, and the axes; or why none does.
        """
        whole, reason = math.gcd(*values), "it cannot be smaller"
        for part in parts:
            numbers = {path: value - value * part // whole for path, value in zip(paths, values, strict=True)}
            try:
                one = self.made(numbers)
                if one.shapes == self._whole.shapes:
                    return "no parameter depends on it"
                if set(one.shapes) != set(self._whole.shapes):
                    return "it changes which parameters there are"
                if one.outputs() != self._outputs:
                    return "it changes the model's outputs"
            except (UserError, UserCodeError, TypeError, ValueError) as error:
                reason = f"the model cannot be made or called with {numbers[paths[0]]}: {_line(error)}"
                continue
            found = self._shorter(one, whole // part)
            if not isinstance(found, str):
                return values[0] * part // whole, found
            reason = found
        return reason

    def _shorter(self, less: Made, times: int) -> list[WidthAxis] | str:
        found = []
        for name, shape in self._whole.shapes.items():
            if len(less.shapes[name]) != len(shape):
                return f"it changes the number of axes of {name.partition('.')[2]}"
            for axis, (size, smaller) in enumerate(zip(shape, less.shapes[name], strict=True)):
                if size != smaller:
                    lost = size - smaller
                    if lost < 0 or lost * times > size:
                        return f"{name.partition('.')[2]} does not grow in proportion to it"
                    found.append(WidthAxis(name, axis, size, lost, lost * times))
        return found


def parts_of(values: Sequence[int]) -> list[int]:
    """Return the first six parts of the numbers' greatest common divisor, by which they may become smaller.

    Example:
        >>> parts_of([16, 24])
        [1, 2, 4]
    """
    whole = math.gcd(*values)
    return [part for part in range(1, whole) if whole % part == 0][:_MOST_TRIED]


def _line(error: Exception) -> str:
    return next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)
