"""What is proposed to the search: networks with so many times fewer FLOPs, by each method."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from accelnet.compressing.candidate import Cost, Proposal, cost_of
from accelnet.compressing.measured import Say
from accelnet.compressing.search import Ways
from accelnet.compressing.widths import Widths, find_widths

from accelnet.errors import UserError
from accelnet.experiment import Experiment
from accelnet.models.compressed import Compressed, Compression
from accelnet.training.run import Run

NUM_BITS = 2
_SHARES = 64  # steps between nothing and all of the widths


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

    def _weigh(self, values: Mapping[str, int]) -> Any:
        run = self._run
        return prune(run.experiment, run.params, run.model_state, values, say=self._say)


_ROUND = 1.05  # a network that costs as much more than a share is taken for that share


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
    notes: list[str] = []
    if "widths" in methods:
        widths = find_widths(run.experiment, say=say)
        notes += [f"{path}: {reason}" for path, reason in widths.left.items()]
        if widths.proven:
            structures["widths"] = WidthLadder(run, widths, say).propose
    if not structures and "bits" not in methods:
        raise UserError(
            f"{' and '.join(methods)} find nothing to make smaller in the model: "
            f"{'; '.join(notes) or 'it has no layers'}. Give numbers to its constructor that are widths, or more "
            "methods"
        )
    return Ways(structures, notes=tuple(notes))
