"""The multilayer perceptron."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal

from flax import nnx
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from accelnet.arguments import flags, integer, sizes, word
from accelnet.errors import UserError
from accelnet.models.layers import check_activation, check_dropout, check_inputs, check_rngs, make_dropout
from accelnet.models.normalization import Normalization
from accelnet.models.sharding import SHARDING_RULES
from accelnet.ops import dot_general


class MLP(nnx.Module):
    """Map flattened inputs to outputs through fully connected hidden layers.

        h_0 = flatten(x),   h_i = dropout(activation(norm(W_i h_{i-1} + b_i))) [+ h_{i-1}],   out = W h_n + b

    The sum in brackets is present with `residual` where two neighbouring hidden layers are equally wide.

    Args:
        in_features: number of features of one flattened example.
        hidden_features: widths of the hidden layers, first to last; may be empty.
        out_features: number of outputs.
        activation: elementwise nonlinearity.
        norm: normalization between product and activation: None, "layer" or "batch".
        dropout: rate of dropout after each hidden layer, in [0, 1).
        residual: whether to add each hidden layer's input to its output where the widths agree.
        shared: whether hidden layers 2, 3, ... are one layer applied repeatedly (equal widths, at least two).
        rngs: source of keys (streams `params` and `dropout`).

    Raises:
        UserError: for widths that cannot be shared, or an argument out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> model = MLP(64, [32, 32], 10, rngs=nnx.Rngs(0))
        >>> model(jnp.ones((5, 8, 8))).shape
        (5, 10)

    Source: residual form: He et al. 2015, equation 1.
    """

    sharding_rules = SHARDING_RULES

    def __init__(
        self,
        in_features: int,
        hidden_features: Sequence[int],
        out_features: int,
        *,
        activation: Callable[[Array], Array] = nnx.relu,
        norm: Literal["layer", "batch"] | None = None,
        dropout: float = 0.0,
        residual: bool = False,
        shared: bool = False,
        rngs: nnx.Rngs,
    ) -> None:
        widths = [integer("in_features", in_features, 1), *sizes("hidden_features", hidden_features)]
        integer("out_features", out_features, 1)
        check_activation(activation)
        check_dropout(dropout)
        check_rngs(rngs)
        if norm is not None:
            word("norm", norm, ("layer", "batch"))
        flags(residual=residual, shared=shared)
        if shared and (len(hidden_features) < 2 or len(set(hidden_features)) > 1):
            raise UserError(
                f"shared=True with hidden_features {tuple(hidden_features)}: one layer applied repeatedly "
                "needs at least two hidden layers of equal width; make them equal or pass shared=False"
            )
        pairs = list(pairwise(widths))
        layers = [
            _Hidden(a, b, activation, norm, dropout, residual and i > 0 and a == b, rngs)
            for i, (a, b) in enumerate(pairs[:2] if shared else pairs)
        ]
        self.layers = nnx.List(layers)
        self.repeats = len(hidden_features) - 1 if shared else 1
        self.head = nnx.Linear(widths[-1], out_features, dot_general=dot_general, rngs=rngs)

    def __call__(self, inputs: Array) -> Array:
        """Compute outputs [B, out_features] of inputs, float [B, ...] of in_features numbers each."""
        width = (self.layers[0].linear if self.layers else self.head).in_features
        expected = f"[batch, ...] with {width} numbers for each example: change in_features of the MLP, or the inputs"
        check_inputs(inputs, lambda shape: math.prod(shape[1:]) == width, expected)
        x = inputs.reshape(inputs.shape[0], -1)
        for i, layer in enumerate(self.layers):
            for _ in range(self.repeats if i == 1 else 1):
                x = layer(x)
        return self.head(x)


class _Hidden(nnx.Module):
    def __init__(
        self,
        in_features: int,
        out_features: int,
        activation: Callable[[Array], Array],
        norm: Literal["layer", "batch"] | None,
        dropout: float,
        skip: bool,
        rngs: nnx.Rngs,
    ) -> None:
        self.linear = nnx.Linear(in_features, out_features, dot_general=dot_general, rngs=rngs)
        self.norm = None if norm is None else Normalization(norm, out_features, rngs=rngs)
        self.activation = activation
        self.dropout = make_dropout(dropout, rngs)
        self.skip = skip

    def __call__(self, inputs: Array) -> Array:
        x = self.linear(inputs)
        if self.norm is not None:
            x = self.norm(x)
        x = self.dropout(self.activation(x))
        return checkpoint_name(x + inputs if self.skip else x, "block")
