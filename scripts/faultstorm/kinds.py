"""The runs that are hurt: an experiment script with small experiments of every kind, as a user would write one."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import PartitionSpec

import accelnet as an
from accelnet.training.events import Moment

LOG_STEPS = 5
_ROWS, _CLASSES = 180, 3


@dataclass(frozen=True)
class Config:
    """What is worth varying."""

    kind: str = "mlp"
    """One of KINDS."""
    every_step: bool = False
    """Keep a checkpoint of each step, of several processes of each LOG_STEPS, to compare others with."""


class Net(nnx.Module):
    """Batch statistics, dropout, and few numbers."""

    def __init__(self, *, rngs: nnx.Rngs) -> None:
        self.first = nnx.Linear(16, 12, rngs=rngs)
        self.norm = nnx.BatchNorm(12, rngs=rngs)
        self.drop = nnx.Dropout(0.3, rngs=rngs)
        self.last = nnx.Linear(12, _CLASSES, rngs=rngs)

    def __call__(self, inputs: jax.Array) -> jax.Array:
        hidden = nnx.relu(self.norm(self.first(inputs.reshape(inputs.shape[0], -1))))
        return self.last(self.drop(hidden))


def _images() -> an.data.Data:
    rng = np.random.default_rng(0)
    labels = np.arange(_ROWS) % _CLASSES
    images = rng.integers(0, 120, (_ROWS, 4, 4, 1)) + 40 * labels[:, None, None, None]
    return an.data.Data(
        "toy images",
        {"inputs": images.astype(np.uint8), "targets": labels.astype(np.int32)},
        {"train": range(120), "validation": range(120, 150), "test": range(150, _ROWS)},
        prepare=lambda batch: {**batch, "inputs": batch["inputs"].astype(jnp.float32) / 100.0},
        augment=an.data.random_crop(1),
        info={"num_classes": _CLASSES},
    )


def _table() -> an.data.Data:
    rng = np.random.default_rng(1)
    labels = np.arange(_ROWS) % _CLASSES
    features = rng.normal(size=(_ROWS, 8)).astype(np.float32) + labels[:, None]
    return an.data.from_arrays(features, labels, num_classes=_CLASSES)


def _text() -> dict[str, Any]:
    data = an.data.text(None, window=16)
    # Of a text that every Python has, as much as trains in a second.
    splits = {"train": range(240), "validation": range(240, 280), "test": range(280, 320)}
    data = an.data.Data(
        "toy text",
        {name: array[:320] for name, array in data.arrays.items()},
        splits,
        prepare=data.prepare,
        info=data.info,
    )
    symbols = len(data.info["vocabulary"])
    return {
        "data": data,
        "model": lambda rngs: an.models.RNN(
            8, 16, symbols, num_symbols=symbols, cell="lstm", output="steps", rngs=rngs
        ),
        "optimizer": optax.chain(optax.clip_by_global_norm(1.0), an.optim.adamw(3e-3)),
        "objective": an.objectives.token_cross_entropy(),
    }


def _mlp(rngs: nnx.Rngs) -> nnx.Module:
    return an.models.MLP(8, (16,), _CLASSES, rngs=rngs)


def _cnn(rngs: nnx.Rngs) -> nnx.Module:
    return an.models.CNN((4, 4, 1), (4,), _CLASSES, norm="batch", dropout=0.2, rngs=rngs)


def _of_images(**changes: Any) -> dict[str, Any]:
    return {"data": _images(), "model": lambda rngs: Net(rngs=rngs), **changes}


KINDS: dict[str, Callable[[], dict[str, Any]]] = {
    "mlp": dict,
    "cnn": lambda: _of_images(model=_cnn),
    "lstm": _text,
    "streamed": lambda: _of_images(on_device=False),
    "accumulated": lambda: {"microbatch_size": 4},
    "averaged": lambda: _of_images(optimizer=optax.chain(an.optim.momentum(0.02), an.optim.average_params(0.9))),
    "float16": lambda: {"precision": "float16"},
    "plateau": lambda: {
        "optimizer": optax.chain(
            an.optim.adam(1e-2), an.optim.reduce_on_plateau(factor=0.5, patience=3, window_steps=5)
        )
    },
    "stopping": lambda: {
        "optimizer": an.optim.adam(0.1),
        "early_stopping": an.EarlyStopping(patience=3, restore_best=True),
    },
    # Its buffers are large, so that an allocation of theirs can be told from others.
    "wide": lambda: {"data": _table(), "model": lambda rngs: an.models.MLP(8, (40_000,), _CLASSES, rngs=rngs)},
    # Of three processes each holds a third of every batch, and of the second also a third of the weights.
    "three": lambda: _of_images(optimizer=an.optim.momentum(0.02)),
    "three-fsdp": lambda: _of_images(
        optimizer=optax.chain(an.optim.adamw(1e-2), an.optim.average_params(0.9)),
        on_device=False,
        sharding_rules=[(".*kernel", PartitionSpec(None, "fsdp")), (".*", PartitionSpec("fsdp"))],
    ),
}
MESHES = {"three": "data=3", "three-fsdp": "fsdp=3"}
PROCESSES = {kind: 3 if kind in MESHES else 1 for kind in KINDS}


def experiment(config: Config) -> an.Experiment:
    """Make the experiment of a config: 90 steps with evaluations, and saves between them."""
    if config.kind not in KINDS:
        raise an.UserError(f"kind is {config.kind!r}, expected one of {', '.join(KINDS)}")
    several = config.kind in MESHES  # that take ten times as long to save together
    settings: dict[str, Any] = {
        "optimizer": an.optim.adam(1e-2),
        "objective": an.objectives.softmax_cross_entropy(),
        "batch_size": 12,
        "eval_batch_size": 12,
        "steps": 90,
        "log_every": an.Every(steps=LOG_STEPS),
        "eval_every": an.Every(steps=20 if several else 10),
        "save_every": an.Every(steps=35 if several else 15),
        "name": config.kind,
        "config": {"kind": config.kind},
        "events": [an.Event("start", _trace), an.Event(an.Every(steps=LOG_STEPS), _trace)],
    }
    if config.every_step:
        settings |= {"keep_last": 1000, "save_every": an.Every(steps=LOG_STEPS if several else 1)}
    settings |= KINDS[config.kind]()
    if "data" not in settings:
        settings |= {"data": _table(), "model": _mlp}
    return an.Experiment(**settings)


_compilations: list[tuple[float, float]] = []  # from when to when


def _note_compilation(event: str, duration_secs: float, **_: Any) -> None:
    if event.startswith("/jax/core/compile/"):
        _compilations.append((time.monotonic() - duration_secs, time.monotonic()))


def _compiling_seconds() -> float:
    """Return for how long something was compiled: parts contain each other, and programs are compiled side by side."""
    seconds = until = 0.0
    for begun, ended in sorted(_compilations):
        seconds += max(0.0, ended - max(begun, until))
        until = max(until, ended)
    return seconds


def _trace(moment: Moment) -> None:
    """Tell the harness where the run is: seconds of the monotonic clock, step, seconds of compilation so far."""
    path = os.environ.get("FAULTSTORM_TRACE")
    if path and jax.process_index() == 0:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        os.write(descriptor, f"{time.monotonic():.4f} {moment.step} {_compiling_seconds():.4f}\n".encode())
        os.close(descriptor)


def run(args: list[str]) -> None:
    """Run the command line in this process."""
    jax.monitoring.register_event_duration_secs_listener(_note_compilation)
    an.main(experiment, args)
