"""Weights to start from: of an earlier run, of a work directory, of anything that is a tree of arrays."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from accelnet.arguments import check_patterns, flag, path, sequence
from accelnet.errors import UserError, user_code
from accelnet.experiment import Experiment
from accelnet.terminal import say
from accelnet.training.checkpoint import Checkpoints, first_line
from accelnet.training.rows import best_step, with_rows
from accelnet.training.state import TrainState, init_state
from accelnet.wording import listed, shown


@dataclass(frozen=True)
class Initial:
    """A source of initial weights, and which of them are taken.

    Args:
        source: Nested dicts of arrays (or a dict of arrays by paths joined by dots), a `Run`, a work directory, or a
            function from the new params to others.
        paths: Regular expressions of whole paths, such as "backbone.*". The default takes all.
        best: Take the checkpoint of a work directory with the best validation metric, not the newest.

    Raises:
        UserError: if a path is no regular expression.

    Example:
        >>> Initial({"head": {"bias": np.zeros(3)}}, paths=["head.*"]).paths
        ('head.*',)
    """

    source: Any
    paths: Sequence[str] = (".*",)
    best: bool = False

    def __post_init__(self) -> None:
        paths = (self.paths,) if isinstance(self.paths, str) else sequence("paths of Initial", self.paths)
        object.__setattr__(self, "paths", paths)
        check_patterns("paths of Initial", paths)
        flag("best of Initial", self.best)


def initial_arrays(experiment: Experiment, abstract: TrainState) -> dict[str, Any]:
    """Collect the arrays that a run starts from.

    Args:
        experiment: Experiment whose `initial` names the sources.
        abstract: Shapes of its state.

    Returns:
        Arrays by the path of a parameter or of the model's state. Empty: everything is made anew.

    Raises:
        UserError: if a shape differs, a pattern matches nothing, or a whole source lacks a parameter; with the paths.
    """
    given = experiment.initial
    if given is None:
        return {}
    parts = given if isinstance(given, list | tuple) else [given]
    if not parts:
        raise UserError("initial is an empty list, expected sources of weights, or None")
    params_like, state_like = _flat(abstract.params) | _flat(abstract.frozen), _flat(abstract.model_state)
    found: dict[str, Any] = {}
    for part in parts:
        one = part if isinstance(part, Initial) else Initial(part)
        found |= _matched(one, *_read(one, experiment, params_like), params_like, state_like)
    return found


def _flat(tree: Any) -> dict[str, Any]:
    return {".".join(path): leaf for path, leaf in flatten_dict(tree).items()}


def _read(one: Initial, experiment: Experiment, wanted: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the params and the model's state of a source, by path."""
    source = one.source
    if isinstance(source, str | os.PathLike):
        return stored_weights(path("initial", source), best=one.best)
    if hasattr(source, "params") and hasattr(source, "model_state"):  # a Run
        return _flat(source.params), _flat(source.model_state)
    if callable(source):
        state = jax.jit(lambda seed: init_state(experiment, seed))(np.uint32(experiment.seed))
        fresh = _flat(state.params) | _flat(state.frozen)
        params = unflatten_dict({tuple(path.split(".")): fresh[path] for path in wanted})
        with user_code("initial"):
            return _flat(_plain(source(params))), {}
    if isinstance(source, Mapping):
        flat = flatten_dict({name: _plain(value) for name, value in source.items()})
        return {".".join(map(str, path)): leaf for path, leaf in flat.items()}, {}
    raise UserError(
        f"initial is {shown(source)}, expected nested dicts of arrays, a Run, a work directory, a function, or "
        "an Initial of one of these"
    )


def _plain(tree: Any) -> Any:
    return {str(name): _plain(value) for name, value in tree.items()} if isinstance(tree, Mapping) else tree


def _matched(
    one: Initial, params: Mapping[str, Any], state: Mapping[str, Any], params_like: Mapping[str, Any], state_like: Any
) -> dict[str, Any]:
    def matches(path: str) -> bool:
        return any(re.fullmatch(pattern, path) for pattern in one.paths)

    for pattern in one.paths:
        if not any(re.fullmatch(pattern, path) for path in params_like):
            raise UserError(
                f"initial takes {pattern!r}, which matches none of the {len(params_like)} parameters: "
                f"{listed(params_like)}. It has to match a whole path, as 'backbone.*' does"
            )
    chosen = {path: like for path, like in params_like.items() if matches(path)}
    if missing := [path for path in chosen if path not in params]:
        raise UserError(
            f"initial has no {listed(missing)}: take a part of it, as Initial(source, paths=['backbone.*']); it has "
            f"{listed(params)}"
        )
    chosen |= {path: like for path, like in state_like.items() if matches(path) and path in state}
    given = {path: params[path] if path in params else state[path] for path in chosen}
    shapes = {path: (np.shape(given[path]), like.shape) for path, like in chosen.items()}
    differing = [f"{path} is {list(a)}, expected {list(b)}" for path, (a, b) in shapes.items() if a != b]
    if differing:
        raise UserError(
            f"initial has other shapes: {'; '.join(differing[:5])}{' …' if len(differing) > 5 else ''}. Leave these "
            "out, as with Initial(source, paths=['backbone.*'])"
        )
    if other := [path for path, value in given.items() if not _is_numbers(value)]:
        raise UserError(f"initial has {listed(other)}, which are no arrays of numbers")
    return {path: jnp.asarray(value, chosen[path].dtype) for path, value in given.items()}


def _is_numbers(value: Any) -> bool:
    return jnp.issubdtype(value.dtype if hasattr(value, "dtype") else np.asarray(value).dtype, jnp.number)


def stored_weights(workdir: str | Path, *, best: bool = False) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read the weights of a run without its experiment.

    Args:
        workdir: Directory of the run.
        best: Take the checkpoint with the best validation metric, not the newest.

    Returns:
        (params, model state), arrays by path.

    Raises:
        UserError: if there is no such checkpoint, it cannot be read, or the run keeps averaged weights.
    """
    checkpoints = Checkpoints(workdir, complete=partial(with_rows, Path(workdir), say))
    try:
        found = checkpoints.read_record()
        if found is None:
            raise UserError(f"{workdir} holds no checkpoint: name the work directory of a run that has saved one")
        step, record = found
        if best:
            best_metric, lower_is_better = record["best_metric"], record["lower_is_better"]
            step, record = checkpoints.read_record(best_step(checkpoints, best_metric, lower_is_better)) or found
        if record["averaged"]:
            raise UserError(
                f"the run in {workdir} keeps averaged weights: give the Run of an.evaluate(experiment, workdir), which "
                "has them with their batch statistics"
            )
        stored = record["arrays"]
        shapes = {name: jax.ShapeDtypeStruct(one["shape"], jnp.dtype(one["dtype"])) for name, one in stored.items()}
        arrays = checkpoints.read_arrays(step, shapes, stored)
    except UserError:
        raise
    except Exception as error:  # Orbax, TensorStore and JSON each have their own
        raise UserError(f"the checkpoint in {workdir} cannot be read: {first_line(error)}") from error

    def below(field: str) -> dict[str, Any]:
        return {name.removeprefix(field): array for name, array in arrays.items() if name.startswith(field)}

    return below("params.") | below("frozen."), below("model_state.")
