"""Handwritten digits, 8x8 pixels, a multilayer perceptron.

python experiments/digits_mlp.py train --workdir runs/digits_mlp
97.8 % test accuracy in 5 s on two cores (seeds 1 and 2: 98.3 %).
"""

import dataclasses
from dataclasses import dataclass

import accelnet as an


@dataclass(frozen=True)
class Config:
    """What is worth varying."""

    learning_rate: float = 3e-3
    """Of AdamW, at the peak of its schedule."""
    weight_decay: float = 0.05
    """Decoupled, on matrices only."""
    hidden_features: tuple[int, ...] = (256, 256)
    """Widths of the hidden layers."""
    dropout: float = 0.1
    """Rate after each hidden layer."""
    batch_size: int = 64
    """Examples per update."""
    epochs: float = 60
    """Passes over the training rows."""
    seed: int = 0
    """Of weights, order and dropout; the split of the data stays."""


def experiment(config: Config) -> an.Experiment:
    """Make the experiment of a config."""
    return an.Experiment(
        data=dataclasses.replace(an.data.digits(), augment=an.data.random_crop(1)),
        model=lambda rngs: an.models.MLP(64, config.hidden_features, 10, dropout=config.dropout, rngs=rngs),
        optimizer=an.optim.adamw(
            config.learning_rate, weight_decay=config.weight_decay, schedule=an.optim.schedules.warmup_cosine()
        ),
        objective=an.objectives.softmax_cross_entropy(),
        batch_size=config.batch_size,
        epochs=config.epochs,
        seed=config.seed,
    )


if __name__ == "__main__":
    an.main(experiment)
