"""JapaneseVowels: nine speakers told apart by 7 to 29 steps of 12 coefficients, a bidirectional GRU.

python experiments/vowels_rnn.py train --workdir runs/vowels
97.9 % test accuracy on average over seeds 0 to 4 (97.3 to 98.6; seed 0 98.1), 6 to 9 s each on two cores.
"""

from dataclasses import dataclass
from typing import Literal

import optax

import accelnet as an


@dataclass(frozen=True)
class Config:
    """What is worth varying."""

    cell: Literal["lstm", "gru", "min_gru", "simple"] = "gru"
    """Recurrent cell."""
    hidden_features: int = 64
    """Features of the state, per direction."""
    learning_rate: float = 3e-3
    """Of AdamW, at the peak of its schedule."""
    weight_decay: float = 0.1
    """Decoupled, on matrices only."""
    dropout: float = 0.3
    """Rate after the recurrent layers."""
    batch_size: int = 32
    """Series per update."""
    epochs: float = 60
    """Passes over the training series."""
    seed: int = 0
    """Of weights, order and all noise; the split of the data stays."""


def experiment(config: Config) -> an.Experiment:
    """Make the experiment of a config."""
    return an.Experiment(
        data=an.data.japanese_vowels(),
        model=lambda rngs: an.models.RNN(
            12,
            config.hidden_features,
            9,
            cell=config.cell,
            bidirectional=True,
            output="mean",
            dropout=config.dropout,
            rngs=rngs,
        ),
        optimizer=optax.chain(
            optax.clip_by_global_norm(1.0),
            an.optim.adamw(
                config.learning_rate, weight_decay=config.weight_decay, schedule=an.optim.schedules.warmup_cosine()
            ),
        ),
        objective=an.objectives.softmax_cross_entropy(),
        batch_size=config.batch_size,
        epochs=config.epochs,
        seed=config.seed,
    )


if __name__ == "__main__":
    an.main(experiment)
