"""The algorithms by name, for command lines: `algorithms[config.optimizer](config.learning_rate)`."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Literal

import optax

from accelnet.optim.adam import adam, adamw, lamb, nadam, schedule_free_adamw
from accelnet.optim.adaptive import adadelta, adafactor, adagrad, rmsprop
from accelnet.optim.momentum import lars, lion, momentum, nesterov, sgd
from accelnet.optim.muon import muon

# A Literal, so that a config's field of this type gets its choices checked on the command line.
AlgorithmName = Literal[
    "adadelta",
    "adafactor",
    "adagrad",
    "adam",
    "adamw",
    "lamb",
    "lars",
    "lion",
    "momentum",
    "muon",
    "nadam",
    "nesterov",
    "rmsprop",
    "schedule_free_adamw",
    "sgd",
]

algorithms: Mapping[AlgorithmName, Callable[..., optax.GradientTransformationExtraArgs]] = MappingProxyType(
    {
        "adadelta": adadelta,
        "adafactor": adafactor,
        "adagrad": adagrad,
        "adam": adam,
        "adamw": adamw,
        "lamb": lamb,
        "lars": lars,
        "lion": lion,
        "momentum": momentum,
        "muon": muon,
        "nadam": nadam,
        "nesterov": nesterov,
        "rmsprop": rmsprop,
        "schedule_free_adamw": schedule_free_adamw,
        "sgd": sgd,
    }
)
