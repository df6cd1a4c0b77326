"""Which numbers of a model's constructor are widths, and which units of the network each of them counts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from accelnet.artifact.recipe import flattened
from accelnet.compressing.probe import Probe, difference
from accelnet.compressing.spaces import EQUAL, Axis, Space, find_spaces, sliced, zeroed
from accelnet.errors import UserCodeError, UserError
from accelnet.experiment import Experiment
from accelnet.models.adapter import adapt
from accelnet.models.compressed import Compressed, Compression
from accelnet.models.pure import PureModel

_MOST_STEPS_TRIED = 8
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Width:
    """Describe a number of the constructor that counts units.

    Attributes:
        paths: Paths of the number among the constructor's arguments; several that have to be equal are one width.
        value: The number.
        step: What a smaller number differs by: a multiple of this.
        spaces: Units that it counts, each space for itself.
        error: Largest difference, relative to the largest output, between the model made with a smaller number and the
            whole one in which the others' weights are zero.
        proof: "sliced": that difference vanishes. "exchanged": it does not, since something (a normalization across
            units, or a scale by their number) depends on all units, but the outputs do not depend on their order: what
            a smaller number costs has to be measured.
    """

    paths: tuple[str, ...]
    value: int
    step: int
    spaces: tuple[Space, ...] = field(repr=False)
    error: float = 0.0
    proof: str = "sliced"

    @property
    def path(self) -> str:
        """The first of the paths."""
        return self.paths[0]

    def units(self, space: Space, value: int) -> int:
        """Return how many units of a space are left at another number."""
        return space.units - (self.value - value) // self.step * space.per_step

    def numbers(self, value: int) -> dict[str, int]:
        """Return the numbers of a `Compression` at which this width is another."""
        return dict.fromkeys(self.paths, value)


@dataclass(frozen=True)
class Widths:
    """Hold what of a model's numbers can be made smaller.

    Attributes:
        proven: Widths by the first of their paths.
        left: Numbers that are left alone, by path, and the reason.
    """

    proven: dict[str, Width]
    left: dict[str, str]

    def smaller(self, values: Mapping[str, int]) -> dict[str, int]:
        """Return all numbers of the constructor for some widths' new values.

        Raises:
            UserError: if one is no proven width, or its value is none that it can have.
        """
        numbers: dict[str, int] = {}
        for path, value in values.items():
            width = next((one for one in self.proven.values() if path in one.paths), None)
            if width is None:
                reason = self.left.get(path, "the model's constructor has no such number")
                raise UserError(f"{path} cannot be made smaller: {reason}. Widths are {', '.join(self.proven)}")
            if not 0 < value <= width.value or (width.value - value) % width.step:
                raise UserError(
                    f"{path} is to be {value}, expected {width.value} or less by a multiple of {width.step}, above 0"
                )
            numbers |= width.numbers(value)
        return numbers


def find_widths(experiment: Experiment, *, seed: int = 0, say: Callable[[str], None] = lambda text: None) -> Widths:
    """Find the widths of a model among the whole numbers of its outermost constructor.

    The axes that belong to a number are the difference of two initializations, as shapes: with the number, and with the
    next smaller one with which the model can be made. Which units lie where is found and proven by running the model
    (`find_spaces`). Last, the model made with the smaller number has to compute what the whole one does whose other
    units are zero, to 1e-5 of the largest output. No layer has a rule of its own.

    Args:
        experiment: Experiment of the model, whose training rows it runs on.
        seed: Seed of the random weights that the proof runs with.
        say: Function that is told what is being done.

    Raises:
        UserError: if no constructor can make the model again.

    Example:
        >>> import accelnet as an
        >>> experiment = an.Experiment(
        ...     data=an.data.xor(),
        ...     model=lambda rngs: an.models.MLP(2, (8,), 1, rngs=rngs),
        ...     batch_size=4,
        ...     steps=1,
        ...     optimizer=an.optim.adam(1e-2),
        ...     objective=an.objectives.sigmoid_cross_entropy(),
        ... )
        >>> found = find_widths(experiment)
        >>> found.proven["hidden_features.0"].proof, found.left["out_features"]
        ('sliced', "it changes the model's outputs")
    """
    made = Compressed(experiment.model, Compression())
    whole = _Made(experiment, made, {})
    proven: dict[str, Width] = {}
    left: dict[str, str] = {}
    candidates: list[tuple[tuple[str, ...], int, int, list[Axis]]] = []
    for path, value in made.numbers.items():
        say(f"widths: {path}")
        found = _axes(experiment, made, whole, (path,), value)
        if isinstance(found, str):
            left[path] = found
        else:
            candidates.append(((path,), value, *found))
    touched = {axis.name for *_, axes in candidates for axis in axes}
    probe = Probe(experiment, sorted(touched), seed)
    for paths, value, step, axes in candidates:
        say(f"widths: units of {paths[0]}")
        _prove(probe, made, paths, value, step, axes, proven, left)
    for paths, value in _equal(made.numbers, left):
        say(f"widths: {', '.join(paths)} as one")
        found = _axes(experiment, made, whole, paths, value)
        if not isinstance(found, str):
            _prove(probe, made, paths, value, *found, proven, left)
    return Widths(proven, {path: left[path] for path in made.numbers if path in left})


def _equal(numbers: Mapping[str, int], left: Mapping[str, str]) -> list[tuple[tuple[str, ...], int]]:
    """Return equal numbers, at least two of a value, none of which is a width alone."""
    values: dict[int, list[str]] = {}
    for path in left:
        values.setdefault(numbers[path], []).append(path)
    return [(tuple(paths), value) for value, paths in values.items() if len(paths) > 1 and value > 1]


class _Made:
    """The shapes of a model made with other numbers, and those of its outputs."""

    def __init__(self, experiment: Experiment, made: Compressed, numbers: Mapping[str, int]) -> None:
        self.model = _smaller(experiment, made, numbers)
        inputs = experiment.sample_inputs()
        weights = jax.eval_shape(lambda: self.model.init(jax.random.key(0), inputs))
        self.shapes: Shapes = {name: leaf.shape for name, leaf in flattened(weights).items()}
        self._weights, self._inputs = weights, inputs

    def outputs(self) -> Any:
        """Return the shapes of the outputs."""
        offered = {"step": jnp.int32(0), "progress": jnp.float32(0)}

        def apply(weights: Any) -> Any:
            return self.model.apply(*weights, self._inputs, key=jax.random.key(0), train=False, **offered)[0]

        return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), jax.eval_shape(apply, self._weights))


def _smaller(experiment: Experiment, made: Compressed, numbers: Mapping[str, int]) -> PureModel:
    return adapt(made.with_widths(numbers), frozen=experiment.frozen)


def _axes(
    experiment: Experiment, made: Compressed, whole: _Made, paths: tuple[str, ...], value: int
) -> tuple[int, list[Axis]] | str:
    """Return the step of a width and the axes that become shorter, or why it is no width."""
    steps = [step for step in range(1, value) if value % step == 0][:_MOST_STEPS_TRIED]
    reason = "it cannot be smaller"
    for step in steps:
        try:
            one = _Made(experiment, made, dict.fromkeys(paths, value - step))
            if one.shapes == whole.shapes:
                return "no parameter depends on it"
            if set(one.shapes) != set(whole.shapes):
                return "it changes which parameters there are"
            if one.outputs() != whole.outputs():
                return "it changes the model's outputs"
        except (UserError, UserCodeError, TypeError, ValueError) as error:
            reason = f"the model cannot be made or called with {value - step}: {_line(error)}"
            continue
        axes = _shorter(whole.shapes, one.shapes, value, step)
        if isinstance(axes, str):
            reason = axes
            continue
        return step, axes
    return reason


def _line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines()[::-1] if line.strip()), type(error).__name__)[:200]


def _shorter(whole: Shapes, less: Shapes, value: int, step: int) -> list[Axis] | str:
    found = []
    for name, shape in whole.items():
        if len(less[name]) != len(shape):
            return f"it changes the number of axes of {name}"
        for axis, (size, smaller) in enumerate(zip(shape, less[name], strict=True)):
            if size != smaller:
                lost = size - smaller
                grown = lost * (value // step)
                if lost < 0 or grown > size:
                    return f"{name} does not grow in proportion to it"
                found.append(Axis(name, axis, size, lost, grown))
    return found


def _prove(
    probe: Probe,
    made: Compressed,
    paths: tuple[str, ...],
    value: int,
    step: int,
    axes: Sequence[Axis],
    proven: dict[str, Width],
    left: dict[str, str],
) -> None:
    """Put a candidate into `proven`, or the reason against it into `left`."""
    spaces, unknown = find_spaces(probe, axes)
    if unknown:
        names = ", ".join(dict.fromkeys(axis.name.partition(".")[2] for axis in unknown))
        reason = f"its units cannot be told from each other's weights in {names}"
    else:
        width = Width(paths, value, step, tuple(spaces))
        error = slicing_error(probe, made, [width], {paths[0]: _half(value, step)})
        if np.isfinite(error):
            proof = "sliced" if error <= EQUAL else "exchanged"
            proven[paths[0]] = Width(paths, value, step, tuple(spaces), error, proof)
            for path in paths:
                left.pop(path, None)
            return
        reason = "the model made with a smaller number takes other weights"
    for path in paths:
        left.setdefault(path, reason)


def _half(value: int, step: int) -> int:
    return value - (value // step // 2) * step


def slicing_error(probe: Probe, made: Compressed, widths: Sequence[Width], values: Mapping[str, int]) -> float:
    """Return the difference between a model made with smaller numbers and the whole one with zeros for the others.

    Args:
        probe: Model, weights and rows.
        made: The model.
        widths: Widths that become smaller.
        values: Their new values by path.

    Returns:
        Largest difference relative to the largest output; infinity where the shapes do not suit.
    """
    rng = np.random.default_rng(0)
    spaces, keep, numbers = [], [], {}
    for width in widths:
        numbers |= width.numbers(values[width.path])
        for space in width.spaces:
            spaces.append(space)
            keep.append(np.sort(rng.permutation(space.units)[: width.units(space, values[width.path])]))
    gone = [
        (part, np.setdiff1d(np.arange(space.units), kept))
        for space, kept in zip(spaces, keep, strict=True)
        for part in space.parts
    ]
    whole = probe.outputs(zeroed(probe.weights, gone))
    small = _Made(probe.experiment, made, numbers)
    weights = sliced(probe.weights, spaces, keep)
    if {name: np.shape(leaf) for name, leaf in weights.items()} != small.shapes:
        return float("inf")
    return difference(whole, probe.outputs(weights, small.model))
