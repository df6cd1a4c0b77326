"""XOR, 2-3-1 with sigmoids, squared error, Adam, the four rows as one batch.

python experiments/xor_mlp.py train --workdir runs/xor
RESULT
"""

from dataclasses import dataclass

from flax import nnx

import accelnet as an


@dataclass(frozen=True)
class Config:
    """What is worth varying."""

    learning_rate: float = 0.05
    """Of Adam."""
    steps: int = 5_000
    """Updates, each of all four rows."""
    seed: int = 0
    """Of the weights."""


class Net(nnx.Module):
    """Two inputs, three hidden units and one output, each behind a sigmoid."""

    def __init__(self, *, rngs: nnx.Rngs) -> None:
        # Small first weights leave the hidden units alike, and some seeds on the plateau at 1/2.
        wide = nnx.initializers.normal(2.0)
        self.hidden = nnx.Linear(2, 3, kernel_init=wide, bias_init=wide, rngs=rngs)
        self.output = nnx.Linear(3, 1, rngs=rngs)

    def __call__(self, inputs):
        """Compute outputs [B, 1] in (0, 1) of inputs [B, 2]."""
        return nnx.sigmoid(self.output(nnx.sigmoid(self.hidden(inputs))))


def experiment(config: Config) -> an.Experiment:
    """Make the experiment of a config."""
    return an.Experiment(
        data=an.data.xor(),
        model=Net,
        optimizer=an.optim.adam(config.learning_rate),
        objective=an.objectives.squared_error(metrics={"accuracy": an.objectives.RoundedAccuracy()}),
        batch_size="full",
        steps=config.steps,
        seed=config.seed,
        log_every=an.Every(steps=max(1, config.steps // 20)),
    )


if __name__ == "__main__":
    an.main(experiment)
