"""Recurrent networks for series, rows of images and tokens."""

import math
from functools import partial
from typing import Literal

import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from accelnet.arguments import flags, integer, word
from accelnet.errors import UserError
from accelnet.models.layers import check_dropout, check_rngs, make_dropout
from accelnet.models.precision import to_inputs_dtype
from accelnet.models.recurrent_layer import NUM_GATES, CellName, RecurrentLayer
from accelnet.models.sharding import SHARDING_RULES
from accelnet.ops.product import dot_general
from accelnet.ops.sequences import valid_steps
from accelnet.ops.staying_weights import do_weights_stay
from accelnet.ops.symbolic import is_below
from accelnet.signature import described

OutputName = Literal["last", "mean", "steps"]


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
        for name, size in (sizes | {"num_layers": num_layers}).items():
            integer(name, size, low=1)
        if num_symbols is not None:
            integer("num_symbols", num_symbols, low=1)
        flags(bidirectional=bidirectional, shared=shared, tie_embedding=tie_embedding)
        check_dropout(dropout)
        check_rngs(rngs)
        word("cell", cell, NUM_GATES)
        word("output", output, ("last", "mean", "steps"))
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
        linear = partial(nnx.Linear, promote_dtype=to_inputs_dtype, dot_general=dot_general, rngs=rngs)
        layer_features = hidden_features * (2 if bidirectional else 1)
        self.project_inputs = shared and in_features != layer_features
        if self.project_inputs:
            self.input_projection = linear(in_features, layer_features)
        layers = []
        for index in range(1 if shared else num_layers):
            features = in_features if index == 0 and not shared else layer_features
            layers.append(RecurrentLayer(features, hidden_features, cell=cell, bidirectional=bidirectional, rngs=rngs))
        self.layers = nnx.List(layers)
        self.project_outputs = tie_embedding and in_features != layer_features
        if self.project_outputs:
            self.output_projection = linear(layer_features, in_features, use_bias=False)
        if tie_embedding:
            self.output_bias = nnx.Param(jnp.zeros(out_features))
        else:
            self.output_layer = linear(layer_features, out_features)
        # Last, so that the initial weights do not depend on whether there is dropout.
        self.dropout = make_dropout(dropout, rngs)

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
        elif not is_below(inputs.size, self.num_symbols + 1) or self._table_is_multiplied_once():
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
            x, last = self._run_layer(index, self.dropout(x), lengths)
        if self.output == "last":
            x = last
        elif self.output == "mean":
            x = _mean(x, lengths)
        return self._read_out(self.dropout(x))

    def _table_is_multiplied_once(self) -> bool:
        """Say whether the weights stay, and the table multiplied by the first layer's is not far larger than both."""
        symbols, features = self.embedding.embedding.shape
        return do_weights_stay() and symbols <= 4 * features

    def _run_layer(
        self, index: int, x: Array, lengths: Array | None, tokens: Array | None = None
    ) -> tuple[Array, Array]:
        x, last = self.layers[0 if self.shared else index](x, lengths, tokens)
        return checkpoint_name(x, "block"), checkpoint_name(last, "block")

    def _read_out(self, x: Array) -> Array:
        if not self.tie_embedding:
            return self.output_layer(x)
        if self.project_outputs:
            x = self.output_projection(x)
        bias = self.output_bias[...].astype(x.dtype)
        return x @ self.embedding.embedding[...].astype(x.dtype).T + bias.reshape((1,) * (x.ndim - 1) + (-1,))

    def _check_inputs(self, inputs: Array) -> None:
        is_array = hasattr(inputs, "ndim") and hasattr(inputs, "dtype")
        if self.num_symbols is None:
            fits = is_array and inputs.ndim >= 3 and math.prod(inputs.shape[2:]) == self.in_features
            fits = fits and jnp.issubdtype(inputs.dtype, jnp.floating)
            expected = f"floats [batch, steps, {self.in_features}]"
        else:
            fits = is_array and inputs.ndim == 2 and jnp.issubdtype(inputs.dtype, jnp.integer)
            expected = "integer tokens [batch, steps]"
        if not fits:
            raise UserError(
                f"the model's inputs are {described([inputs])}, expected {expected}: "
                "change the inputs, or in_features and num_symbols of the RNN"
            )


def _mean(x: Array, lengths: Array | None) -> Array:
    """Average [batch, steps, features] over the valid steps; the others are zero already."""
    if lengths is None:
        return x.mean(axis=1)
    total = x.sum(axis=1, dtype=jnp.promote_types(x.dtype, jnp.float32))
    return (total / jnp.maximum(lengths, 1)[:, None]).astype(x.dtype)
