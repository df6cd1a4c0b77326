"""Ten modules as people write them, nnx and Linen, each as an experiment on a few random rows.

`scripts/export_table.py` exports them, and `tests/exporting/test_export.py` does.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen, nnx

import accelnet as an

RNG = np.random.default_rng(0)
ROWS = 48
IMAGES = RNG.normal(size=(ROWS, 16, 16, 3)).astype(np.float32)
TOKENS = RNG.integers(0, 20, (ROWS, 12)).astype(np.int32)
SERIES = RNG.normal(size=(ROWS, 10, 5)).astype(np.float32)
CLASSES = np.arange(ROWS) % 4


class Encoder(nnx.Module):
    """A Transformer encoder of tokens, whose padding (token 0) nobody looks at."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.embedding, self.position = nnx.Embed(20, 16, rngs=rngs), nnx.Embed(12, 16, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(4, 16, dropout_rate=0.1, decode=False, rngs=rngs)
        self.norms = nnx.List([nnx.LayerNorm(16, rngs=rngs) for _ in range(2)])
        self.wide, self.narrow = nnx.Linear(16, 32, rngs=rngs), nnx.Linear(32, 16, rngs=rngs)
        self.head = nnx.Linear(16, 4, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        known = tokens != 0
        x = self.embedding(tokens) + self.position(jnp.arange(tokens.shape[1]))[None]
        x = x + self.attention(self.norms[0](x), mask=nnx.make_attention_mask(known, known))
        x = x + self.narrow(nnx.gelu(self.wide(self.norms[1](x))))
        weights = known[..., None].astype(x.dtype)
        return self.head((x * weights).sum(1) / jnp.maximum(weights.sum(1), 1))


class Writer(nnx.Module):
    """A causal language model."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.embedding, self.norm = nnx.Embed(20, 16, rngs=rngs), nnx.RMSNorm(16, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, 16, decode=False, rngs=rngs)
        self.mix = nnx.Linear(16, 16, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = self.embedding(tokens)
        x = x + self.attention(self.norm(x), mask=nnx.make_causal_mask(tokens))
        return self.embedding.attend(jax.nn.silu(self.mix(x)))


class Block(linen.Module):
    """A residual block."""

    features: int

    @linen.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        def norm(x: jax.Array) -> jax.Array:
            return linen.BatchNorm(use_running_average=not train)(x)

        y = linen.relu(norm(linen.Conv(self.features, (3, 3), use_bias=False)(x)))
        y = norm(linen.Conv(self.features, (3, 3), use_bias=False)(y))
        return linen.relu(y + (x if x.shape == y.shape else norm(linen.Conv(self.features, (1, 1))(x))))


class LinenResNet(linen.Module):
    """A ResNet."""

    @linen.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = linen.max_pool(Block(8)(x, train), (2, 2), (2, 2))
        return linen.Dense(4)(Block(16)(x, train).mean((1, 2)))


class UNet(nnx.Module):
    """A U-Net: a class for each pixel."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.down, self.deep = nnx.Conv(3, 8, (3, 3), rngs=rngs), nnx.Conv(8, 16, (3, 3), rngs=rngs)
        self.up = nnx.ConvTranspose(16, 8, (2, 2), (2, 2), rngs=rngs)
        self.norm, self.head = nnx.GroupNorm(16, num_groups=4, rngs=rngs), nnx.Conv(16, 2, (1, 1), rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        skip = nnx.relu(self.down(images))
        deep = nnx.relu(self.deep(nnx.avg_pool(skip, (2, 2), (2, 2))))
        return self.head(nnx.relu(self.norm(jnp.concatenate([skip, self.up(deep)], axis=-1))))


class VAE(linen.Module):
    """A variational autoencoder, which draws in training alone."""

    @linen.compact
    def __call__(self, x: jax.Array, train: bool) -> dict[str, jax.Array]:
        h = linen.relu(linen.Dense(32)(x.reshape(x.shape[0], -1)))
        mean, logvar = linen.Dense(4)(h), linen.Dense(4)(h)
        z = mean + jnp.exp(logvar / 2) * jax.random.normal(self.make_rng("z"), mean.shape) if train else mean
        out = linen.sigmoid(linen.Dense(x[0].size)(linen.relu(linen.Dense(32)(z))))
        return {"image": out.reshape(x.shape), "mean": mean, "logvar": logvar}


class Autoencoder(nnx.Module):
    """A convolutional autoencoder."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.encode = nnx.Conv(3, 8, (3, 3), (2, 2), rngs=rngs)
        self.decode = nnx.ConvTranspose(8, 3, (3, 3), (2, 2), rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        return self.decode(nnx.leaky_relu(self.encode(images)))


class Reader(nnx.Module):
    """Flax's own LSTM, and its GRU behind it."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.first, self.second = nnx.RNN(nnx.LSTMCell(5, 8, rngs=rngs)), nnx.RNN(nnx.GRUCell(8, 8, rngs=rngs))
        self.head = nnx.Linear(8, 4, rngs=rngs)

    def __call__(self, series: jax.Array) -> jax.Array:
        return self.head(self.second(self.first(series))[:, -1])


class TwoHeads(linen.Module):
    """Two inputs, two answers."""

    @linen.compact
    def __call__(self, image: jax.Array, tokens: jax.Array, deterministic: bool) -> dict[str, jax.Array]:
        seen = linen.relu(linen.Conv(8, (3, 3), strides=2)(image)).mean((1, 2))
        x = jnp.concatenate([seen, linen.Embed(20, 8)(tokens).mean(1)], axis=-1)
        x = linen.Dropout(0.1)(linen.LayerNorm()(x), deterministic=deterministic)
        return {"class": linen.Dense(4)(x), "size": linen.softplus(linen.Dense(1)(x))}


class Slope(nnx.Module):
    """A function of (t, x) and its derivative by t, as networks for differential equations have."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.wide, self.out = nnx.Linear(2, 16, rngs=rngs), nnx.Linear(16, 1, rngs=rngs)

    def __call__(self, points: jax.Array) -> jax.Array:
        def value(point: jax.Array) -> jax.Array:
            return self.out(jnp.tanh(self.wide(point[None])))[0, 0]

        slopes = jax.vmap(jax.grad(value))(points)
        return jnp.stack([jax.vmap(value)(points), slopes[:, 0]], axis=-1)


class Experts(nnx.Module):
    """A mixture of experts, weighted by softmax, with squeeze and excitation before it."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.experts = nnx.Param(jax.random.normal(rngs.params(), (4, 3, 8)) / 2)
        self.gate, self.squeeze = nnx.Linear(3, 4, rngs=rngs), nnx.Linear(3, 3, rngs=rngs)
        self.head = nnx.Linear(8, 4, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        images = images * nnx.sigmoid(self.squeeze(images.mean((1, 2))))[:, None, None]
        x = images.max((1, 2))
        return self.head(jnp.einsum("bd,edf,be->bf", x, self.experts[...], jax.nn.softmax(self.gate(x))))


def _elbo(outputs: Any, batch: Any) -> jax.Array:
    error = ((outputs["image"] - batch["targets"]) ** 2).sum((1, 2, 3))
    mean, logvar = outputs["mean"], outputs["logvar"]
    return error - 0.05 * (1 + logvar - mean**2 - jnp.exp(logvar)).sum(1)


def _heads(outputs: Any, batch: Any) -> jax.Array:
    losses = optax.softmax_cross_entropy_with_integer_labels(outputs["class"], batch["targets"])
    return losses + outputs["size"][:, 0] ** 2


def _experiment(inputs: Any, targets: Any, model: Any, objective: Any, **settings: Any) -> an.Experiment:
    return an.Experiment(
        data=an.data.from_arrays(inputs, targets, **settings), model=model, optimizer=an.optim.adam(1e-2),
        objective=objective, batch_size=8, steps=1, final_evaluation=(),
    )  # fmt: skip


_CLASSES = {"num_classes": 4}


def _of_classes(inputs: Any, model: Any) -> an.Experiment:
    return _experiment(inputs, CLASSES, model, an.objectives.softmax_cross_entropy(), **_CLASSES)


MODELS: dict[str, Callable[[], an.Experiment]] = {
    "Transformer encoder (nnx)": lambda: _of_classes(TOKENS, Encoder),
    "language model (nnx)": lambda: _experiment(
        TOKENS, np.roll(TOKENS, -1, axis=1), Writer, an.objectives.token_cross_entropy(), num_classes=20
    ),
    "ResNet (Linen)": lambda: _of_classes(IMAGES, LinenResNet()),
    "U-Net (nnx)": lambda: _experiment(
        IMAGES, (IMAGES[..., 0] > 0).astype(np.int32), UNet, an.objectives.softmax_cross_entropy(), num_classes=2
    ),
    "VAE (Linen)": lambda: _experiment(IMAGES, IMAGES, VAE(), an.objectives.Objective(_elbo)),
    "autoencoder (nnx)": lambda: _experiment(
        IMAGES, IMAGES, Autoencoder, an.objectives.Objective(lambda outputs, batch: (outputs - batch["targets"]) ** 2)
    ),
    "LSTM and GRU of Flax (nnx)": lambda: _of_classes(SERIES, Reader),
    "two inputs, two heads (Linen)": lambda: _experiment(
        {"image": IMAGES, "tokens": TOKENS}, CLASSES, TwoHeads(), an.objectives.Objective(_heads), **_CLASSES
    ),
    "derivative of a network (nnx)": lambda: _experiment(
        IMAGES[:, 0, 0, :2], IMAGES[:, 0, 1, :2], Slope, an.objectives.squared_error(num_outputs=2)
    ),
    "mixture of experts (nnx)": lambda: _of_classes(IMAGES, Experts),
}
