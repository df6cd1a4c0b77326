"""One recurrent layer with its weights, in one direction or in both."""

from typing import Any, Literal

import jax.numpy as jnp
from flax import nnx
from jax import Array

from accelnet.arguments import integer
from accelnet.errors import UserError
from accelnet.ops.linear_recurrence import min_gru
from accelnet.ops.recurrence import gru, lstm, simple_rnn

CellName = Literal["lstm", "gru", "min_gru", "simple"]

NUM_GATES = {"lstm": 4, "gru": 3, "min_gru": 2, "simple": 1}


class Recurrence(nnx.Module):
    """Run one recurrent layer in one direction.

    Input kernels start Glorot uniform and recurrent kernels orthogonal, each gate on its own; biases start
    at zero, the LSTM's forget gate's at one.

    Args:
        in_features: Features per step.
        hidden_features: Features of the hidden state.
        cell: "lstm", "gru", "min_gru" or "simple"; the equations are those of `accelnet.ops`.
        reverse: Run from each sequence's last valid step to its first.
        recurrent_rank: Rank of the recurrent kernel, which is then a product of two matrices: `recurrent_down`
            [hidden, rank] and `recurrent_up` [rank, gates * hidden]. None: it is whole.
        rngs: Source of the initial weights; not kept.

    Raises:
        UserError: If a "min_gru" is given a recurrent rank, since it has no recurrent kernel.

    Example:
        >>> outputs, hidden = Recurrence(3, 4, rngs=nnx.Rngs(0))(jnp.ones((2, 5, 3)))
        >>> outputs.shape, hidden.shape
        ((2, 5, 4), (2, 4))

    Source: Glorot and Bengio (2010); Saxe et al. (2014); Jozefowicz et al. (2015) for the forget gate's bias.
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        cell: CellName = "lstm",
        reverse: bool = False,
        recurrent_rank: int | None = None,
        rngs: nnx.Rngs,
    ) -> None:
        self.cell = cell
        self.reverse = reverse
        num_gates = NUM_GATES[cell]
        glorot, orthogonal = nnx.initializers.glorot_uniform(), nnx.initializers.orthogonal()
        input_kernels = [glorot(rngs.params(), (in_features, hidden_features)) for _ in range(num_gates)]
        self.input_kernel = nnx.Param(jnp.concatenate(input_kernels, axis=1))
        self.recurrent_rank = recurrent_rank
        if recurrent_rank is not None:
            if cell == "min_gru":
                raise UserError("recurrent_rank is given to a min_gru, which has no recurrent kernel: leave it out")
            integer("recurrent_rank", recurrent_rank, 1)
            self.recurrent_down = nnx.Param(orthogonal(rngs.params(), (hidden_features, recurrent_rank)))
            parts = [orthogonal(rngs.params(), (recurrent_rank, hidden_features)) for _ in range(num_gates)]
            self.recurrent_up = nnx.Param(jnp.concatenate(parts, axis=1))
        elif cell != "min_gru":
            recurrent_kernels = [orthogonal(rngs.params(), (hidden_features,) * 2) for _ in range(num_gates)]
            self.recurrent_kernel = nnx.Param(jnp.concatenate(recurrent_kernels, axis=1))
        bias = jnp.zeros(num_gates * hidden_features)
        if cell == "lstm":
            bias = bias.at[hidden_features : 2 * hidden_features].set(1.0)
        self.bias = nnx.Param(bias)
        if cell == "gru":
            self.recurrent_bias = nnx.Param(jnp.zeros(hidden_features))

    def __call__(self, inputs: Array, lengths: Array | None = None, tokens: Array | None = None) -> tuple[Array, Array]:
        """Return the outputs [batch, steps, hidden] and the final hidden state [batch, hidden].

        Args:
            inputs: float [batch, steps, in_features]; with tokens a table [symbols, in_features].
            lengths: int [batch], valid steps per sequence; all if None.
            tokens: int [batch, steps], the rows of the table that the steps read, or None.
        """
        options: dict[str, Any] = {"lengths": lengths, "reverse": self.reverse, "tokens": tokens}
        if self.cell == "min_gru":
            return min_gru(inputs, self.input_kernel[...], self.bias[...], **options)
        low = self.recurrent_rank is not None
        recurrent = (self.recurrent_down[...], self.recurrent_up[...]) if low else self.recurrent_kernel[...]
        kernels = self.input_kernel[...], recurrent, self.bias[...]
        if self.cell == "gru":
            return gru(inputs, *kernels, self.recurrent_bias[...], **options)
        if self.cell == "simple":
            return simple_rnn(inputs, *kernels, **options)
        outputs, (hidden, _) = lstm(inputs, *kernels, **options)
        return outputs, hidden


class RecurrentLayer(nnx.Module):
    """Run one recurrent layer forwards, or in both directions with the outputs side by side.

    Args:
        in_features: Features per step.
        hidden_features: Features of the hidden state of each direction.
        cell: "lstm", "gru", "min_gru" or "simple".
        bidirectional: Run a second recurrence backwards; the outputs then have 2 * hidden_features.
        rngs: Source of the initial weights; not kept.

    Example:
        >>> outputs, last = RecurrentLayer(3, 4, bidirectional=True, rngs=nnx.Rngs(0))(jnp.ones((2, 5, 3)))
        >>> outputs.shape, last.shape
        ((2, 5, 8), (2, 8))

    Source: Schuster and Paliwal (1997), Bidirectional recurrent neural networks.
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        cell: CellName = "lstm",
        bidirectional: bool = False,
        rngs: nnx.Rngs,
    ) -> None:
        self.forward = Recurrence(in_features, hidden_features, cell=cell, rngs=rngs)
        self.bidirectional = bidirectional
        if bidirectional:
            self.backward = Recurrence(in_features, hidden_features, cell=cell, reverse=True, rngs=rngs)

    def __call__(self, inputs: Array, lengths: Array | None = None, tokens: Array | None = None) -> tuple[Array, Array]:
        """Return the outputs of all steps and each direction's at its own last step; arguments as in `Recurrence`."""
        outputs, last = self.forward(inputs, lengths, tokens)
        if self.bidirectional:
            backward_outputs, backward_last = self.backward(inputs, lengths, tokens)
            outputs = jnp.concatenate([outputs, backward_outputs], axis=-1)
            last = jnp.concatenate([last, backward_last], axis=-1)
        return outputs, last
