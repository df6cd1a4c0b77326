"""A text file, character by character: an LSTM language model.

The King James Bible: `apt-get install bible-kjv bible-kjv-text`, then
bible -f "Gen1:1-Rev22:21" </dev/null | sed 's/^[^ ]* //' > kjv.txt
python experiments/char_rnn.py train --data kjv.txt --workdir runs/char_rnn
1.74 bits per character on the held-out tenth, in blocks, in 3.7 minutes on two cores.
The last tenth of the file, the most unlike the rest, is harder: --held-out end gave 2.05.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import optax

import accelnet as an


@dataclass(frozen=True)
class Config:
    """What is worth varying."""

    data: Path | None = None
    """A text file; None for text that every Python has."""
    window: int = 128
    """Characters per example."""
    held_out: Literal["blocks", "end"] = "blocks"
    """Which tenth the test is: ten blocks of a hundred, or the end of the file."""
    cell: Literal["lstm", "gru", "min_gru", "simple"] = "lstm"
    """Recurrent cell."""
    hidden_features: int = 256
    """Features of the state."""
    num_layers: int = 1
    """Recurrent layers."""
    learning_rate: float = 3e-3
    """Of AdamW, at the peak of its schedule."""
    weight_decay: float = 0.01
    """Decoupled, on matrices only."""
    dropout: float = 0.0
    """Rate between and after the recurrent layers."""
    batch_size: int = 32
    """Windows per update."""
    epochs: float = 4
    """Passes over the training windows."""
    seed: int = 0
    """Of weights, order and all noise."""


def experiment(config: Config) -> an.Experiment:
    """Make the experiment of a config."""
    data = an.data.text(config.data, window=config.window, held_out=config.held_out)
    num_symbols = len(data.info["vocabulary"])
    return an.Experiment(
        data=data,
        model=lambda rngs: an.models.RNN(
            128,
            config.hidden_features,
            num_symbols,
            num_symbols=num_symbols,
            cell=config.cell,
            num_layers=config.num_layers,
            output="steps",
            dropout=config.dropout,
            rngs=rngs,
        ),
        optimizer=optax.chain(
            optax.clip_by_global_norm(1.0),
            an.optim.adamw(
                config.learning_rate, weight_decay=config.weight_decay, schedule=an.optim.schedules.warmup_cosine()
            ),
        ),
        objective=an.objectives.token_cross_entropy(),
        batch_size=config.batch_size,
        epochs=config.epochs,
        seed=config.seed,
    )


def sample(run: "an.Run") -> str:
    """Let the model go on from the beginning of the test text."""
    from accelnet.evaluating.text import continuation

    drawn = continuation(run, 400, seed=run.experiment.seed)
    return f"{drawn['beginning']}|{drawn['text']}"


if __name__ == "__main__":
    an.main(experiment, after_train=lambda run: print(sample(run)))
