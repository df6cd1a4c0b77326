"""The models that bench_compress.py makes smaller: experiments that are trained within minutes."""

import dataclasses
import importlib
from collections.abc import Callable
from typing import Any

import accelnet as an
from accelnet.data.dataset import Data
from bench_systems import layers as describe


def fewer(data: Data, rows: int | None) -> Data:
    """Return data with at most so many training rows."""
    train_rows = data.splits["train"]
    if rows is None or rows >= len(train_rows):
        return data
    return dataclasses.replace(data, splits={**data.splits, "train": train_rows[:rows]})


def fashion(model: Callable[..., Any], epochs: float) -> Callable[[int, Any], an.Experiment]:
    """Return the maker of an experiment on Fashion-MNIST."""

    def make(seed: int, options: Any) -> an.Experiment:
        length = epochs if options.epochs is None else options.epochs
        return an.Experiment(
            data=fewer(an.data.fashion_mnist(), options.rows),
            model=model,
            optimizer=an.optim.adamw(2e-3, weight_decay=0.01, schedule=an.optim.schedules.warmup_cosine()),
            objective=an.objectives.softmax_cross_entropy(),
            batch_size=128,
            epochs=length,
            seed=seed,
        )

    return make


def of_script(name: str, **settings: Any) -> Callable[[int, Any], an.Experiment]:
    """Return the maker of the experiment of a script."""

    def make(seed: int, options: Any) -> an.Experiment:
        module: Any = importlib.import_module(f"experiments.{name}")
        length = {} if options.epochs is None else {"epochs": options.epochs}
        made = module.experiment(module.Config(seed=seed, **(settings | length)))
        return made.replace(data=fewer(made.data, options.rows))

    return make


MODELS: dict[str, Callable[[int, Any], an.Experiment]] = {
    "fashion_mlp": fashion(lambda rngs: an.models.MLP(784, (300, 300), 10, rngs=rngs), 8),
    "fashion_cnn": fashion(lambda rngs: an.models.CNN((28, 28, 1), (16, 32), 10, norm="batch", rngs=rngs), 4),
    "resnet8": fashion(lambda rngs: an.models.ResNet(1, 8, 10, rngs=rngs), 4),
    "fashion_rnn": of_script("fashion_rnn", epochs=6),
    "char_rnn": of_script("char_rnn", epochs=8),
    "digits_cnn": of_script("digits_cnn"),
}


# What others build themselves: where their layers have a form of few bits.
DESCRIBED = {
    "fashion_mlp": describe.mlp(2),
    "fashion_rnn": describe.rnn(),
    "char_rnn": describe.rnn(tokens=True, output="steps"),
}

# What others prune: where their tools follow the network's graph.
PRUNABLE = {
    "fashion_mlp": describe.mlp(2),
    "fashion_cnn": describe.cnn((28, 28, 1), 2, norm=True),
}
