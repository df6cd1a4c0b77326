"""The moments of the inputs of a network's layers, which ranks and bits are chosen by."""

import re
from typing import Any

import jax

from accelnet.compressing.activations import Key, Moments, input_moments
from accelnet.compressing.bits import quantizable
from accelnet.compressing.candidate import Weighing
from accelnet.compressing.measured import Say

_ROWS = 4000  # of which the moments of a layer's inputs are taken


class InputMoments:
    """The moments of the inputs of a network's layers, computed once.

    Args:
        say: Function that is told what is being done.
    """

    def __init__(self, say: Say) -> None:
        self.say = say
        self._known: tuple[list[Any], dict[Key, Moments]] = [], {}

    def moments(self, weighing: Weighing) -> dict[Key, Moments]:
        """Return the moments of weights that suit an experiment."""
        experiment, params, model_state = weighing
        leaves = jax.tree.leaves(params)
        known, found = self._known
        if len(known) != len(leaves) or any(a is not b for a, b in zip(known, leaves, strict=True)):
            paths = [f"{re.escape(path)}\\..*" if path else ".*" for path in quantizable(experiment)]
            found = input_moments(experiment, params, model_state, rows=_ROWS, paths=paths, say=self.say)
            self._known = leaves, found  # of one network at a time: they are large
        return found
