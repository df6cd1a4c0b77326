"""Recurrent networks for series, rows of images and tokens."""

import math
from typing import Any, Literal

import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from accelnet.errors import UserError
from accelnet.models.sharding import SHARDING_RULES
from accelnet.ops.linear_recurrence import min_gru
from accelnet.ops.product import dot_general
from accelnet.ops.recurrence import gru, lstm, simple_rnn, valid_steps

CellName = Literal["lstm", "gru", "min_gru", "simple"]
OutputName = Literal["last", "mean", "steps"]

_NUM_GATES = {"lstm": 4, "gru": 3, "min_gru": 2, "simple": 1}


class Recurrence(nnx.Module):
    """Run one recurrent layer in one direction.

    Input kernels start Glorot uniform and recurrent kernels orthogonal, each gate on its own; biases start
    at zero, the LSTM's forget gate's at one.

    Args:
        in_features: Features per step.
        hidden_features: Features of the hidden state.
        cell: "lstm", "gru" or "simple"; the equations are those of `accelnet.ops.recurrence`.
        reverse: Run from each sequence's last valid step to its first.
        rngs: Source of the initial weights; not kept.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
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
        rngs: nnx.Rngs,
    ) -> None:
        self.cell = cell
        self.reverse = reverse
        num_gates = _NUM_GATES[cell]
        glorot, orthogonal = nnx.initializers.glorot_uniform(), nnx.initializers.orthogonal()
        input_kernels = [glorot(rngs.params(), (in_features, hidden_features)) for _ in range(num_gates)]
        self.input_kernel = nnx.Param(jnp.concatenate(input_kernels, axis=1))
        if cell != "min_gru":
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
        kernels = self.input_kernel[...], self.recurrent_kernel[...], self.bias[...]
        if self.cell == "lstm":
            outputs, (hidden, _) = lstm(inputs, *kernels, **options)
        elif self.cell == "gru":
            bias = self.recurrent_bias[...]
            outputs, hidden = gru(inputs, *kernels, bias, **options)
        else:
            outputs, hidden = simple_rnn(inputs, *kernels, **options)
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
        >>> import jax.numpy as jnp
        >>> from flax import nnx
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
        """Return the outputs of all steps and each direction's output at its own last step.

        Args:
            inputs: float [batch, steps, in_features]; with tokens a table [symbols, in_features].
            lengths: int [batch], valid steps per sequence; all if None.
            tokens: int [batch, steps], the rows of the table that the steps read, or None.
        """
        outputs, last = self.forward(inputs, lengths, tokens)
        if self.bidirectional:
            backward_outputs, backward_last = self.backward(inputs, lengths, tokens)
            outputs = jnp.concatenate([outputs, backward_outputs], axis=-1)
            last = jnp.concatenate([last, backward_last], axis=-1)
        return outputs, last


class RNN(nnx.Module):
    """Classify, regress or label sequences with a stack of recurrent layers.

    The dtype of the inputs (of the embedding, for tokens) is the dtype of the computation and the outputs.

    Args:
        in_features: Features per step; with `num_symbols`, the size of the embedding.
        hidden_features: Features of the hidden state, per direction.
        out_features: Features of the output: classes, targets or symbols.
        cell: "lstm", "gru", "min_gru" or "simple".
        num_layers: Recurrent layers, 1 or more.
        bidirectional: Run every layer in both directions and put the outputs side by side.
        num_symbols: Size of the vocabulary; inputs are then integer tokens [batch, steps] and are embedded.
        output: "last" reads each direction's output at its own last step (backwards: the first step),
            "mean" the mean over the valid steps, "steps" every step. At steps behind a sequence's length the
            output of "steps" is that of zero features: leave it out of the loss.
        dropout: Share in [0, 1) of features zeroed between layers and before the output, in training.
        shared: Use one layer `num_layers` times. If `in_features` differs from the layer's output
            size, a linear input projection in front makes them equal.
        tie_embedding: Use the embedding as the output layer's kernel; needs `num_symbols` equal to
            `out_features`. If the stack's output size differs from `in_features`, a linear output
            projection without bias in front makes them equal.
        rngs: Source of the initial weights; only dropout keeps a stream of its own.

    Raises:
        UserError: If an argument is out of range or arguments exclude each other.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> model = RNN(12, 32, 9, cell="gru", bidirectional=True, rngs=nnx.Rngs(0))
        >>> model(jnp.ones((2, 29, 12)), lengths=jnp.array([29, 7])).shape
        (2, 9)
        >>> model = RNN(16, 32, 63, num_symbols=63, output="steps", tie_embedding=True, rngs=nnx.Rngs(0))
        >>> model(jnp.zeros((2, 10), jnp.int32)).shape
        (2, 10, 63)

    Source: Press and Wolf (2017) for the tied embedding; for the cells see `accelnet.ops.recurrence`.
    """

    sharding_rules = SHARDING_RULES

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        out_features: int,
        *,
        cell: CellName = "lstm",
        num_layers: int = 1,
        bidirectional: bool = False,
        num_symbols: int | None = None,
        output: OutputName = "last",
        dropout: float = 0.0,
        shared: bool = False,
        tie_embedding: bool = False,
        rngs: nnx.Rngs,
    ) -> None:
        sizes = {"in_features": in_features, "hidden_features": hidden_features, "out_features": out_features}
        _check(sizes | {"num_layers": num_layers}, cell, output, dropout)
        if tie_embedding and num_symbols != out_features:
            raise UserError(
                f"tie_embedding=True with num_symbols={num_symbols} and out_features={out_features}: "
                "the output layer can be the embedding only if both are the size of the vocabulary"
            )
        self.in_features = in_features
        self.num_layers = num_layers
        self.num_symbols = num_symbols
        self.output = output
        self.shared = shared
        self.tie_embedding = tie_embedding
        if num_symbols is not None:
            self.embedding = nnx.Embed(num_symbols, in_features, rngs=rngs)
        layer_features = hidden_features * (2 if bidirectional else 1)
        self.project_inputs = shared and in_features != layer_features
        if self.project_inputs:
            self.input_projection = _linear(in_features, layer_features, rngs)
        layers = []
        for index in range(1 if shared else num_layers):
            features = in_features if index == 0 and not shared else layer_features
            layers.append(RecurrentLayer(features, hidden_features, cell=cell, bidirectional=bidirectional, rngs=rngs))
        self.layers = nnx.List(layers)
        self.project_outputs = tie_embedding and in_features != layer_features
        if self.project_outputs:
            self.output_projection = _linear(layer_features, in_features, rngs, use_bias=False)
        if tie_embedding:
            self.output_bias = nnx.Param(jnp.zeros(out_features))
        else:
            self.output_layer = _linear(layer_features, out_features, rngs)
        # Last, so that the initial weights do not depend on whether there is dropout.
        self.dropout = nnx.Dropout(dropout, rngs=rngs) if dropout else None

    def __call__(self, inputs: Array, lengths: Array | None = None) -> Array:
        """Return the outputs, [batch, out_features] or, for output="steps", [batch, steps, out_features].

        Args:
            inputs: float [batch, steps, ...] with in_features numbers per step (an image is its rows), or int
                tokens [batch, steps] with `num_symbols`.
            lengths: int [batch], valid steps per sequence in [0, steps]; all if None. What lies behind a
                sequence's length changes no output and no gradient.

        Raises:
            UserError: If the inputs' shape or dtype does not fit.
        """
        self._check_inputs(inputs)
        tokens = None
        if self.num_symbols is None:
            x = inputs.reshape(*inputs.shape[:2], -1)
        elif self.num_symbols < inputs.size:
            # The first layer multiplies the table instead of every step's row of it: of a language model with 96
            # symbols, 32 x 64 tokens and 256 LSTM cells that is a third of all products.
            x, tokens = self.embedding.embedding[...].astype(self.embedding.dtype), inputs
        else:
            x = self.embedding(inputs)
        if self.project_inputs:
            if lengths is not None and tokens is None:
                x = jnp.where(valid_steps(lengths, x.shape[1])[:, :, None], x, jnp.zeros((), x.dtype))
            x = self.input_projection(x)
        x, last = self._run_layer(0, x, lengths, tokens)
        for index in range(1, self.num_layers):
            x, last = self._run_layer(index, self._drop(x), lengths)
        if self.output == "last":
            x = last
        elif self.output == "mean":
            x = _mean(x, lengths)
        return self._read_out(self._drop(x))

    def _run_layer(
        self, index: int, x: Array, lengths: Array | None, tokens: Array | None = None
    ) -> tuple[Array, Array]:
        x, last = self.layers[0 if self.shared else index](x, lengths, tokens)
        return checkpoint_name(x, "block"), checkpoint_name(last, "block")

    def _drop(self, x: Array) -> Array:
        return x if self.dropout is None else self.dropout(x)

    def _read_out(self, x: Array) -> Array:
        if not self.tie_embedding:
            return self.output_layer(x)
        if self.project_outputs:
            x = self.output_projection(x)
        bias = self.output_bias[...].astype(x.dtype)
        return x @ self.embedding.embedding[...].astype(x.dtype).T + bias.reshape((1,) * (x.ndim - 1) + (-1,))

    def _check_inputs(self, inputs: Array) -> None:
        if self.num_symbols is None:
            fits = inputs.ndim >= 3 and math.prod(inputs.shape[2:]) == self.in_features
            fits = fits and jnp.issubdtype(inputs.dtype, jnp.floating)
            expected = f"floats [batch, steps, {self.in_features}]"
        else:
            fits = inputs.ndim == 2 and jnp.issubdtype(inputs.dtype, jnp.integer)
            expected = "integer tokens [batch, steps]"
        if not fits:
            raise UserError(
                f"inputs are {inputs.dtype}{list(inputs.shape)}, expected {expected}: "
                "change the inputs, or in_features and num_symbols of the RNN"
            )


def _mean(x: Array, lengths: Array | None) -> Array:
    """Average [batch, steps, features] over the valid steps; the others are zero already."""
    if lengths is None:
        return x.mean(axis=1)
    total = x.sum(axis=1, dtype=jnp.promote_types(x.dtype, jnp.float32))
    return (total / jnp.maximum(lengths, 1)[:, None]).astype(x.dtype)


def _linear(in_features: int, out_features: int, rngs: nnx.Rngs, *, use_bias: bool = True) -> nnx.Linear:
    return nnx.Linear(
        in_features, out_features, use_bias=use_bias, promote_dtype=_to_inputs_dtype, dot_general=dot_general, rngs=rngs
    )


def _to_inputs_dtype(arrays: Any, /, *, dtype: Any = None, inexact: bool = True) -> Any:
    """Cast a layer's weights to its inputs' dtype, where Flax would widen the inputs to the weights'."""
    del dtype, inexact
    inputs = arrays[0]
    return tuple(None if array is None else array.astype(inputs.dtype) for array in arrays)


def _check(sizes: dict[str, int], cell: str, output: str, dropout: float) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise UserError(f"{name} is {size}, expected at least 1")
    if cell not in _NUM_GATES:
        raise UserError(f"cell is {cell!r}, expected one of {', '.join(_NUM_GATES)}")
    if output not in ("last", "mean", "steps"):
        raise UserError(f"output is {output!r}, expected last, mean or steps")
    if not 0 <= dropout < 1:
        raise UserError(f"dropout is {dropout}, expected a share in [0, 1)")
