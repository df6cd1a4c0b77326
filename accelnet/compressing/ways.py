"""How networks are made smaller: what the search knows of the methods."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from accelnet.compressing.candidate import Proposal, Weighing
from accelnet.experiment import Experiment
from accelnet.training.run import Run


@dataclass(frozen=True)
class Bits:
    """How a network gets fewer bits.

    Attributes:
        stored: Function from a run to the same network with fewer bits.
        rounding: Function from an experiment to the one that is trained with rounded weights. None: there is none.
        trained: Function from a run of that to the network with fewer bits.
    """

    stored: Callable[[Run], Weighing]
    rounding: Callable[[Experiment], Experiment] | None = None
    trained: Callable[[Run], Weighing] | None = None


@dataclass(frozen=True)
class Ways:
    """How networks are made smaller.

    Attributes:
        structures: By name, function from how many times fewer FLOPs to a `Proposal`, None where there is none.
        bits: By name, how a network gets fewer bits, the fewest last.
        teacher: Function from an experiment to the one with the original's outputs as further targets. None: without.
        notes: What is left alone, and why; methods may add to it as they are used.
        sensitivity: How layers of the original bear it: "title", "axis", "error" and "layers", each with "name" and
            "points".
    """

    structures: Mapping[str, Callable[[float], Proposal | None]] = field(default_factory=dict)
    bits: Mapping[str, Bits] = field(default_factory=dict)
    teacher: Callable[[Experiment], Experiment] | None = None
    notes: Sequence[str] = ()
    sensitivity: Sequence[Mapping[str, Any]] = ()
