"""The Transformer encoder."""

import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec

from accelnet.arguments import integer
from accelnet.errors import UserError
from accelnet.models.layers import check_inputs, check_rngs, make_dropout
from accelnet.models.normalization import Normalization
from accelnet.ops import dot_general
from accelnet.ops.sequences import valid_steps
from accelnet.ops.symbolic import is_below


class Transformer(nnx.Module):
    """Map sequences to outputs by self-attention: an encoder with the norms before its parts, and a mean over steps.

        x_0 = inputs W + positions,   a = x + attention(norm(x)),   x' = a + W_2 gelu(W_1 norm(a)),
        out = mean over valid steps of norm(x_n) W_out + b

    Each part's result goes through dropout before it is added. W_1 makes four times the features.

    Args:
        in_features: Number of features of a step.
        hidden_features: Number of features between the blocks, a multiple of `num_heads`.
        out_features: Number of outputs.
        num_steps: Largest number of steps of a sequence: so many positions are learned.
        num_layers: Number of blocks.
        num_heads: Number of heads of the attention.
        dropout: Rate of dropout, in [0, 1).
        rngs: Source of keys (streams `params` and `dropout`).

    Raises:
        UserError: if an argument is out of range.

    Example:
        >>> model = Transformer(3, 16, 5, num_steps=10, num_heads=4, rngs=nnx.Rngs(0))
        >>> model(jnp.ones((2, 8, 3)), lengths=jnp.array([8, 4])).shape
        (2, 5)

    Source: Vaswani et al., "Attention is all you need", 2017, section 3; the norms' places: Xiong et al., "On layer
    normalization in the transformer architecture", 2020.
    """

    sharding_rules = (
        (r"blocks\.\d+\.attention\.(query|key|value)\.kernel", PartitionSpec(None, "model", None)),
        (r"blocks\.\d+\.attention\.out\.kernel", PartitionSpec("model", None, None)),
        (r"blocks\.\d+\.wide\.kernel", PartitionSpec(None, "model")),
        (r"blocks\.\d+\.narrow\.kernel", PartitionSpec("model", None)),
    )

    def __init__(
        self, in_features: int, hidden_features: int, out_features: int, *, num_steps: int, num_layers: int = 2,
        num_heads: int = 4, dropout: float = 0.0, rngs: nnx.Rngs,
    ) -> None:  # fmt: skip
        sizes = {"in_features": in_features, "hidden_features": hidden_features, "out_features": out_features}
        for name, size in (sizes | {"num_steps": num_steps, "num_layers": num_layers, "num_heads": num_heads}).items():
            integer(name, size, 1)
        if hidden_features % num_heads:
            raise UserError(f"hidden_features is {hidden_features}, expected a multiple of the {num_heads} heads")
        check_rngs(rngs)
        self.input = nnx.Linear(in_features, hidden_features, dot_general=dot_general, rngs=rngs)
        self.positions = nnx.Embed(num_steps, hidden_features, rngs=rngs)
        self.blocks = nnx.List([_Block(hidden_features, num_heads, dropout, rngs) for _ in range(num_layers)])
        self.norm = Normalization("layer", hidden_features, rngs=rngs)
        self.output = nnx.Linear(hidden_features, out_features, dot_general=dot_general, rngs=rngs)

    def __call__(self, inputs: Array, lengths: Array | None = None) -> Array:
        """Compute outputs [B, out_features] of inputs, float [B, steps, in_features], and lengths, int [B], or None."""
        width, most = self.input.in_features, self.positions.num_embeddings
        fits = f"[batch, at most {most} steps, {width}]: change in_features or num_steps of the Transformer"
        check_inputs(inputs, lambda shape: len(shape) == 3 and not is_below(most, shape[1]) and shape[2] == width, fits)
        batch, steps, _ = inputs.shape
        valid = valid_steps(jnp.full(batch, steps) if lengths is None else lengths, steps)
        x = self.input(jnp.where(valid[:, :, None], inputs, jnp.zeros((), inputs.dtype)))
        x = x + self.positions(jnp.arange(steps))[None]
        for block in self.blocks:
            x = block(x, valid[:, None, None, :])
        x = jnp.where(valid[:, :, None], self.norm(x), jnp.zeros((), x.dtype))
        return self.output(x.sum(axis=1) / jnp.maximum(valid.sum(axis=1), 1).astype(x.dtype)[:, None])


class _Block(nnx.Module):
    def __init__(self, features: int, num_heads: int, dropout: float, rngs: nnx.Rngs) -> None:
        self.norms = nnx.List([Normalization("layer", features, rngs=rngs) for _ in range(2)])
        self.attention = nnx.MultiHeadAttention(num_heads, features, decode=False, rngs=rngs)
        self.wide = nnx.Linear(features, 4 * features, dot_general=dot_general, rngs=rngs)
        self.narrow = nnx.Linear(4 * features, features, dot_general=dot_general, rngs=rngs)
        self.dropout = make_dropout(dropout, rngs)

    def __call__(self, x: Array, mask: Array) -> Array:
        x = x + self.dropout(self.attention(self.norms[0](x), mask=mask))
        x = x + self.dropout(self.narrow(nnx.gelu(self.wide(self.norms[1](x)))))
        return checkpoint_name(x, "block")
