"""result.json: what came out of a run, as one object."""

import importlib.metadata
import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from accelnet.disk import write_atomically
from accelnet.experiment import Experiment
from accelnet.json_file import plain_value
from accelnet.training.state import TrainState, num_parameters
from accelnet.training.timing import TIMING_FIELDS, Timing

RESULT_FIELDS = (
    "experiment",
    "step",
    "epochs",
    "metrics",
    "parameters",
    "timing",
    "compiles",
    "devices",
    "seed",
    "versions",
    "config",
    "workdir",
)


def make_result(
    experiment: Experiment,
    state: TrainState,
    metrics: Mapping[str, Mapping[str, float]],
    timing: Timing,
    compiles: Mapping[str, int],
    workdir: Path | None,
) -> dict[str, Any]:
    """Put together what came out of a run.

    Args:
        experiment: What was trained.
        state: State at the end.
        metrics: Metrics of the final weights, by split and name.
        timing: Where the time went.
        compiles: Number of compilations of each program.
        workdir: Directory of the run, None if nothing was kept.

    Returns:
        A dict with `RESULT_FIELDS`.
    """
    step, epochs = int(state.step), int(state.step) / experiment.order.steps_per_epoch
    account, train_seconds = timing.account(), timing.seconds["train"]
    return {
        "experiment": experiment.name,
        "step": step,
        "epochs": epochs,
        "metrics": metrics,
        "parameters": num_parameters(state.params),
        "timing": {
            "total_seconds": sum(account.values()),
            **{f"{name}_seconds": value for name, value in account.items()},
            "examples_per_second": epochs * experiment.order.num_examples / train_seconds if train_seconds else 0.0,
        },
        "compiles": compiles,
        "devices": [device.device_kind for device in jax.devices()],
        "seed": experiment.seed,
        "versions": versions(),
        "config": dict(experiment.config),
        "workdir": None if workdir is None else str(workdir),
    }


def result_line(result: Mapping[str, Any]) -> str:
    """Return a result, with `RESULT_FIELDS` and in "timing" `TIMING_FIELDS`, as one line of strict JSON, NaN as null.

    Raises:
        ValueError: if a field is missing or unknown.

    Example:
        >>> result = dict.fromkeys(RESULT_FIELDS) | {"timing": dict.fromkeys(TIMING_FIELDS, 0.5)}
        >>> result_line(result)[:40]
        '{"experiment": null, "step": null, "epoc'
    """
    for where, given, expected in (
        ("result", result, RESULT_FIELDS),
        ("result's timing", result.get("timing") or {}, TIMING_FIELDS),
    ):
        if set(given) != set(expected):
            wrong = sorted(set(given) ^ set(expected))
            raise ValueError(f"the {where} lacks or does not know: {', '.join(wrong)}")
    return json.dumps({name: plain_value(result[name]) for name in RESULT_FIELDS}, allow_nan=False)


def write_result(workdir: str | os.PathLike[str], result: Mapping[str, Any]) -> Path:
    """Write result.json, the object of `result_line`, into the work directory, atomically; return its path.

    Raises:
        UserError: if it cannot be written.

    Example:
        >>> import tempfile
        >>> result = dict.fromkeys(RESULT_FIELDS) | {"timing": dict.fromkeys(TIMING_FIELDS, 0.5)}
        >>> write_result(tempfile.mkdtemp(), result).name
        'result.json'
    """
    path = Path(workdir) / "result.json"
    write_atomically(path, json.dumps(json.loads(result_line(result)), indent=2) + "\n")
    return path


def versions() -> dict[str, str]:
    """Return the versions of Python and of what a result depends on; "not installed" for a package run from sources.

    Example:
        >>> sorted(versions())
        ['accelnet', 'flax', 'jax', 'jaxlib', 'numpy', 'optax', 'orbax-checkpoint', 'python']
    """
    packages = ("accelnet", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    return {"python": platform.python_version()} | {name: _version(name) for name in packages}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
