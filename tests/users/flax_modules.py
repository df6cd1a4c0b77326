"""Modules as users of Flax write them."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import nnx, struct

import accelnet as an
from tests.users import toy


class MnistTutorial(nnx.Module):
    """The MNIST tutorial: convolutions, BatchNorm, dropout that gets its rngs in the call."""

    def __init__(self, rngs):
        self.conv = nnx.Conv(1, 4, kernel_size=(3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.drop = nnx.Dropout(rate=0.25)
        self.pool = functools.partial(nnx.avg_pool, window_shape=(2, 2), strides=(2, 2))
        self.linear = nnx.Linear(64, 2, rngs=rngs)

    def __call__(self, x, rngs: nnx.Rngs | None = None):
        x = self.pool(nnx.relu(self.norm(self.conv(x))))
        return self.linear(self.drop(x.reshape(x.shape[0], -1), rngs=rngs))


class FlagByName(nnx.Module):
    def __init__(self, rngs):
        self.drop, self.linear = nnx.Dropout(0.5, rngs=rngs), nnx.Linear(8, 2, rngs=rngs)

    def __call__(self, x, *, training: bool = False):
        return self.linear(self.drop(x, deterministic=not training))


class OwnStatistics(nnx.Module):
    """The guide to state: a BatchNorm written by hand."""

    def __init__(self, rngs):
        self.scale = nnx.Param(jnp.ones(8))
        self.mean = nnx.BatchStat(jnp.zeros(8))
        self.training = True
        self.linear = nnx.Linear(8, 2, rngs=rngs)

    def __call__(self, x):
        mean = x.mean(0)
        self.mean[...] = 0.9 * self.mean[...] + 0.1 * mean
        return self.linear((x - self.mean[...][None]) * self.scale[...][None])


class Counter(nnx.Variable):
    pass


class Counting(nnx.Module):
    def __init__(self, rngs):
        self.linear, self.count = nnx.Linear(8, 2, rngs=rngs), Counter(jnp.array(0))

    def __call__(self, x):
        self.count[...] += 1
        return self.linear(x)


class Scanned(nnx.Module):
    """The guide to scan over layers, with dropout in each."""

    def __init__(self, rngs):
        @nnx.split_rngs(splits=3)
        @nnx.vmap(in_axes=(0,), out_axes=0)
        def make(rngs):
            return nnx.Sequential(nnx.Linear(8, 8, rngs=rngs), nnx.Dropout(0.3, rngs=rngs), nnx.relu)

        self.layers, self.head = make(rngs), nnx.Linear(8, 2, rngs=rngs)

    def __call__(self, x):
        @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        def forward(x, layer):
            return layer(x) + x

        return self.head(forward(x, self.layers))


class Encoder(nnx.Module):
    """A Transformer encoder as in the miniGPT tutorial: a table of positions, masks, attention with dropout."""

    def __init__(self, rngs):
        self.embed = nnx.Embed(12, 8, rngs=rngs)
        self.positions = jnp.linspace(0.0, 1.0, 8)[:, None]
        self.attention = nnx.MultiHeadAttention(2, 8, dropout_rate=0.1, decode=False, rngs=rngs)
        self.norm, self.drop = nnx.LayerNorm(8, rngs=rngs), nnx.Dropout(0.1, rngs=rngs)

    def __call__(self, tokens):
        x = self.embed(tokens) + self.positions[None]
        mask = nnx.make_causal_mask(tokens)
        x = x + self.drop(self.attention(self.norm(x), mask=mask))
        return self.embed.attend(x)


class Sown(nnx.Module):
    def __init__(self, rngs):
        self.linear = nnx.Linear(8, 2, rngs=rngs)

    def __call__(self, x):
        outputs = self.linear(x)
        self.sow(nnx.Intermediate, "size", jnp.mean(outputs**2))
        return outputs


class WithContainers(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(8, 8, rngs=rngs) for _ in range(2)])
        self.heads = nnx.Dict(a=nnx.Linear(8, 2, rngs=rngs), b=nnx.Linear(8, 2, rngs=rngs))
        self.mask = np.ones((8,), np.float32)

    def __call__(self, x):
        for layer in self.layers:
            x = nnx.gelu(layer(x))
        return self.heads["a"](x * self.mask[None]) + self.heads["b"](x)


class Recurrent(nnx.Module):
    def __init__(self, rngs):
        self.rnn = nnx.RNN(nnx.GRUCell(8, 6, rngs=rngs))
        self.head = nnx.Linear(6, 2, rngs=rngs)

    def __call__(self, x):
        return self.head(self.rnn(x[..., 0])[:, -1])


NNX: dict[str, tuple[Any, Any, Any]] = {
    "MNIST tutorial, rngs in the call": (MnistTutorial, toy.IMAGE_DATA, None),
    "a flag by keyword": (FlagByName, toy.ROW_DATA, None),
    "statistics written by hand": (OwnStatistics, toy.ROW_DATA, None),
    "a Variable of an own type": (Counting, toy.ROW_DATA, None),
    "layers scanned": (Scanned, toy.ROW_DATA, None),
    "a Transformer with a table of positions": (Encoder, toy.TOKEN_DATA, an.objectives.token_cross_entropy()),
    "sow": (Sown, toy.ROW_DATA, None),
    "lists, dicts and NumPy arrays": (WithContainers, toy.ROW_DATA, None),
    "nnx.RNN": (Recurrent, toy.IMAGE_DATA, None),
    "bridge.ToNNX": (
        lambda rngs: nnx.bridge.ToNNX(nn.Dense(2), rngs=rngs).lazy_init(jnp.zeros((1, 8))),
        toy.ROW_DATA,
        None,
    ),
    "LoRA": (lambda rngs: nnx.LoRALinear(8, 2, lora_rank=2, rngs=rngs), toy.ROW_DATA, None),
}


class LinenMnist(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.avg_pool(nn.relu(nn.Conv(4, (3, 3))(x)), (2, 2), (2, 2))
        return nn.Dense(2)(x.reshape((x.shape[0], -1)))


class LinenResNet(nn.Module):
    """The ImageNet example: norm by functools.partial, train=True by default."""

    @nn.compact
    def __call__(self, x, train: bool = True):
        norm = functools.partial(nn.BatchNorm, use_running_average=not train, momentum=0.9, epsilon=1e-5)
        y = nn.relu(norm(name="first")(nn.Conv(4, (3, 3), use_bias=False)(x)))
        y = norm(name="second", scale_init=nn.initializers.zeros_init())(nn.Conv(4, (3, 3), use_bias=False)(y))
        x = nn.relu(y + nn.Conv(4, (1, 1))(x))
        return nn.Dense(2)(x.mean((1, 2)))


class LinenVae(nn.Module):
    """The VAE example: its noise comes by an argument."""

    @nn.compact
    def __call__(self, x, z_rng):
        mean, logvar = nn.Dense(2)(x), nn.Dense(2)(x)
        z = mean + jnp.exp(0.5 * logvar) * jax.random.normal(z_rng, logvar.shape)
        return {"recon": nn.Dense(8)(z), "mean": mean, "logvar": logvar}


class Seq2Seq(nn.Module):
    """The seq2seq example: an LSTM encoder and decoder, scanned by nn.RNN."""

    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(12, 8)(tokens)
        carry, _ = nn.RNN(nn.LSTMCell(8), return_carry=True)(x)
        return nn.Dense(12)(nn.RNN(nn.LSTMCell(8))(x, initial_carry=carry))


class LinenScan(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool = False):
        class Layer(nn.Module):
            @nn.compact
            def __call__(self, x, _):
                return nn.Dropout(0.2, deterministic=not train)(jnp.tanh(nn.Dense(8)(x))) + x, None

        stack = nn.scan(Layer, variable_axes={"params": 0}, split_rngs={"params": True, "dropout": True}, length=3)
        return nn.Dense(2)(stack()(x, None)[0])


class LinenRemat(nn.Module):
    def setup(self):
        self.blocks = [nn.remat(nn.Dense)(8) for _ in range(2)]
        self.table = jnp.arange(8.0)
        self.head = nn.Dense(2)

    def __call__(self, x):
        for block in self.blocks:
            x = nn.relu(block(x + self.table[None]))
        return self.head(x)


class Ensemble(nn.Module):
    @nn.compact
    def __call__(self, x):
        many = nn.vmap(
            nn.Dense, variable_axes={"params": 0}, split_rngs={"params": True}, in_axes=None, out_axes=0, axis_size=3
        )
        return many(2)(x).mean(0)


class Partitioned(nn.Module):
    @nn.compact
    def __call__(self, x):
        init = nn.with_logical_partitioning(nn.initializers.lecun_normal(), ("embed", "mlp"))
        return nn.Dense(2, kernel_init=init)(x)


class Mixture(nn.Module):
    """An auxiliary loss by sow, as mixtures of experts have it."""

    @nn.compact
    def __call__(self, x):
        gates = nn.softmax(nn.Dense(3)(x))
        self.sow("losses", "balance", jnp.sum(gates.mean(0) ** 2))
        experts = jnp.stack([nn.Dense(2)(x) for _ in range(3)], axis=1)
        return jnp.einsum("be,beo->bo", gates, experts)


class NoiseIfThereIs(nn.Module):
    @nn.compact
    def __call__(self, x):
        if self.has_rng("latent"):
            x = x + 0.1 * jax.random.normal(self.make_rng("latent"), x.shape)
        return nn.Dense(2)(x)


@struct.dataclass
class Config:
    rate: float = 0.3
    deterministic: bool = False


class Lm1b(nn.Module):
    """The LM1B example: `deterministic` is in the configuration."""

    config: Config

    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(12, 8)(tokens)
        attention = nn.MultiHeadDotProductAttention(
            2, dropout_rate=self.config.rate, deterministic=self.config.deterministic
        )
        x = x + attention(nn.LayerNorm()(x), mask=nn.make_causal_mask(tokens))
        return nn.Dense(12)(nn.Dropout(self.config.rate)(x, deterministic=self.config.deterministic))


def elbo(outputs, batch):
    recon = jnp.sum((outputs["recon"] - batch["targets"]) ** 2, axis=-1)
    mean, logvar = outputs["mean"], outputs["logvar"]
    return recon - 0.5 * jnp.sum(1 + logvar - mean**2 - jnp.exp(logvar), axis=-1)


LINEN: dict[str, tuple[Any, Any, Any]] = {
    "MNIST": (LinenMnist(), toy.IMAGE_DATA, None),
    "ImageNet ResNet": (LinenResNet(), toy.IMAGE_DATA, None),
    "VAE": (LinenVae(), toy.data(toy.X, toy.X), an.objectives.Objective(elbo)),
    "seq2seq": (Seq2Seq(), toy.TOKEN_DATA, an.objectives.token_cross_entropy()),
    "scan with dropout": (LinenScan(), toy.ROW_DATA, None),
    "remat, setup, a table": (LinenRemat(), toy.ROW_DATA, None),
    "vmap": (Ensemble(), toy.ROW_DATA, None),
    "logical partitioning": (Partitioned(), toy.ROW_DATA, None),
    "has_rng": (NoiseIfThereIs(), toy.ROW_DATA, None),
    "LM1B, a module per mode": (
        an.models.per_mode(training=Lm1b(Config()), evaluation=Lm1b(Config(deterministic=True))),
        toy.TOKEN_DATA,
        an.objectives.token_cross_entropy(),
    ),
    "mixture with a sown loss": (
        Mixture(),
        toy.ROW_DATA,
        an.objectives.Objective(
            lambda outputs, batch, sown: -jax.nn.log_softmax(outputs)[:, 0] + 0.1 * sown["losses"]["balance"][0]
        ),
    ),
}
