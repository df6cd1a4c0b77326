"""What is proposed to the search: networks with so many times fewer FLOPs, by each method."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from accelnet.compressing.bits import quantizable, to_training
from accelnet.compressing.candidate import Cost, Proposal, Weighing, cost_of, weighing_of
from accelnet.compressing.elimination import prune
from accelnet.compressing.fewer_bits import BFLOAT16, FewerBits
from accelnet.compressing.layer_inputs import InputMoments
from accelnet.compressing.measured import Say
from accelnet.compressing.ranks import factorize, spectra
from accelnet.compressing.sensitivity import Sensitivity
from accelnet.compressing.spectrum import choose_ranks, rank_sensitivity
from accelnet.compressing.speed import slower_recurrences
from accelnet.compressing.teacher import taught
from accelnet.compressing.ways import Bits, Ways
from accelnet.compressing.widths import Widths, find_widths
from accelnet.errors import UserError
from accelnet.experiment import Experiment
from accelnet.models.compressed import Compressed, Compression, made_by
from accelnet.training.run import Run

BITS = {"bfloat16": 16, "int8": 8, "int4": 4}
_SHARE_OF_RANKS = 1.5  # of the factor, where widths are smaller too
_SHARES = 64  # steps between nothing and all of the widths
_ROUND = 1.05  # a network that costs as much more than a share is taken for that share


def smaller(width: int, share: float, step: int = 1) -> int:
    """Return a share of a width as a number that processors like: a multiple of 16, of smaller widths of 8 or 4.

    Args:
        width: The width.
        share: Share of it, above 0 and at most 1.
        step: Number that divides what is taken away.

    Example:
        >>> [smaller(width, 0.5) for width in (300, 64, 20, 3)], smaller(192, 0.3, step=12)
        ([144, 32, 8, 1], 48)
    """
    wanted, possible = width * share, nice_numbers(width, step)
    return max((one for one in possible if one <= wanted), default=possible[0])


def nice_numbers(width: int, step: int = 1) -> list[int]:
    """Return the numbers that a width may have: ascending, the width itself last.

    Args:
        width: The width.
        step: Number that divides what is taken away.

    Example:
        >>> nice_numbers(32), nice_numbers(20)
        ([1, 2, 4, 8, 16, 24, 32], [1, 2, 4, 8, 12, 16, 20])
    """
    possible = [width - gone for gone in range(0, width, step)]
    found, nice = {width, min(possible)}, next((one for one in (16, 8, 4) if one * 4 <= width), 1)
    found |= {one for one in possible if one % nice == 0}
    while nice > 1:  # below the grid, halves of it
        nice //= 2
        found |= {one for one in possible if one == nice}
    return sorted(found)


class WidthLadder:
    """Networks with smaller widths, all by the same share.

    Args:
        run: The run.
        widths: Widths that can be smaller.
        say: Function that is told what is being done.
    """

    def __init__(self, run: Run, widths: Widths, say: Say) -> None:
        self._run, self._widths, self._say = run, widths, say
        self._total = cost_of(run.experiment)
        self._costs: dict[tuple[int, ...], tuple[Experiment, Cost]] = {}

    def at_share(self, share: float) -> dict[str, int]:
        """Return the widths at a share."""
        return {path: smaller(one.value, share, one.step) for path, one in self._widths.proven.items()}

    def costs(self, values: Mapping[str, int]) -> tuple[Experiment, Cost]:
        """Return the experiment with these widths, and its cost in closed form."""
        key = tuple(values.values())
        if key not in self._costs:
            made = Compressed(self._run.experiment.model, Compression(widths=self._widths.smaller(values)))
            experiment = self._run.experiment.replace(model=made, initial=None)
            self._costs[key] = experiment, cost_of(experiment)
        return self._costs[key]

    def values(self, factor: float) -> dict[str, int] | None:
        """Return the largest widths with so many times fewer FLOPs, None where none are small enough."""
        few, many = 1, _SHARES
        while few < many:  # the largest share that is small enough
            middle = (few + many + 1) // 2
            fits = self._fits(self.at_share(middle / _SHARES), factor)
            few, many = (middle, many) if fits else (few, middle - 1)
        values = self.at_share(few / _SHARES)
        return self._filled(values, factor) if self._fits(values, factor) else None

    def _filled(self, values: dict[str, int], factor: float) -> dict[str, int]:
        """Return the widths with those made larger for which there is room, the smallest shares first."""
        grown = True
        while grown:
            grown = False
            for path in sorted(values, key=lambda path: values[path] / self._widths.proven[path].value):
                one = self._widths.proven[path]
                more = next((n for n in nice_numbers(one.value, one.step) if n > values[path]), None)
                if more is not None and self._fits({**values, path: more}, factor):
                    values, grown = {**values, path: more}, True
                    break
        return values

    def _fits(self, values: Mapping[str, int], factor: float) -> bool:
        return self.costs(values)[1].flops * factor <= self._total.flops * _ROUND

    def propose(self, factor: float) -> Proposal | None:
        """Return the network with so many times fewer FLOPs."""
        values = self.values(factor)
        if values is None:
            return None
        experiment, cost = self.costs(values)
        return Proposal(f"widths 1/{factor:g}", ("widths",), experiment, cost, partial(self._weigh, values))

    def _weigh(self, values: Mapping[str, int]) -> Weighing:
        run = self._run
        return prune(run.experiment, run.params, run.model_state, values, found=self._widths, say=self._say)


class RankLadder:
    """Networks with layers of low rank.

    Args:
        weighing: Weights that suit an experiment: the original's, or those of a network with smaller widths.
        total: Cost of the original.
        inputs: Moments of the layers' inputs.
        batch_sizes: Batch sizes at which recurrent layers are timed: where a low rank makes them slower, their
            recurrent kernels stay whole.
        note: Function that gets a sentence worth keeping.
    """

    def __init__(
        self, weighing: Weighing, total: Cost, inputs: InputMoments, batch_sizes: Sequence[int], note: Say
    ) -> None:
        self._weighing, self._total, self._say = weighing, total, inputs.say
        self._whole = cost_of(weighing[0])
        self.found = spectra(*weighing, moments=inputs.moments(weighing), say=inputs.say)
        for path, times in slower_recurrences(weighing, self.found, batch_sizes, inputs.say).items():
            del self.found[path]
            note(f"{path} stays whole: with a low rank, its layer takes {times:.2f} times as long")

    def propose(self, factor: float, name: str = "ranks", how: tuple[str, ...] = ("ranks",)) -> Proposal | None:
        """Return the network with so many times fewer FLOPs than the original, None where there is none."""
        saving = self._whole.flops - self._total.flops / factor
        ranks = choose_ranks(self.found, saving)
        if not ranks:
            return None
        experiment = self._weighing[0]
        made = experiment.replace(model=Compressed(experiment.model, Compression(ranks=ranks)), initial=None)
        cost = cost_of(made)
        if cost.flops * factor > self._total.flops * _ROUND:
            return None
        weigh = partial(factorize, *self._weighing, ranks, found=self.found, say=self._say)
        return Proposal(f"{name} 1/{factor:g}", how, made, cost, weigh)


def both(
    widths: WidthLadder, total: Cost, inputs: InputMoments, batch_sizes: Sequence[int], factor: float
) -> Proposal | None:
    """Return a network with smaller widths whose layers have low ranks too.

    Args:
        widths: Networks with smaller widths.
        total: Cost of the original.
        inputs: Moments of the layers' inputs.
        batch_sizes: As of `RankLadder`.
        factor: How many times fewer FLOPs it has than the original.
    """
    narrow = widths.propose(factor / _SHARE_OF_RANKS) if factor > _SHARE_OF_RANKS else None
    if narrow is None:
        return None
    ladder = RankLadder(narrow.weigh(), total, inputs, batch_sizes, lambda _: None)
    return ladder.propose(factor, "widths and ranks", ("widths", "ranks"))


def _no_numbers(experiment: Experiment) -> str:
    made = made_by(experiment.model)
    given = ", ".join(f"{name}={_short(value)}" for name, value in made.arguments.items())
    return f"widths are whole numbers, and the constructor, {made.kind.__name__}({given}), has none"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:39]}…"


def ways_of(run: Run, methods: Sequence[str], batch_sizes: Sequence[int], say: Say) -> Ways:
    """Return how a run's network is made smaller by methods.

    Args:
        run: The run.
        methods: Names of methods.
        batch_sizes: Batch sizes at which no layer is to be slower.
        say: Function that is told what is being done.

    Raises:
        UserError: if the methods find nothing.
    """
    structures: dict[str, Callable[[float], Proposal | None]] = {}
    bits: dict[str, Bits] = {}
    notes: list[str] = []
    sensitivity: list[Sensitivity] = []
    inputs, total = InputMoments(say), cost_of(run.experiment)
    ladder: WidthLadder | None = None
    if "widths" in methods:
        widths = find_widths(run.experiment, say=say)
        notes += [f"{path} is no width: {reason}" for path, reason in widths.left.items()]
        if not widths.proven and not widths.left:
            notes.append(_no_numbers(run.experiment))
        if widths.proven:
            ladder = WidthLadder(run, widths, say)
            structures["widths"] = ladder.propose
    try:
        if "ranks" in methods:
            low = RankLadder(weighing_of(run), total, inputs, batch_sizes, notes.append)
            sensitivity.append(rank_sensitivity(low.found))
            if low.found:
                structures["ranks"] = low.propose
            else:
                notes.append("no layer is smaller with a low rank")
            if ladder is not None:
                structures["widths and ranks"] = partial(both, ladder, total, inputs, batch_sizes)
        if "bits" in methods and not quantizable(run.experiment):
            notes.append("no layer's weights can have fewer bits")
        elif "bits" in methods:
            fewer = FewerBits(inputs, batch_sizes, notes.append)
            sensitivity.append(fewer.sensitivity(run))
            for name, number in BITS.items():
                ways = (None, None) if number == BFLOAT16 else (partial(to_training, bits=number), fewer.trained)
                trained = None if ways[1] is None else partial(ways[1], number)
                bits[name] = Bits(partial(fewer.stored, number), ways[0], trained)
    except UserError as error:
        notes.append(str(error))
    if not structures and not bits:
        raise UserError(
            f"{' and '.join(methods)} find nothing to make smaller in the model: {'; '.join(notes)}. Give numbers to "
            "its constructor that are widths, or more methods"
        )
    teacher = None
    if "teacher" in methods:
        original, params, model_state = weighing_of(run)
        teacher = partial(taught, teacher=original, params=params, model_state=model_state, say=say)
    return Ways(structures, bits, teacher, notes, tuple(one.as_json() for one in sensitivity))
