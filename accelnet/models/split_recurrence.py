"""Recurrent layers of low rank: each of the two kernels may be two in its place."""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax import Array

from accelnet.arguments import integer
from accelnet.errors import UserError
from accelnet.models.precision import to_inputs_dtype
from accelnet.models.recurrent_layer import NUM_GATES, CellName, Recurrence
from accelnet.ops.product import dot_general
from accelnet.ops.sequences import valid_steps

RECURRENT = ".recurrent_kernel"  # at the end of a path: it is this kernel's, and not the layer's


class SplitRecurrence(nnx.Module):
    """Run one recurrent layer on projected inputs: an input kernel of low rank.

    Args:
        in_features: Features per step.
        hidden_features: Features of the hidden state.
        rank: Features that the inputs are projected to.
        cell: "lstm", "gru", "min_gru" or "simple".
        reverse: Run from each sequence's last valid step to its first.
        recurrent_rank: Rank of the recurrent kernel; None: it is whole.
        rngs: Source of the initial weights; not kept.

    Example:
        >>> outputs, hidden = SplitRecurrence(64, 4, 8, rngs=nnx.Rngs(0))(jnp.ones((2, 5, 64)))
        >>> outputs.shape, hidden.shape
        ((2, 5, 4), (2, 4))
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        rank: int,
        *,
        cell: CellName = "lstm",
        reverse: bool = False,
        recurrent_rank: int | None = None,
        rngs: nnx.Rngs,
    ) -> None:
        self.rank = integer("rank", rank, 1)
        common: Any = {"promote_dtype": to_inputs_dtype, "dot_general": dot_general}
        self.down = nnx.Linear(in_features, rank, use_bias=False, rngs=rngs, **common)
        options: dict[str, Any] = {"cell": cell, "reverse": reverse, "recurrent_rank": recurrent_rank}
        self.layer = Recurrence(rank, hidden_features, rngs=rngs, **options)

    def __call__(self, inputs: Array, lengths: Array | None = None, tokens: Array | None = None) -> tuple[Array, Array]:
        """Return the outputs of all steps and the final hidden state; arguments as in `Recurrence`."""
        if lengths is not None and tokens is None:
            # Before the product: NaN in the padding times a zero cotangent is NaN in the kernel's gradient.
            valid = valid_steps(lengths, inputs.shape[1])[:, :, None]
            inputs = jnp.where(valid, inputs, jnp.zeros((), inputs.dtype))
        return self.layer(self.down(inputs), lengths, tokens)


def settings_of(layer: Recurrence) -> dict[str, Any]:
    """Return the arguments that a recurrent layer is made with, but for `rngs`.

    Example:
        >>> settings_of(Recurrence(3, 4, cell="gru", rngs=nnx.Rngs(0)))
        {'in_features': 3, 'hidden_features': 4, 'cell': 'gru', 'reverse': False, 'recurrent_rank': None}
    """
    hidden = layer.bias.shape[0] // NUM_GATES[layer.cell]
    sizes = {"in_features": layer.input_kernel.shape[0], "hidden_features": hidden}
    return {**sizes, "cell": layer.cell, "reverse": layer.reverse, "recurrent_rank": layer.recurrent_rank}


def split_recurrent(layer: Any, rank: int, *, rngs: nnx.Rngs) -> Recurrence:
    """Make the layer whose recurrent kernel has a low rank and that takes the place of one, with new weights.

    Args:
        layer: `Recurrence` of another cell than "min_gru".
        rank: Rank of its recurrent kernel.
        rngs: Source of keys (stream `params`).

    Raises:
        UserError: for another layer.

    Example:
        >>> layer = split_recurrent(Recurrence(3, 4, cell="gru", rngs=nnx.Rngs(0)), 2, rngs=nnx.Rngs(0))
        >>> layer.recurrent_down.shape, layer.recurrent_up.shape
        ((4, 2), (2, 12))
    """
    if not has_whole_recurrent_kernel(layer):
        raise UserError(
            f"a {type(layer).__name__} has no recurrent kernel that can be split into two: accelnet's recurrent layers "
            "have, but for min_gru and those whose kernel is split already"
        )
    settings: dict[str, Any] = {**settings_of(layer), "recurrent_rank": rank}
    return Recurrence(rngs=rngs, **settings)


def has_whole_recurrent_kernel(layer: Any) -> bool:
    """Say whether a layer is a recurrent one with one kernel for its state.

    Example:
        >>> [has_whole_recurrent_kernel(Recurrence(3, 4, cell=cell, rngs=nnx.Rngs(0))) for cell in ("lstm", "min_gru")]
        [True, False]
    """
    own = isinstance(layer, Recurrence) and type(layer).__call__ is Recurrence.__call__
    return own and layer.cell != "min_gru" and layer.recurrent_rank is None and layer.recurrent_kernel.ndim == 2
