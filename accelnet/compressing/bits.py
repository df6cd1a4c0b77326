"""Weights of fewer bits: chosen after training, or trained for."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any

import jax
import numpy as np
from flax.traverse_util import unflatten_dict

from accelnet.compressing.activations import Key, Moments, input_moments
from accelnet.compressing.rounding import fitted
from accelnet.compressing.sensitivity import Sensitivity
from accelnet.errors import UserError
from accelnet.experiment import Experiment
from accelnet.models.compressed import Compressed, Compression
from accelnet.models.quantized import kernels_of, quantized
from accelnet.models.replacing import Change
from accelnet.ops.quantized import MOST, nearest
from accelnet.parallel.rules import path_names

Result = tuple[Experiment, Any, Any]


def quantizable(experiment: Experiment) -> dict[str, dict[str, tuple[int, int]]]:
    """Return the layers whose weights can have fewer bits: by path, the shapes of their kernels as matrices.

    Example:
        >>> import accelnet as an
        >>> model = lambda rngs: an.models.MLP(2, (8,), 1, rngs=rngs)
        >>> settings = {"batch_size": 4, "steps": 1, "optimizer": an.optim.adam(1e-2)}
        >>> objective = an.objectives.sigmoid_cross_entropy()
        >>> quantizable(an.Experiment(data=an.data.xor(), model=model, objective=objective, **settings))
        {'head': {'kernel': (8, 1)}, 'layers.0.linear': {'kernel': (2, 8)}}
    """
    pure, inputs = experiment.pure_model, experiment.sample_inputs()
    shapes = jax.eval_shape(lambda: pure.init(jax.random.key(0), inputs))
    found: dict[str, dict[str, tuple[int, int]]] = {}

    def look(params: Any, model_state: Any) -> Any:
        for path, layer in pure.layers(params, model_state, inputs).items():
            if kernels := kernels_of(layer):
                found[path] = {name: one.shape for name, one in kernels.items()}
        return ()

    jax.eval_shape(look, *shapes)
    return dict(sorted(found.items()))


def floats_left(params: Any, known: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the names of the weights, parameters of two axes or more, that no layer has with fewer bits.

    Args:
        params: Parameters, nested dict.
        known: Layers that can have fewer bits, as of `quantizable`.

    Example:
        >>> floats_left({"head": {"kernel": np.ones((3, 2))}, "places": np.ones((4, 3))}, {"head": {"kernel": (3, 2)}})
        ['places']
    """
    rounded = {f"{path}.{name}".lstrip(".") for path, kernels in known.items() for name in kernels}
    biases = rounded | {name for name, _ in path_names(params) if name.rpartition(".")[2] == "bias"}  # heads' have axes
    return [name for name, leaf in path_names(params) if np.ndim(leaf) >= 2 and name not in biases]


def quantize(
    experiment: Experiment,
    params: Any,
    model_state: Any,
    bits: int | Mapping[str, int],
    *,
    moments: Mapping[Key, Moments] | None = None,
    rows: int = 2000,
    seed: int = 0,
    say: Callable[[str], None] = lambda _: None,
) -> Result:
    """Give layers weights of fewer bits.

    Every column of a kernel W has one scale. With the second moments H of its inputs, the whole numbers are those for
    which the outputs change least: row after row of the kernel is rounded, and the error of each is made up for by the
    rows that follow, W_j -= (W_i - Ŵ_i) [H^-1]_ij / [H^-1]_ii. Then the scale is fitted to the whole numbers.

    Args:
        experiment: What was trained.
        params: Parameters, nested dict.
        model_state: State of the model.
        bits: 16 (bfloat16), 8 or 4, for every layer that can have them or by its path.
        moments: As of `input_moments`. None: of rows of the training split.
        rows: Rows for the moments, where they are not given.
        seed: Seed of their choice.
        say: Function that is told what is being done.

    Returns:
        The experiment with a compressed model, and that model's params and state.

    Raises:
        UserError: for other bits, or for a layer that is not there or cannot have them.

    Example:
        >>> import accelnet as an, jax
        >>> model = lambda rngs: an.models.MLP(2, (8,), 1, rngs=rngs)
        >>> settings = {"batch_size": 4, "steps": 1, "optimizer": an.optim.adam(1e-2)}
        >>> objective = an.objectives.sigmoid_cross_entropy()
        >>> whole = an.Experiment(data=an.data.xor(), model=model, objective=objective, **settings)
        >>> small, params, state = quantize(whole, *whole.pure_model.init(jax.random.key(0)), 8)
        >>> state["head"]["kernel"].dtype.name, dict(small.model.compression.bits)
        ('int8', {'head': 8, 'layers.0.linear': 8})

    Source: Frantar et al. (2023), GPTQ, equation 3.
    """
    chosen = bits_by_layer(experiment, bits)
    if moments is None and any(one != 16 for one in chosen.values()):
        paths = [f"{path}\\..*".lstrip("\\.") for path, one in chosen.items() if one != 16]
        moments = input_moments(experiment, params, model_state, rows=rows, seed=seed, paths=paths, say=say)

    def rounding(path: str, layer_bits: int) -> Callable[[str, Any], tuple[Any, Any]]:
        def choose(name: str, matrix: Any) -> tuple[Any, Any]:
            full = f"{path}.{name}" if path else name
            say(f"weights: {full} in {layer_bits} bits")
            second = _second_of(moments or {}, full, matrix.shape[0])
            return nearest(matrix, layer_bits) if second is None else fitted(matrix, second, layer_bits)

        return choose

    return _with_layers(experiment, params, model_state, chosen, rounding)


def bits_by_layer(experiment: Experiment, bits: int | Mapping[str, int]) -> dict[str, int]:
    """Return the bits of every layer that is to be quantized.

    Raises:
        UserError: as `quantize` does.
    """
    known = quantizable(experiment)
    chosen = dict.fromkeys(known, bits) if isinstance(bits, int) else dict(bits)
    if not known:
        raise UserError("the model has no layer whose weights can have fewer bits")
    if unknown := sorted(set(chosen) - set(known)):
        raise UserError(f"the layers {', '.join(unknown)} cannot have fewer bits: {', '.join(known)} can")
    if other := sorted({one for one in chosen.values() if one not in (16, *MOST)}):
        raise UserError(f"bits are {', '.join(map(str, other))}, expected 16, 8 or 4")
    return chosen


def _with_layers(
    experiment: Experiment, params: Any, model_state: Any, chosen: Mapping[str, int], rounding: Any
) -> Result:
    made = experiment.replace(model=Compressed(experiment.model, Compression(bits=chosen)))

    def change(path: str, layer_bits: int) -> Change:
        return path, lambda layer, _: quantized(layer, layer_bits, rounding(path, layer_bits))

    changes, inputs = [change(*one) for one in chosen.items()], experiment.sample_inputs()
    values = experiment.pure_model.values_after(params, model_state, changes, inputs)

    def filled(shapes: Any) -> Any:
        paths = [tuple(str(key.key) for key in keys) for keys, _ in jax.tree_util.tree_flatten_with_path(shapes)[0]]
        return unflatten_dict({path: np.asarray(values[path]) for path in paths})

    shapes = jax.eval_shape(lambda: made.pure_model.init(jax.random.key(0), inputs))
    return made, *map(filled, shapes)


def _second_of(moments: Mapping[Key, Moments], path: str, depth: int) -> np.ndarray | None:
    """Return the second moments of what a kernel is multiplied by, where they were seen as one matrix."""
    found = [one for (name, _), one in moments.items() if name == path and one.gram.shape == (1, depth, depth)]
    return found[0].second[0] if len(found) == 1 and found[0].count[0] > 0 else None


def to_training(experiment: Experiment, bits: int | Mapping[str, int]) -> Experiment:
    """Return the experiment in which layers round their weights and inputs as they are trained; weights stay the same.

    Embeddings are left out: their tables are rounded by `to_stored` alone.

    Args:
        experiment: What was trained.
        bits: 8 or 4, for every layer or by its path.

    Returns:
        The experiment, whose params and state are those of the original.

    Raises:
        UserError: as `quantize` does.
    """
    chosen = bits_by_layer(experiment, bits)
    if isinstance(bits, int):
        known = quantizable(experiment)
        chosen = {path: one for path, one in chosen.items() if "embedding" not in known[path]}
    return experiment.replace(model=Compressed(experiment.model, Compression(rounded=chosen)))


def unrounded(experiment: Experiment) -> Experiment:
    """Return the experiment of `to_training` with layers that round nothing; weights stay the same."""
    model = experiment.model
    return experiment.replace(model=Compressed(model.model, replace(model.compression, rounded={})))


def to_stored(
    experiment: Experiment,
    params: Any,
    model_state: Any,
    *,
    embeddings: int | None = None,
    leaving: Collection[str] = (),
) -> Result:
    """Store what was trained in the form of `to_training`: as `quantize` does, but with the whole numbers of training.

    Args:
        experiment: As of `to_training`.
        params: Parameters, nested dict.
        model_state: State of the model.
        embeddings: Bits of embeddings, or None to leave them.
        leaving: Paths of layers that keep their floats.

    Raises:
        UserError: if no layer of the model rounds.
    """
    model = experiment.model
    rounds = model.compression.rounded if isinstance(model, Compressed) else {}
    if not rounds:
        raise UserError(
            "no layer of the model rounds its weights: to_training(experiment, bits) gives one in which they do"
        )
    plain, chosen = unrounded(experiment), dict(rounds)
    if embeddings is not None:
        chosen |= {path: embeddings for path, names in quantizable(plain).items() if "embedding" in names}

    chosen = {path: one for path, one in chosen.items() if path not in leaving}

    def rounding(_: str, layer_bits: int) -> Callable[[str, Any], tuple[Any, Any]]:
        return lambda _, matrix: nearest(matrix, layer_bits)

    return _with_layers(plain, params, model_state, chosen, rounding)


def bit_sensitivity(
    experiment: Experiment,
    params: Any,
    model_state: Any,
    moments: Mapping[Key, Moments],
    bits: tuple[int, ...] = (4, 8),
) -> Sensitivity:
    """Tell by layer and bits how much its outputs change: the root of the mean squared change over that of outputs.

    Args:
        experiment: What was trained.
        params: Parameters, nested dict.
        model_state: State of the model.
        moments: As of `input_moments`.
        bits: 4 and 8, or one of them.

    Returns:
        The errors; of a layer of several kernels the largest. Layers of which there are no moments are left out.
    """
    found: dict[str, dict[int, float]] = {}
    for path, layer in experiment.pure_model.layers(params, model_state, experiment.sample_inputs()).items():
        for name, matrix in kernels_of(layer).items():
            second = _second_of(moments, f"{path}.{name}".lstrip("."), matrix.shape[0])
            if second is None:
                continue
            weights = np.asarray(matrix, np.float64)
            of_layer = found.setdefault(path, {})
            for one in bits:
                whole, scale = fitted(weights, second, one)
                change = whole * scale.astype(np.float64) - weights
                squares = [np.sum(part * (second @ part)) for part in (change, weights)]
                error = float(np.sqrt(squares[0] / squares[1])) if squares[1] > 0 else 0.0
                of_layer[one] = max(error, of_layer.get(one, 0.0))
    layers = {path: sorted(errors.items()) for path, errors in found.items()}
    return Sensitivity("Fewer bits", "bits", "change of the layer's outputs, relative to their size", layers)
