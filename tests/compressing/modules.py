"""Models as others write them, small: their constructors have widths of every kind."""

from functools import partial

import jax.numpy as jnp
import numpy as np
from flax import linen, nnx

import accelnet as an

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(64, 8, 8, 2)).astype(np.float32)
STEPS = RNG.normal(size=(64, 5, 3)).astype(np.float32)
TOKENS = RNG.integers(0, 11, size=(64, 6)).astype(np.int32)


class Block(nnx.Module):
    def __init__(self, dim, heads, mlp, rngs):
        self.norms = nnx.List([nnx.LayerNorm(dim, rngs=rngs) for _ in range(2)])
        self.attention = nnx.MultiHeadAttention(heads, dim, decode=False, rngs=rngs)
        self.up, self.down = nnx.Linear(dim, mlp, rngs=rngs), nnx.Linear(mlp, dim, rngs=rngs)

    def __call__(self, x):
        x = x + self.attention(self.norms[0](x))
        return x + self.down(nnx.gelu(self.up(self.norms[1](x))))


class VisionTransformer(nnx.Module):
    def __init__(self, dim=16, heads=4, mlp=12, depth=1, patch=4, *, rngs):
        self.patches = nnx.Conv(2, dim, (patch, patch), strides=patch, rngs=rngs)
        self.places = nnx.Param(jnp.zeros((4, dim)))
        self.blocks = nnx.List([Block(dim, heads, mlp, rngs) for _ in range(depth)])
        self.norm, self.head = nnx.LayerNorm(dim, rngs=rngs), nnx.Linear(dim, 3, rngs=rngs)

    def __call__(self, images):
        x = self.patches(images)
        x = x.reshape(len(x), -1, x.shape[-1]) + self.places[None]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))


class ResidualBlock(linen.Module):
    filters: int
    strides: int = 1

    @linen.compact
    def __call__(self, x, train):
        norm = partial(linen.BatchNorm, use_running_average=not train)
        y = linen.relu(norm()(linen.Conv(self.filters, (3, 3), self.strides, use_bias=False)(x)))
        y = norm(scale_init=linen.initializers.zeros_init())(linen.Conv(self.filters, (3, 3), use_bias=False)(y))
        if x.shape != y.shape:
            x = norm()(linen.Conv(self.filters, (1, 1), self.strides, use_bias=False)(x))
        return linen.relu(x + y)


class LinenResNet(linen.Module):
    stage_sizes: tuple[int, ...] = (1, 1)
    num_filters: int = 6

    @linen.compact
    def __call__(self, x, train=True):
        x = linen.Conv(self.num_filters, (3, 3))(x)
        for stage, size in enumerate(self.stage_sizes):
            for i in range(size):
                x = ResidualBlock(self.num_filters * 2**stage, 2 if stage and not i else 1)(x, train)
        return linen.Dense(3)(x.mean((1, 2)))


class SequenceToSequence(nnx.Module):
    def __init__(self, vocab=11, features=6, hidden=8, *, rngs):
        self.symbols = nnx.Embed(vocab, features, rngs=rngs)
        self.encoder = nnx.RNN(nnx.GRUCell(features, hidden, rngs=rngs), return_carry=True)
        self.decoder = nnx.RNN(nnx.GRUCell(features, hidden, rngs=rngs))
        self.head = nnx.Linear(hidden, vocab, rngs=rngs)

    def __call__(self, source, target):
        carry, _ = self.encoder(self.symbols(source))
        return self.head(self.decoder(self.symbols(target), initial_carry=carry))


class Skipping(nnx.Module):
    """Joins two widths in one axis, normalizes by groups, and flattens channels first."""

    def __init__(self, outer=6, inner=10, *, rngs):
        self.down = nnx.Conv(2, outer, (3, 3), rngs=rngs)
        self.middle = nnx.Conv(outer, inner, (3, 3), rngs=rngs)
        self.up = nnx.Conv(outer + inner, outer, (3, 3), strides=4, rngs=rngs)
        self.norm, self.head = nnx.GroupNorm(outer, 2, rngs=rngs), nnx.Linear(outer * 4, 3, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.down(x))
        x = self.up(jnp.concatenate([x, nnx.relu(self.middle(x))], -1))
        return self.head(jnp.moveaxis(nnx.relu(self.norm(x)), -1, 1).reshape(len(x), -1))


def experiment(model, inputs, targets=None, num_classes=3, **changes):
    targets = np.arange(64) % 3 if targets is None else targets
    settings = {
        "data": an.data.from_arrays(inputs, targets, num_classes=num_classes),
        "model": model,
        "optimizer": an.optim.adam(1e-2),
        "objective": an.objectives.softmax_cross_entropy(),
        "batch_size": 8,
        "steps": 4,
    }
    return an.Experiment(**settings | changes)
