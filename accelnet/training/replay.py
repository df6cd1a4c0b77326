"""A step that went wrong, once more: which operation, of which layer, made the first number that is not finite."""

import contextlib
import io
import json
import math
import time
import typing
import zipfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from accelnet import runtime
from accelnet.arguments import path as checked_path
from accelnet.data.feed import AbstractFeed, make_feed
from accelnet.disk import write_atomically
from accelnet.errors import DivergenceError, UserError
from accelnet.experiment import Experiment, check_experiment
from accelnet.ops.origin import find_origin
from accelnet.parallel.layout import ONE_DEVICE, Strategy
from accelnet.parallel.memory import exhaustion_explained
from accelnet.parallel.rules import path_names
from accelnet.terminal import StatusLine, say
from accelnet.training.checkpoint import Checkpoints, first_line
from accelnet.training.initial import initial_arrays
from accelnet.training.program import Programs, going_on, prepare
from accelnet.training.replayed import Replay, described
from accelnet.training.rows import with_rows
from accelnet.training.state import TrainState
from accelnet.training.step import make_train_step
from accelnet.training.stored import changed_fields, read_stored, refitted
from accelnet.training.workdir import Workdir

Tree = Any
Say = Callable[[str], None]

BATCH, FOUND = "replay.npz", "replay.json"
_KINDS = ("loss", "gradient", "weights", "norm")
# Of a message that has to wait for it.
_MOST_SECONDS, _MOST_COMPILE_SECONDS = 20.0, 30.0


def replay(
    experiment: Experiment,
    workdir: str | Path,
    *,
    mesh: str | Mesh | None = None,
    strategy: Strategy = "jit",
    progress: bool = True,
) -> Replay:
    """Repeat a run that diverged from its last checkpoint, and find the operation that made the first NaN or infinity.

    The batches and the keys are the same, since both are functions of the seed and the step. The failed step is then
    computed operation by operation; its batch is kept in `workdir` as replay.npz, what was found as replay.json.

    Args:
        experiment: Experiment that was trained there.
        workdir: Directory of the run. One without a checkpoint is repeated from its first step.
        mesh: As of `fit`, that of the training.
        strategy: As of `fit`.
        progress: Show which step is repeated.

    Returns:
        What was found.

    Raises:
        UserError: if there is no run, or several processes take part.
    """
    runtime.prepare()
    check_experiment(experiment)
    workdir = checked_path("workdir", workdir)
    if jax.process_count() > 1:
        raise UserError("a replay runs in one process: start it without --coordinator, with a mesh of this machine's")
    experiment = refitted(experiment, workdir)
    with exhaustion_explained(), contextlib.ExitStack() as stack:
        feed, programs = prepare(experiment, mesh, strategy)
        stack.callback(feed.close)
        status = stack.enter_context(contextlib.closing(StatusLine(progress)))
        checkpoints = Checkpoints(workdir, complete=partial(with_rows, workdir, say))
        return search(experiment, feed, programs, checkpoints, status)


def explained(
    error: DivergenceError, experiment: Experiment, feed: AbstractFeed, programs: Programs, work: Workdir, say: Say
) -> DivergenceError:
    """Return the error of a run that diverged with what a replay finds, or, where that takes long, how to begin one.

    Args:
        error: What is known.
        experiment: What was trained.
        feed: How batches reached the programs.
        programs: Programs of the run.
        work: Where its checkpoints are.
        say: Function that gets what is being done.
    """
    how = "an.replay(experiment, workdir) finds the operation that made it"
    if work.path is not None:
        script = read_stored(work.path).script
        how += f", as does `accelnet replay {work.path}`" if script else ""
    if jax.process_count() > 1 or programs.train.compile_seconds > _MOST_COMPILE_SECONDS:
        return DivergenceError(f"{error}. {how}")
    again = feed.with_eval_batch_size(feed.eval_batch_size)  # the one that trained reads ahead
    checkpoints = None if work.path is None else Checkpoints(work.path, complete=partial(with_rows, work.path, say))
    say("looking for the operation that made it")
    try:
        found = search(experiment, again, programs, checkpoints, lambda _: None, seconds=_MOST_SECONDS)
    except TimeoutError:
        return DivergenceError(f"{error}. {how}")
    except Exception as failure:  # noqa: BLE001, what happened is the divergence
        return DivergenceError(f"{error}. A replay failed: {first_line(failure)}")
    finally:
        again.close()
    return DivergenceError(f"{error}. {'' if found.kind is None else 'It began here: '}{found.sentence}")


def search(
    experiment: Experiment,
    feed: AbstractFeed,
    programs: Programs,
    checkpoints: Checkpoints | None,
    say: Say,
    seconds: float = math.inf,
) -> Replay:
    """Repeat a run with programs that are there; see `replay`.

    Args:
        experiment: What was trained.
        feed: How batches reach the programs; it reads anew.
        programs: Programs of the run.
        checkpoints: Checkpoints to begin from. None: the first step.
        say: Function that gets what is being done.
        seconds: Time that the repetition may take.

    Raises:
        TimeoutError: if it takes longer.
    """
    deadline = time.monotonic() + seconds

    def begin() -> TrainState:
        found = None if checkpoints is None else checkpoints.restore(programs.abstract_state)
        if checkpoints is not None and found is not None:
            changed = changed_fields(Path(checkpoints.workdir), experiment, resume=True, allow_change=True)
            return going_on(found[0], changed, programs, experiment)
        start = programs.starting_from(initial_arrays(experiment, programs.abstract_state))
        return start(np.uint32(experiment.seed))

    state = begin()
    start = int(state.step)
    state, failed = _repeat(feed, programs, state, experiment.total_steps, say, deadline)
    step = int(state.step)
    told = Replay(experiment.name, start, step, examples=experiment.order.batch_size)
    if not failed:
        return told
    # Weights that are spoiled already were so by an update before.
    while True:
        step -= 1
        state, _ = _repeat(feed, programs, begin(), step, say, deadline)
        if step <= start or _is_finite(state.params):
            break
    say(f"looking at the operations of update {step + 1}")
    found = _examine(experiment, feed, state, replace(told, step=step + 1), checkpoints and Path(checkpoints.workdir))
    if checkpoints is not None:
        write_atomically(Path(checkpoints.workdir) / FOUND, json.dumps(found.values, indent=1) + "\n")
    return found


def _repeat(
    feed: AbstractFeed, programs: Programs, state: TrainState, until: int, say: Say, deadline: float
) -> tuple[TrainState, bool]:
    """Train to a step; say whether something was not finite on the way, and end there."""
    seed, length, failed = int(state.seed), 1, False
    while (step := int(state.step)) < until and not failed:
        if time.monotonic() > deadline:
            raise TimeoutError
        say(f"repeating step {step + 1:,}")
        length = min(length, until - step, feed.max_steps or until)
        operand, before = feed.train_operand(step, length, seed), time.monotonic()
        state, report = programs.train(state, operand, np.int32(length), np.bool_(False))
        failed = bool(report["failure"].happened)
        length *= 2 if time.monotonic() - before < 1 else 1
    return state, failed


def _is_finite(tree: Tree) -> bool:
    leaves = [leaf for leaf in jax.tree.leaves(tree) if jax.numpy.issubdtype(leaf.dtype, jax.numpy.inexact)]
    return all(bool(jax.numpy.isfinite(leaf).all()) for leaf in leaves)


def _examine(
    experiment: Experiment, feed: AbstractFeed, state: TrainState, told: Replay, workdir: Path | None
) -> Replay:
    """Compute a step operation by operation, on one device."""
    settings = {"eval_batch_size": experiment.resolved_eval_batch_size, "on_device": experiment.on_device}
    one = make_feed(experiment.data, experiment.order, **settings) if feed.mesh is not None else feed
    step, seed, order = int(state.step), int(state.seed), one.order
    fetch = jax.jit(partial(one.train_batch, part=0))
    operand, where = one.train_operand(step, 1, seed), (np.int32(0), np.int32(step))
    numbers = [np.int32(number) for number in range(order.num_microbatches)]
    batches = [jax.device_get(fetch(operand, *where, number, np.uint32(seed))) for number in numbers]
    rows, splits = None, typing.cast(Any, experiment.data.splits)
    if experiment.data.stream is None:
        rows = splits.origin[order.block(range(step, step + 1), seed=seed)[0][0]]
    if workdir is not None:
        told = replace(told, batch=workdir / BATCH)
        _keep(workdir / BATCH, batches, rows)

    def see(_: jax.Array, grads: Tree, params: Tree) -> tuple[Tree, Tree]:
        return params, grads

    train_step = make_train_step(experiment, ONE_DEVICE, order.num_microbatches, see)

    def computed(state: TrainState, batches: Tree) -> Any:
        def microbatch(_: Tree, number: Any, __: Any) -> Tree:
            return jax.tree.map(lambda array: array[number], batches)

        after, loss, grads = train_step(state, microbatch)
        return loss, grads, after.params, optax.tree.norm(after.params)

    stacked = jax.tree.map(lambda *parts: np.stack(parts), *batches)
    operands = jax.device_get(state), stacked
    flat, structure = jax.tree.flatten(operands)
    closed, shapes = jax.make_jaxpr(lambda *flat: computed(*structure.unflatten(flat)), return_shape=True)(*flat)
    groups, first = [], 0
    for part in shapes:
        size = len(jax.tree.leaves(part))
        groups.append(list(range(first, first + size)))
        first += size
    if state.loss_scale is not None:
        groups[1] = []  # an overflow of scaled gradients is no failure
    found = find_origin(closed, flat, groups)
    if found is None:
        return told
    weights = {leaf.shape for leaf in jax.tree.leaves(state.params)}
    names = [f"{'batch' if name[0] == '1' else 'state'} {name[2:]}" for name, _ in path_names(operands)]
    return described(replace(told, kind=_KINDS[found[0]]), found[1], names, rows, weights)


def _keep(path: Path, batches: list[Tree], rows: np.ndarray | None) -> None:
    """Write a batch as arrays of a whole batch: microbatches one after the other, padding included."""
    whole = jax.tree.map(lambda *parts: np.concatenate([_plain(part) for part in parts]), *batches)
    arrays = dict(path_names(whole)) | ({} if rows is None else {"rows": rows.reshape(-1)})
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:  # as np.savez, which takes some names for arguments of its own
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, array, allow_pickle=False)
    write_atomically(path, file.getvalue())


def _plain(array: Any) -> np.ndarray:
    """Return an array of a type of NumPy's own, which alone can be read without pickle."""
    return np.asarray(array, np.float32) if array.dtype.kind == "V" else np.asarray(array)
