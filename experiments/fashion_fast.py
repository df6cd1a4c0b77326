"""Fashion-MNIST, as good as it has to be and no later: the recipe of scripts/speedrun.py.

python experiments/fashion_fast.py train --workdir runs/fashion_fast
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import optax
from flax import nnx
from jax import Array

import accelnet as an


@dataclass(frozen=True)
class Config:
    """What is worth varying."""

    optimizer: Literal["adamw", "nesterov", "muon"] = "muon"
    """What updates the weights."""
    learning_rate: float = 0.02
    """At the peak of its schedule."""
    weight_decay: float = 0.05
    """Decoupled, on matrices and kernels only."""
    warmup: float = 0.1
    """Share of the updates in which the rate rises; then it falls along half a cosine."""
    average: float = 0.995
    """Decay of the average of the weights, which is what is evaluated; 0 for none."""
    channels: tuple[int, ...] = (16, 64, 128)
    """Output channels of each stage."""
    num_convolutions: int = 2
    """Convolutions of 3x3 pixels in each stage."""
    halve: Literal["strides", "max"] = "max"
    """What halves the image in each stage: its first convolution's strides, or max pooling at its end."""
    head: Literal["flatten", "average"] = "average"
    """What the dense layers read: all pixels of the last stage, or their average."""
    dense: tuple[int, ...] = ()
    """Widths of the dense layers before the output."""
    dropout: float = 0.1
    """Rate before each dense layer."""
    smoothing: float = 0.1
    """Share of each label that is spread over all classes."""
    crop: int = 1
    """Shift each image by up to this many pixels at random."""
    cutout: int = 0
    """Side of a square of each image that is made gray, in pixels."""
    batch_size: int = 256
    """Examples per update."""
    epochs: float = 10
    """Passes over the training rows."""
    seed: int = 0
    """Of weights, order and all noise; the split of the data stays."""
    data: Path | None = None
    """Directory of the four IDX files; None for where Debian's package puts them, else a download."""


class Mirrored(nnx.Module):
    """A network that answers, where it does not learn, by the mean of what it says of an image and of its mirror image.

    Args:
        network: From images, float [batch, height, width, channels], to outputs [batch, classes].
    """

    def __init__(self, network: nnx.Module) -> None:
        self.network, self.deterministic = network, False

    def __call__(self, images: Array) -> Array:
        """Compute outputs [batch, classes]."""
        outputs = self.network(images)
        return (outputs + self.network(images[:, :, ::-1])) / 2 if self.deterministic else outputs


def experiment(config: Config) -> an.Experiment:
    """Make the experiment of a config."""
    data = an.data.fashion_mnist(config.data)
    augments = [an.data.random_flip()]
    augments += [an.data.random_crop(config.crop)] if config.crop else []
    augments += [an.data.cutout(config.cutout)] if config.cutout else []
    algorithms = {"adamw": an.optim.adamw, "nesterov": an.optim.nesterov, "muon": an.optim.muon}
    update = algorithms[config.optimizer](
        config.learning_rate,
        weight_decay=config.weight_decay,
        schedule=an.optim.schedules.warmup_cosine(warmup=config.warmup),
    )
    return an.Experiment(
        data=dataclasses.replace(data, augment=an.data.compose(*augments)),
        model=lambda rngs: Mirrored(
            an.models.CNN(
                (28, 28, 1),
                config.channels,
                10,
                num_convolutions=config.num_convolutions,
                strides=2 if config.halve == "strides" else 1,
                pooling="max" if config.halve == "max" else None,
                norm="batch",
                head=config.head,
                dense_features=config.dense,
                dropout=config.dropout,
                rngs=rngs,
            )
        ),
        optimizer=optax.chain(update, an.optim.average_params(config.average)) if config.average else update,
        objective=an.objectives.softmax_cross_entropy(label_smoothing=config.smoothing),
        batch_size=config.batch_size,
        epochs=config.epochs,
        eval_every=an.Every(epochs=config.epochs),
        final_evaluation=("validation", "test"),
        seed=config.seed,
    )


if __name__ == "__main__":
    an.main(experiment)
