"""Prices of 53,940 diamonds from their measures, a residual multilayer perceptron on the log price.

python experiments/diamonds_mlp.py train --workdir runs/diamonds
Test R2 0.988 in 7 s on two cores.
"""

from dataclasses import dataclass
from pathlib import Path

from flax import nnx

import accelnet as an


@dataclass(frozen=True)
class Config:
    """What is worth varying."""

    learning_rate: float = 3e-3
    """Of AdamW, at the peak of its schedule."""
    weight_decay: float = 0.01
    """Decoupled, on matrices only."""
    hidden_features: tuple[int, ...] = (128, 128, 128)
    """Widths of the hidden layers."""
    batch_size: int = 256
    """Rows per update."""
    epochs: float = 30
    """Passes over the training rows."""
    seed: int = 0
    """Of weights and order; the split of the data stays."""
    data: Path | None = None
    """The CSV file; None for the one in the package plotnine."""


def experiment(config: Config) -> an.Experiment:
    """Make the experiment of a config."""
    data = an.data.diamonds(config.data)
    num_features = data.arrays["inputs"].shape[1]
    return an.Experiment(
        data=data,
        model=lambda rngs: an.models.MLP(
            num_features, config.hidden_features, 1, activation=nnx.silu, residual=True, rngs=rngs
        ),
        optimizer=an.optim.adamw(
            config.learning_rate, weight_decay=config.weight_decay, schedule=an.optim.schedules.warmup_cosine()
        ),
        objective=an.objectives.squared_error(),
        batch_size=config.batch_size,
        epochs=config.epochs,
        seed=config.seed,
    )


if __name__ == "__main__":
    an.main(experiment)
