"""Which layers are slower with fewer bits or of low rank than without, as they are timed one by one."""

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from accelnet.compressing.candidate import Weighing
from accelnet.compressing.finetune import untrained_run
from accelnet.compressing.ranks import factorize
from accelnet.compressing.spectrum import Spectrum
from accelnet.evaluating.latency import inference, make_answer, measure_in_turns
from accelnet.evaluating.predictions import make_forward
from accelnet.models.effects import intercept_calls
from accelnet.models.replacing import Change
from accelnet.models.split_recurrence import RECURRENT
from accelnet.training.run import Run

SLOWER = 1.05  # times that count as longer: medians of the same program differ by less
_SECONDS = 0.1  # for each network or layer at a batch size
_Call = tuple[tuple[Any, ...], dict[str, Any]]


def never_slower(
    whole: Run,
    stored: Callable[[Collection[str]], Weighing],
    batch_sizes: Sequence[int],
    say: Callable[[str], None],
) -> tuple[Weighing | None, dict[str, float]]:
    """Return a network with fewer bits in which layers that are slower so keep their floats.

    Layers are timed where the network as a whole is slower at some batch size, and at that one alone. Where none is
    slower on its own, calls of many layers cost more together: then the slower half of them keeps its floats.

    Args:
        whole: The network.
        stored: Function from the paths of layers that keep their floats to the network with fewer bits.
        batch_sizes: Batch sizes at which it is not to be slower.
        say: Function that is told what is being done.

    Returns:
        The network, None where it is slower with any layer of fewer bits; and by the paths of the layers that kept
        their floats how many times as long they took without.
    """
    made, kept = stored(()), dict[str, float]()
    while made[0].model.compression.bits:
        slower = _slower_layers(whole, untrained_run(*made), batch_sizes, say)
        if not slower:
            return made, kept
        kept |= slower
        made = stored(kept)
    return None, kept


def _slower_layers(
    whole: Run, smaller: Run, batch_sizes: Sequence[int], say: Callable[[str], None]
) -> dict[str, float]:
    slower: dict[str, float] = {}
    for batch_size in batch_sizes:
        say(f"latency at batch {batch_size} with fewer bits")
        answers = {"whole": make_answer(whole, batch_size), "smaller": make_answer(smaller, batch_size)}
        if measure_in_turns(answers, _SECONDS)["smaller"]["ratio"] > SLOWER:
            ratios = layer_ratios(whole, smaller, batch_size)
            ranked = sorted(ratios, key=lambda path: -ratios[path])
            ones = [path for path in ranked if ratios[path] > SLOWER] or ranked[: -(-len(ranked) // 2)]
            slower |= {path: max(ratios[path], slower.get(path, 0.0)) for path in ones}
    return slower


def slower_recurrences(
    weighing: Weighing, found: Mapping[str, Spectrum], batch_sizes: Sequence[int], say: Callable[[str], None]
) -> dict[str, float]:
    """Return the recurrent kernels with which a layer is slower where they have half the largest rank.

    A whole one is multiplied in a compiled loop on the CPU, one of low rank in a loop of XLA's, which pays only where
    the kernel is large.

    Args:
        weighing: The network.
        found: `Spectrum` by the path that a rank has.
        batch_sizes: Batch sizes that the layers are timed at.
        say: Function that is told what is being done.

    Returns:
        By the path of a recurrent kernel, how many times as long its layer takes, the geometric mean over the batch
        sizes, of those for which this is more than once.
    """
    ranks = {path: -(-one.largest // 2) for path, one in found.items() if path.endswith(RECURRENT)}
    if not ranks:
        return {}
    whole, smaller = untrained_run(*weighing), untrained_run(*factorize(*weighing, ranks, found=found))
    times: dict[str, list[float]] = {}
    for batch_size in batch_sizes:
        say(f"recurrent layers of low rank at batch {batch_size}")
        paths = [path.removesuffix(RECURRENT) for path in ranks]
        for path, ratio in layer_ratios(whole, smaller, batch_size, paths).items():
            times.setdefault(f"{path}{RECURRENT}", []).append(ratio)
    means = {path: float(np.exp(np.mean(np.log(ratios)))) for path, ratios in times.items()}
    return {path: mean for path, mean in means.items() if mean > 1}


def layer_ratios(whole: Run, smaller: Run, batch_size: int, paths: Collection[str] | None = None) -> dict[str, float]:
    """Time the layers of a network that are others in a compressed one, each alone and in turns.

    Args:
        whole: The network.
        smaller: The same one, of a compressed model.
        batch_size: Number of examples.
        paths: Paths of the layers. None: of those that have fewer bits.

    Returns:
        By the path of a layer that was called, how many times as long it takes in `smaller`. One whose weights alone
        are used, such as a table of tokens that is projected first, is left out.
    """
    paths = list(smaller.experiment.model.compression.bits) if paths is None else paths
    calls = layer_calls(whole, paths, batch_size)
    found: dict[str, float] = {}
    for path, (args, kwargs) in calls.items():
        given = jax.tree.map(_filled, (args, kwargs))
        answers = {
            name: _answer(_layer(run, path), given) for name, run in {"whole": whole, "smaller": smaller}.items()
        }
        found[path] = measure_in_turns(answers, _SECONDS)["smaller"]["ratio"]
    return found


def layer_calls(run: Run, paths: Collection[str], batch_size: int) -> dict[str, _Call]:
    """Return with what layers of a network are called first, as shapes, by their paths; nothing is computed.

    Args:
        run: The run.
        paths: Paths of layers.
        batch_size: Number of examples.
    """
    calls: dict[str, _Call] = {}

    def note(path: str, _: Any, run: Callable[[], Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        calls.setdefault(path, jax.tree.map(_shape, (args, kwargs)))
        return run()

    experiment = run.experiment

    def watching(path: str) -> Change:
        def watched(layer: Any, _: nnx.Rngs) -> Any:
            intercept_calls(layer, partial(note, path))
            return layer

        return path, watched

    watched, data = experiment.pure_model.changed([watching(path) for path in paths]), experiment.data
    batch = {**data.take(np.arange(batch_size) % data.num_rows), "mask": np.ones(batch_size, bool)}
    forward = make_forward(experiment.replace(model=watched, initial=None))
    jax.eval_shape(lambda *given: jax.tree.leaves(forward(*given)[0]), run.params, run.model_state, batch)
    return calls


def _shape(leaf: Any) -> Any:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) if isinstance(leaf, jax.Array) else leaf


def _filled(leaf: Any) -> Any:
    """Return numbers of a shape: normal ones, and zeros, which every table has, in the place of whole ones."""
    if not isinstance(leaf, jax.ShapeDtypeStruct):
        return leaf
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        return np.zeros(leaf.shape, leaf.dtype)
    return np.random.default_rng(0).standard_normal(leaf.shape).astype(leaf.dtype)


def _layer(run: Run, path: str) -> nnx.Module:
    experiment = run.experiment
    return experiment.pure_model.layers(run.params, run.model_state, experiment.sample_inputs())[path]


def _answer(layer: nnx.Module, given: _Call) -> Callable[[], Any]:
    graph, state = nnx.split(layer)
    arrays, structure = jax.tree.flatten(given)
    moving = [place for place, one in enumerate(arrays) if isinstance(one, np.ndarray)]

    def outputs(state: Any, numbers: list[Any]) -> Any:
        filled = list(arrays)
        for place, one in zip(moving, numbers, strict=True):
            filled[place] = one
        args, kwargs = jax.tree.unflatten(structure, filled)
        return nnx.merge(graph, state)(*args, **kwargs)

    # On the device, as within a network: a layer alone that is reached without XLA has another time.
    numbers, run = [jnp.asarray(arrays[place]) for place in moving], inference(outputs, state)
    return lambda: jax.block_until_ready(run(numbers))
