"""Layers as products of low rank, by the principal components of what they put out."""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict

from accelnet.compressing.activations import Key, Moments, drawn_rows, input_moments
from accelnet.compressing.batch_statistics import with_batch_statistics
from accelnet.compressing.spectrum import SeparatedSpectrum, Spectrum
from accelnet.compressing.teacher import output_distance
from accelnet.errors import UserError
from accelnet.evaluating.predictions import make_forward
from accelnet.experiment import Experiment
from accelnet.models.compressed import Compressed, Compression
from accelnet.models.split import SplitConv, SplitLinear, each, is_separated, split_kernel
from accelnet.models.split_recurrence import RECURRENT, SplitRecurrence, has_whole_recurrent_kernel
from accelnet.parallel.rules import path_names

Say = Callable[[str], None]

_TRIED_ROWS = 512
_TRIED_ERROR = 0.05


def spectra(
    experiment: Experiment,
    params: Any,
    model_state: Any,
    *,
    moments: Mapping[Key, Moments] | None = None,
    rows: int = 4000,
    seed: int = 0,
    say: Say = lambda _: None,
) -> dict[str, Spectrum]:
    """Find how well each layer that can be split could have a low rank.

    Args:
        experiment: What was trained, with a model that a function makes, or a Linen module.
        params: Parameters, nested dict.
        model_state: State of the model.
        moments: Moments of the inputs, as `input_moments` computes them. None: they are computed.
        rows: Rows of the training split that they are computed from.
        seed: Seed of the draw of rows.
        say: Function that is told what is being done.

    Returns:
        `Spectrum` by the path of the layer, of those for which some rank is smaller; of the recurrent kernel of a
        recurrent layer by the path of that kernel.

    Example:
        >>> import accelnet as an
        >>> experiment = an.Experiment(
        ...     data=an.data.xor(),
        ...     model=lambda rngs: an.models.MLP(2, (8, 8), 1, rngs=rngs),
        ...     batch_size=4,
        ...     steps=1,
        ...     optimizer=an.optim.adam(1e-2),
        ...     objective=an.objectives.sigmoid_cross_entropy(),
        ... )
        >>> found = spectra(experiment, *experiment.pure_model.init(jax.random.key(0)))
        >>> [(path, one.ranks) for path, one in found.items()]
        [('layers.0.linear', [1]), ('layers.1.linear', [1, 2, 3])]
    """
    layers = _layers(experiment, params, model_state)
    names = {f"{path.removesuffix(RECURRENT)}.{kernel}": path for path, (_, kernel) in layers.items()}
    if moments is None and names:
        paths = [re.escape(name) for name in names]
        moments = input_moments(experiment, params, model_state, rows=rows, seed=seed, paths=paths, say=say)
    values = dict(path_names(params))
    found = {}
    for index, (name, path) in enumerate(names.items()):
        say(f"ranks: {index} of {len(names)} layers")
        layer, kernel = layers[path]
        own = [one for (which, _), one in (moments or {}).items() if which == name]
        # In another form than x' W the kernel is used by somebody else, too.
        if len(own) != 1 or len(own[0].gram) != 1 or own[0].indices.size != values[name].size:
            continue
        spectrum = _spectrum(path, kernel, layer, own[0], values[name])
        if spectrum.largest:
            found[path] = spectrum
    say("ranks: the layers' weights")
    weights = _weights(experiment, params, model_state, found, seed)
    return {path: replace(one, weight=weights[path]) for path, one in found.items()}


def _weights(
    experiment: Experiment, params: Any, model_state: Any, found: Mapping[str, Spectrum], seed: int
) -> dict[str, float]:
    """Measure how far the outputs move when one layer alone gets a low rank, for each unit of that layer's error.

    Without weights, errors of layers that the outputs hardly feel would count as much as those of the others.
    """
    rows, task = drawn_rows(experiment, _TRIED_ROWS, seed), experiment.objective.task
    batch = {**experiment.data.take(rows), "mask": np.ones(len(rows), bool)}
    forward = jax.jit(lambda *given: jax.tree.leaves(make_forward(experiment)(*given)[0]))
    whole = forward(params, model_state, batch)
    flat: dict[Any, Any] = flatten_dict(params)
    weights = {}
    for path, one in found.items():
        rank = min(one.ranks, key=lambda rank, one=one: abs(one.error(rank) - _TRIED_ERROR))
        layer = _names(path)
        changed = {one.kernel: one.product(rank), **_biases(one, rank, _own(layer, flat))}
        changed = {(*layer, name): part for name, part in changed.items()}
        parts = {name: jnp.asarray(part, flat[name].dtype).reshape(flat[name].shape) for name, part in changed.items()}
        outputs = forward(unflatten_dict({**flat, **parts}), model_state, batch)
        moved = sum(float(output_distance(task, *both, 1.0).mean()) for both in zip(outputs, whole, strict=True))
        weights[path] = max(moved, 1e-12) / max(one.error(rank), 1e-12)
    return weights


def _layers(experiment: Experiment, params: Any, model_state: Any) -> dict[str, tuple[Any, str]]:
    """Return the layers that can be split, with the names of their kernels, by the paths that their ranks have."""
    every = experiment.pure_model.layers(params, model_state, experiment.sample_inputs())
    done = [path for path, layer in every.items() if isinstance(layer, SplitLinear | SplitConv | SplitRecurrence)]
    found: dict[str, tuple[Any, str]] = {}
    for path, layer in every.items():
        if not path or any(path.startswith(f"{one}.") for one in done):
            continue
        if (kernel := split_kernel(layer)) is not None:
            found[path] = layer, kernel
        if has_whole_recurrent_kernel(layer):
            found[f"{path}{RECURRENT}"] = layer, RECURRENT[1:]
    return dict(sorted(found.items()))


def _spectrum(path: str, kernel: str, layer: Any, moments: Moments, values: Any) -> Spectrum:
    matrix = moments.matrices(values)[0]
    mean = moments.mean[0] if getattr(layer, "bias", None) is not None else np.zeros(len(matrix))
    parts = path, kernel, matrix, mean, moments.second[0] - np.outer(mean, mean), moments.per_example
    if isinstance(layer, nnx.Conv) and is_separated(layer):
        window: Any = layer.kernel_size
        return SeparatedSpectrum(*parts, values.dtype.itemsize, window=window, step=each(layer.strides, 2)[1])
    return Spectrum(*parts, values.dtype.itemsize)


def factorize(
    experiment: Experiment,
    params: Any,
    model_state: Any,
    ranks: Mapping[str, int],
    *,
    found: Mapping[str, Spectrum] | None = None,
    rows: int = 4000,
    seed: int = 0,
    say: Say = lambda _: None,
) -> tuple[Experiment, Any, Any]:
    """Give layers of a trained network low ranks, without training.

    Args:
        experiment: What was trained.
        params: Parameters, nested dict.
        model_state: State of the model.
        ranks: Rank by the path of a layer, such as `choose_ranks` gives.
        found: `Spectrum` by layer. None: they are found.
        rows: As for `spectra`.
        seed: As for `spectra`.
        say: Function that is told what is being done.

    Returns:
        The experiment of the smaller model, and its params and state, with batch statistics computed anew.

    Raises:
        UserError: if a layer cannot be split, or a rank is not smaller than the layer is.

    Example:
        >>> import accelnet as an
        >>> experiment = an.Experiment(
        ...     data=an.data.xor(),
        ...     model=lambda rngs: an.models.MLP(2, (8, 8), 1, rngs=rngs),
        ...     batch_size=4,
        ...     steps=1,
        ...     optimizer=an.optim.adam(1e-2),
        ...     objective=an.objectives.sigmoid_cross_entropy(),
        ... )
        >>> weights = experiment.pure_model.init(jax.random.key(0))
        >>> smaller, params, _ = factorize(experiment, *weights, {"layers.1.linear": 2})
        >>> params["layers"]["1"]["linear"]["down"]["kernel"].shape, smaller.model.compression.ranks
        ((8, 2), {'layers.1.linear': 2})
    """
    if found is None:
        found = spectra(experiment, params, model_state, rows=rows, seed=seed, say=say)
    for path, rank in ranks.items():
        if path not in found or not 1 <= rank <= found[path].largest:
            known = ", ".join(f"{name} (1 to {one.largest})" for name, one in found.items())
            raise UserError(
                f"the layer {path!r} cannot have rank {rank}: those that a lower rank makes smaller are "
                f"{known or 'none'}"
            )
    smaller = experiment.replace(model=Compressed(experiment.model, Compression(ranks=ranks)))
    like, _ = jax.eval_shape(lambda: smaller.pure_model.init(jax.random.key(0), smaller.sample_inputs()))
    old: dict[Any, Any] = flatten_dict(params)
    shapes: dict[Any, Any] = flatten_dict(like)
    made: dict[Any, Any] = {}
    for layer in dict.fromkeys(map(_names, ranks)):
        made |= _parts(layer, {path: rank for path, rank in ranks.items() if _names(path) == layer}, found, old)
    new = {
        path: jnp.asarray(made[path], leaf.dtype).reshape(leaf.shape) if path in made else old[path]
        for path, leaf in shapes.items()
    }
    new = unflatten_dict(new)
    if ranks and _has_batch_statistics(experiment, params, model_state):
        say("batch statistics")
        model_state = with_batch_statistics(smaller, new, model_state)
    return smaller, new, model_state


def _has_batch_statistics(experiment: Experiment, params: Any, model_state: Any) -> bool:
    layers = experiment.pure_model.layers(params, model_state, experiment.sample_inputs()).values()
    return "batch_stats" in model_state or any(isinstance(layer, nnx.BatchNorm) for layer in layers)


def _names(path: str) -> tuple[str, ...]:
    """Return the names on the way to the layer that a rank is for."""
    return tuple(path.removesuffix(RECURRENT).split("."))


def _own(layer: tuple[str, ...], flat: Mapping[Any, Any]) -> dict[str, Any]:
    """Return a layer's own parameters."""
    return {path[-1]: leaf for path, leaf in flat.items() if path[:-1] == layer}


def _parts(
    layer: tuple[str, ...], ranks: Mapping[str, int], found: Mapping[str, Spectrum], old: Mapping[Any, Any]
) -> dict[Any, Any]:
    """Return the parameters of a layer of low rank, by path: of `SplitLinear` and `SplitConv`, or `SplitRecurrence`.

    Args:
        layer: Names on the way to it.
        ranks: Rank of its kernel; of a recurrent layer also of its recurrent kernel.
        found: `Spectrum` by the paths of the ranks.
        old: Parameters of the whole network, by path.
    """
    parts: dict[tuple[str, ...], Any] = {(name,): leaf for name, leaf in _own(layer, old).items()}
    for path, rank in sorted(ranks.items(), reverse=True):  # that of the recurrent kernel first
        spectrum = found[path]
        down, up = spectrum.factors(rank)
        parts |= {(name,): bias for name, bias in _biases(spectrum, rank, _own((), parts)).items()}
        del parts[spectrum.kernel,]
        if path.endswith(RECURRENT):
            parts |= {("recurrent_down",): down, ("recurrent_up",): up}
        else:
            second = "up" if spectrum.kernel == "kernel" else "layer"
            parts = {(second, *names): leaf for names, leaf in parts.items()}
            parts |= {("down", "kernel"): down, (second, spectrum.kernel): up}
    return {(*layer, *names): part for names, part in parts.items()}


def _biases(spectrum: Spectrum, rank: int, own: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Return a layer's biases with what a rank loses of the outputs' mean."""
    if "bias" not in own:
        return {}
    shift, bias = spectrum.shift(rank), np.asarray(own["bias"], np.float64).ravel()
    if spectrum.path.endswith(RECURRENT) and "recurrent_bias" in own:  # a GRU's, behind its reset gate
        inner = np.asarray(own["recurrent_bias"], np.float64)
        outer, last = np.split(shift, [len(shift) - len(inner)])
        return {"bias": bias + np.pad(outer, (0, len(last))), "recurrent_bias": inner + last}
    return {"bias": bias + shift}
