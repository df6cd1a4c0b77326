"""What is proposed to the search: networks with so many times fewer FLOPs, by each method."""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from accelnet.compressing.activations import Key, Moments, input_moments
from accelnet.compressing.bits import output_errors, quantizable, quantize, to_stored, to_training
from accelnet.compressing.candidate import Cost, Proposal, Weighing, cost_of
from accelnet.compressing.elimination import prune
from accelnet.compressing.measured import Say
from accelnet.compressing.ways import Bits, Ways
from accelnet.compressing.widths import Widths, find_widths
from accelnet.errors import UserError
from accelnet.experiment import Experiment
from accelnet.models.compressed import Compressed, Compression
from accelnet.training.run import Run

BITS = {"bfloat16": 16, "int8": 8, "int4": 4}
_BFLOAT16 = 16
_ROWS = 2000  # of which the moments of a layer's inputs are taken
_SHARES = 64  # steps between nothing and all of the widths
_ROUND = 1.05  # a network that costs as much more than a share is taken for that share


def smaller(width: int, share: float, step: int = 1) -> int:
    """Return a share of a width as a number that processors like: a multiple of 16, of smaller widths of 8 or 4.

    Args:
        width: The width.
        share: Share of it, above 0 and at most 1.
        step: Number of which what is taken away has to be a multiple.

    Example:
        >>> [smaller(width, 0.5) for width in (300, 64, 20, 3)], smaller(192, 0.3, step=12)
        ([144, 32, 8, 1], 48)
    """
    possible = [width - gone for gone in range(0, width, step)]
    wanted = width * share
    for nice in (16, 8, 4, 1):
        # A grid no coarser than a quarter of the width.
        if nice * 4 <= width or nice == 1:
            found = [one for one in possible if one % nice == 0 and one <= wanted]
            if found:
                return max(found)
    return min(possible)


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
            _, cost = self.costs(self.at_share(middle / _SHARES))
            few, many = (middle, many) if cost.flops * factor <= self._total.flops * _ROUND else (few, middle - 1)
        values = self.at_share(few / _SHARES)
        return values if self.costs(values)[1].flops * factor <= self._total.flops * _ROUND else None

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


class FewerBits:
    """Networks whose weights have fewer bits.

    Args:
        say: Function that is told what is being done.
    """

    def __init__(self, say: Say) -> None:
        self._say = say
        self._known: dict[int, tuple[Run, dict[Key, Moments]]] = {}

    def moments(self, run: Run) -> dict[Key, Moments]:
        """Return the moments of the inputs of a run's layers, computed once."""
        if id(run) not in self._known:
            paths = [f"{re.escape(path)}\\..*" if path else ".*" for path in quantizable(run.experiment)]
            found = input_moments(run.experiment, run.params, run.model_state, rows=_ROWS, paths=paths, say=self._say)
            self._known = {id(run): (run, found)}  # of one network at a time: they are large
        return self._known[id(run)][1]

    def stored(self, bits: int, run: Run) -> Weighing:
        """Round the weights of a trained network."""
        moments = None if bits == _BFLOAT16 else self.moments(run)
        return quantize(run.experiment, run.params, run.model_state, bits, moments=moments, say=self._say)

    def sensitivity(self, run: Run) -> dict[str, Any]:
        """Return by layer how much its outputs change with 8 and with 4 bits."""
        errors = output_errors(run.experiment, run.params, run.model_state, self.moments(run))
        layers = [{"name": name or "the model", "points": sorted(found.items())} for name, found in errors.items()]
        return {"title": "Fewer bits", "axis": "bits", "error": "change of a layer's outputs", "layers": layers}


def ways_of(run: Run, methods: Sequence[str], say: Say) -> Ways:
    """Return how a run's network is made smaller by methods.

    Args:
        run: The run.
        methods: Names of methods.
        say: Function that is told what is being done.

    Raises:
        UserError: if the methods find nothing.
    """
    structures: dict[str, Callable[[float], Proposal | None]] = {}
    bits: dict[str, Bits] = {}
    notes: list[str] = []
    sensitivity: list[dict[str, Any]] = []
    if "widths" in methods:
        widths = find_widths(run.experiment, say=say)
        notes += [f"{path} is no width: {reason}" for path, reason in widths.left.items()]
        if widths.proven:
            structures["widths"] = WidthLadder(run, widths, say).propose
    if "bits" in methods:
        try:
            quantizable(run.experiment)
            fewer = FewerBits(say)
            sensitivity.append(fewer.sensitivity(run))
            bits = {name: Bits(partial(fewer.stored, number), *_trained_for(number)) for name, number in BITS.items()}
        except UserError as error:
            notes.append(str(error))
    if not structures and not bits:
        raise UserError(
            f"{' and '.join(methods)} find nothing to make smaller in the model: "
            f"{'; '.join(notes) or 'it has no layers'}. Give numbers to its constructor that are widths, or more "
            "methods"
        )
    return Ways(structures, bits, notes=tuple(notes), sensitivity=tuple(sensitivity))


def _trained_for(bits: int) -> tuple[Any, Any]:
    if bits == _BFLOAT16:
        return None, None

    def stored(run: Run) -> Weighing:
        return to_stored(run.experiment, run.params, run.model_state, embeddings=bits)

    return partial(to_training, bits=bits), stored
