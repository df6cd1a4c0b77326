"""Which numbers of a model's constructor are widths, and which units of the network each of them counts."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from accelnet.compressing.probe import Probe, difference
from accelnet.compressing.spaces import EQUAL, Space, WidthAxis, find_spaces, sliced, zeroed
from accelnet.compressing.trials import Trials, parts_of
from accelnet.errors import UserError
from accelnet.experiment import Experiment


@dataclass(frozen=True)
class Width:
    """Describe a number of the constructor that counts units.

    Attributes:
        paths: Paths of the number among the constructor's arguments; several that are in a proportion which has to stay
            are one width.
        values: The numbers.
        step: What a smaller first number differs by: a multiple of this.
        spaces: Units that it counts, each space for itself.
        error: Largest difference, relative to the largest output, between the model made with a smaller number and the
            whole one in which the others' weights are zero.
        proof: "sliced": that difference vanishes. "exchanged": it does not, since something (a normalization across
            units, or a scale by their number) depends on all units, but the outputs do not depend on their order: what
            a smaller number costs has to be measured.
    """

    paths: tuple[str, ...]
    values: tuple[int, ...]
    step: int
    spaces: tuple[Space, ...] = field(repr=False)
    error: float = 0.0
    proof: str = "sliced"

    @property
    def path(self) -> str:
        """The first of the paths."""
        return self.paths[0]

    @property
    def value(self) -> int:
        """The first of the numbers."""
        return self.values[0]

    def units(self, space: Space, value: int) -> int:
        """Return how many units of a space are left at another number."""
        return space.units - (self.value - value) // self.step * space.per_step

    def numbers(self, value: int) -> dict[str, int]:
        """Return the numbers of a `Compression` at which the first of this width's numbers is another."""
        return {path: one * value // self.value for path, one in zip(self.paths, self.values, strict=True)}


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
            width = self.proven.get(path)
            if width is None:
                reason = self.left.get(path, "the model's constructor has no such number")
                raise UserError(f"{path} cannot be made smaller: {reason}. Widths are {', '.join(self.proven)}")
            if not 0 < value <= width.value or (width.value - value) % width.step:
                raise UserError(
                    f"{path} is to be {value}, expected {width.value} or less by a multiple of {width.step}, above 0"
                )
            numbers |= width.numbers(value)
        return numbers


def find_widths(experiment: Experiment, *, seed: int = 0, say: Callable[[str], None] = lambda _: None) -> Widths:
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
        ('sliced', 'it cannot be smaller')
    """
    trials = Trials(experiment)
    numbers = trials.original.numbers
    proven: dict[str, Width] = {}
    left: dict[str, str] = {}
    candidates: list[tuple[tuple[str, ...], tuple[int, ...], int, list[WidthAxis]]] = []
    for path, value in numbers.items():
        say(f"widths: {path}")
        found = trials.axes((path,), (value,), parts_of([value]))
        if isinstance(found, str):
            left[path] = found
        else:
            candidates.append(((path,), (value,), *found))
    probe = Probe(experiment, seed)
    # One proof for all: where it fails, one for each, since a normalization across units stands in the way of its own.
    with_units = [one for one in (_with_units(probe, *candidate, left, say) for candidate in candidates) if one]
    together = slicing_error(probe, trials, with_units, {one.path: _half(one) for one in with_units})
    for width in with_units:
        _judge(probe, trials, width, together if together <= EQUAL else None, proven, left)
    for paths, values in _in_proportion(numbers, left):
        width = _tied(probe, trials, paths, values, say)
        if width is not None:
            _judge(probe, trials, width, None, proven, left)
    return Widths(proven, {path: left[path] for path in numbers if path in left})


def _in_proportion(
    numbers: Mapping[str, int], left: Mapping[str, str]
) -> Iterator[tuple[tuple[str, ...], tuple[int, ...]]]:
    """Yield numbers none of which is a width alone, and that may be one together: those of a list, and equal ones."""
    by_list: dict[Any, list[str]] = {}
    for path in (path for path in numbers if path in left):
        before, _, last = path.rpartition(".")
        by_list.setdefault((before, last.isdigit()) if last.isdigit() else path, []).append(path)
    by_value: dict[int, list[str]] = {}
    for path in (path for path in numbers if path in left):
        by_value.setdefault(numbers[path], []).append(path)
    for paths in (*by_list.values(), *by_value.values()):
        if len(paths) > 1 and all(path in left for path in paths):
            yield tuple(paths), tuple(numbers[path] for path in paths)


def _tied(
    probe: Probe,
    trials: Trials,
    paths: tuple[str, ...],
    values: tuple[int, ...],
    say: Callable[[str], None],
) -> Width | None:
    """Return the width that several numbers are together, with the smallest step whose units can be told."""
    for part in parts_of(values):
        found = trials.axes(paths, values, [part])
        if not isinstance(found, str) and (width := _with_units(probe, paths, values, *found, {}, say)) is not None:
            return width
    return None


def _with_units(
    probe: Probe,
    paths: tuple[str, ...],
    values: tuple[int, ...],
    step: int,
    axes: Sequence[WidthAxis],
    left: dict[str, str],
    say: Callable[[str], None],
) -> Width | None:
    """Return a width with the units that it counts, or put the reason why they are not known into `left`."""
    say(f"widths: units of {', '.join(paths)}")
    spaces, unknown = find_spaces(probe, axes)
    if not unknown:
        return Width(paths, values, step, tuple(spaces))
    names = ", ".join(dict.fromkeys(axis.name.partition(".")[2] for axis in unknown))
    left[paths[0]] = f"what it counts cannot be exchanged for each other in {names}"
    return None


def _judge(
    probe: Probe,
    trials: Trials,
    width: Width,
    error: float | None,
    proven: dict[str, Width],
    left: dict[str, str],
) -> None:
    """Put a width into `proven` with the error of its proof, or the reason against it into `left`."""
    if error is None:
        error = slicing_error(probe, trials, [width], {width.path: _half(width)})
    if not np.isfinite(error):
        left[width.path] = "the model made with a smaller number has weights of other shapes"
        return
    proven[width.path] = replace(width, error=error, proof="sliced" if error <= EQUAL else "exchanged")
    for path in width.paths:
        left.pop(path, None)


def _half(width: Width) -> int:
    return width.value - (width.value // width.step // 2) * width.step


def slicing_error(probe: Probe, trials: Trials, widths: Sequence[Width], values: Mapping[str, int]) -> float:
    """Return the difference between a model made with smaller numbers and the whole one with zeros for the others.

    Args:
        probe: Model, weights and rows.
        trials: The model made with other numbers.
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
    small = trials.made(numbers)
    weights = sliced(probe.weights, spaces, keep)
    if {name: np.shape(leaf) for name, leaf in weights.items()} != small.shapes:
        return float("inf")
    return difference(whole, probe.outputs(weights, small.model))
