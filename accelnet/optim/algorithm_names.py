"""The names of accelnet's algorithms, for the command line: `algorithms[config.optimizer](config.learning_rate)`."""

from typing import Literal

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
