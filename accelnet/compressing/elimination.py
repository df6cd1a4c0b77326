"""Pruning: a trained network with fewer units, which its remaining weights make up for."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from accelnet.arguments import integer, word
from accelnet.artifact.recipe import flattened, unflattener
from accelnet.compressing.activations import input_moments
from accelnet.compressing.batch_statistics import with_batch_statistics
from accelnet.compressing.probe import Weights
from accelnet.compressing.spaces import Space, sliced, zeroed
from accelnet.compressing.units import METHODS, Consumer, Method, consumers_of, kept_units
from accelnet.compressing.widths import Widths, find_widths
from accelnet.experiment import Experiment
from accelnet.models.compressed import Compressed, Compression

# A matrix of the second moments of more features takes minutes and gigabytes: such a product is only sliced.
_MOST_FEATURES = 6000


def prune(
    experiment: Experiment,
    params: Any,
    model_state: Any,
    widths: Mapping[str, int],
    *,
    method: Method = "elimination",
    refit: bool = True,
    rows: int = 4000,
    seed: int = 0,
    found: Widths | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> tuple[Experiment, Any, Any]:
    """Make widths of a trained network smaller, without training.

    Units go one by one, or by a score, as `kept_units` says; the products that took them in are refitted to their
    outputs on training rows. Layers are done from the last to the first, so that no weight has to make up for an output
    that no layer takes in any more. Then BatchNorm's statistics are computed anew, from batches as training sees them.

    Args:
        experiment: What was trained; the model may be compressed already.
        params: Parameters, nested dict, frozen ones among them.
        model_state: State of the model.
        widths: New numbers by path, {"channels.0": 48}: proven widths of the model, each with its step.
        method: How the units that stay are chosen.
        refit: Whether the others' weights make up for them; without it they are only cut out.
        rows: Training rows that activations are taken from.
        seed: Seed of the choice of rows.
        found: Widths of the model, where they are known: what `find_widths` returns.
        say: Function that is told what is being done.

    Returns:
        The experiment of the smaller model, and its params and state.

    Raises:
        UserError: if one of `widths` is no proven width, or no number that it can have.

    Example:
        >>> import accelnet as an
        >>> experiment = an.Experiment(
        ...     data=an.data.xor(),
        ...     model=lambda rngs: an.models.MLP(2, (8,), 1, rngs=rngs),
        ...     batch_size=4,
        ...     steps=1,
        ...     optimizer=an.optim.adam(1e-2),
        ...     objective=an.objectives.sigmoid_cross_entropy(),
        ... )
        >>> weights = experiment.pure_model.init(jax.random.key(0))
        >>> small, params, _ = prune(experiment, *weights, {"hidden_features.0": 4})
        >>> params["head"]["kernel"].shape, small.model.compression.widths
        ((4, 1), {'hidden_features.0': 4})
    """
    word("method", method, METHODS)
    integer("rows", rows, 1)
    known = find_widths(experiment, say=say) if found is None else found
    numbers = known.smaller(widths)
    smaller = experiment.replace(model=Compressed(experiment.model, Compression(numbers)))
    targets = {
        space: width.units(space, widths[path])
        for path, width in known.proven.items() if path in widths
        for space in width.spaces
    }  # fmt: skip
    weights = {name: np.asarray(leaf) for name, leaf in flattened(jax.device_get((params, model_state))).items()}
    paths = _patterns(targets)
    moments = (
        input_moments(experiment, params, model_state, rows=rows, seed=seed, paths=paths, say=say) if paths else {}
    )
    keep: dict[Space, np.ndarray] = {}
    order = {path: place for place, (path, _) in enumerate(moments)}
    for space in sorted(targets, key=lambda one: _last_use(one, order), reverse=True):
        say(f"units: {len(keep)} of {len(targets)} layers")
        shifted = _shifted(space, weights, known)
        consumers = consumers_of(space, list(moments.values()), weights, shifted)
        kept = kept_units(method, targets[space], consumers, _magnitudes(space, weights))
        keep[space] = kept
        if refit:
            weights = _refitted(weights, consumers, kept, shifted)
        gone = np.setdiff1d(np.arange(space.units), kept)
        weights = zeroed(weights, [(part, gone) for part in space.parts])
    like = jax.eval_shape(lambda: smaller.pure_model.init(jax.random.key(0), smaller.sample_inputs()))
    made = unflattener(like)(sliced(weights, list(keep), list(keep.values())))
    new_params, new_state = jax.tree.map(lambda leaf, one: jnp.asarray(leaf, one.dtype), made, like)
    if any(part.name.startswith("state.") for space in targets for part in space.parts):
        say("batch statistics")
        new_state = with_batch_statistics(smaller, new_params, new_state)
    return smaller, new_params, new_state


def _patterns(targets: Mapping[Space, int]) -> list[str]:
    """Return expressions of the paths of products whose moments are wanted; one of none, where there are none."""
    takers = {part.path for space in targets for part in space.parts if 0 < part.features <= _MOST_FEATURES}
    return [re.escape(path) for path in sorted(takers)]


def _last_use(space: Space, order: Mapping[str, int]) -> int:
    return max((order.get(part.path, -1) for part in space.parts if part.features), default=-1)


def _shifted(space: Space, weights: Weights, known: Widths) -> dict[str, str | None]:
    """Return the products of a space's units after which a bias can take up a constant, and that bias.

    The bias is None where BatchNorm's mean, which is computed anew, takes it up.
    """
    found: dict[str, str | None] = {}
    every = [one for width in known.proven.values() for one in width.spaces]
    for part in space.parts:
        makes = [one for one in every if any(p.name == part.name and not p.features for p in one.parts)]
        before, _, last = part.name.rpartition(".")
        bias = f"{before}.bias"
        if any(p.name.startswith("state.") for one in makes for p in one.parts):
            found[part.path] = None
        elif last in ("kernel", "input_kernel") and bias in weights:
            found[part.path] = bias
    return found


def _magnitudes(space: Space, weights: Weights) -> np.ndarray:
    """Return the norms of the units' own weights, float64 [units]."""
    total = np.zeros(space.units)
    makers = [part for part in space.parts if not part.features and np.ndim(weights[part.name]) > 1]
    for part in makers or space.parts:
        rows = np.moveaxis(weights[part.name], part.axis, 0)[part.elements(np.arange(space.units))]
        total += np.square(rows, dtype=np.float64).reshape(space.units, -1).sum(1)
    return np.sqrt(total)


def _refitted(
    weights: Weights, consumers: Sequence[Consumer], kept: np.ndarray, shifted: Mapping[str, str | None]
) -> dict[str, np.ndarray]:
    changed = dict(weights)
    for one in consumers:
        path, name = one.moments.path, f"params.{one.moments.path}"
        matrix = one.refitted(kept)
        if path in shifted:
            bias, (matrix, constant) = shifted[path], (matrix[:-1], matrix[-1])
            if bias is not None and changed[bias].size == constant.size:
                changed[bias] = changed[bias] + constant.reshape(changed[bias].shape).astype(changed[bias].dtype)
        flat = np.array(changed[name]).ravel()
        flat[one.moments.indices[one.group]] = matrix
        changed[name] = flat.reshape(np.shape(changed[name]))
    return changed
