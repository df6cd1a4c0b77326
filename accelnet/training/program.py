"""The programs of a run: its start, chunks of training steps, chunks of evaluation batches, averaged weights."""

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from accelnet.data.abstract_feed import AbstractFeed
from accelnet.data.feed import make_feed
from accelnet.experiment import Experiment
from accelnet.optim import hyperparams, with_hyperparams
from accelnet.parallel.layout import SAME, AbsentDevices, Layout, Strategy, make_layout
from accelnet.parallel.memory import check_memory
from accelnet.training.chunk import make_train_chunk
from accelnet.training.compiled import PmapProgram, Program, devices_of
from accelnet.training.evaluation import Weights, keeps_average, make_eval_chunk, make_weights
from accelnet.training.reuse import Reused
from accelnet.training.state import TrainState, make_init, placed
from accelnet.wording import size


@dataclass(frozen=True)
class Programs:
    """What a run compiles, and the shapes it is compiled for.

    Attributes:
        init: Program from a seed to a `TrainState`.
        starting_from: Function from arrays by path to a function seed -> `TrainState` that starts from them.
        train: Program of `make_train_chunk`.
        evaluate: Program of `make_eval_chunk`.
        abstract_state: Shapes of the `TrainState`.
        layout: Devices on which batches and weights lie.
        weights: Program of `make_weights`; None where a state is evaluated with the weights that are trained.
        evaluate_rest: Function from a number of examples to the program that evaluates a batch of so many, and its
            feed; for a loss of which padding cannot be taken out.
        trained_weights: Function from a state to the weights that are trained, as `evaluate` takes them.
    """

    init: Program
    starting_from: Callable[[Mapping[str, Any]], Callable[[Any], TrainState]]
    train: Program
    evaluate: Program
    abstract_state: TrainState
    layout: Layout
    weights: Program | None
    evaluate_rest: Callable[[int], tuple[Program, AbstractFeed]]
    trained_weights: Callable[[Any], Any] = Weights.of

    @property
    def compiles(self) -> dict[str, int]:
        """How often each program of the run was compiled."""
        counts = {"train": self.train.compiles, "eval": self.evaluate.compiles}
        return counts if self.weights is None else counts | {"weights": self.weights.compiles}

    @property
    def compile_seconds(self) -> float:
        """Time of all compilations."""
        programs = (self.init, self.train, self.evaluate, self.weights)
        return sum(program.compile_seconds for program in programs if program is not None)

    def begin_compiling(self, experiment: Experiment, start: Callable[[Any], Any] | None, step: int = 0) -> None:
        """Let threads compile what a run will call, side by side.

        Programs of several processes are compiled one after the other: compilers for GPUs agree on what they tune.

        Args:
            experiment: What is trained.
            start: What the run begins with, of `starting_from`; None if it goes on.
            step: Steps done.
        """
        if jax.process_count() > 1:
            return
        trains, evaluates = step < experiment.total_steps, bool(experiment.final_splits)
        wanted = (start, self.train if trains else None, *((self.weights, self.evaluate) if evaluates else ()))
        for program in wanted:
            if isinstance(program, Program):
                program.begin_compiling()


def make_programs(reused: Reused, feed: AbstractFeed, layout: Layout, shapes: TrainState) -> Programs:
    """Build the programs of an experiment from shapes alone: nothing is allocated, read or compiled yet.

    Args:
        reused: Functions of the experiment.
        feed: How batches reach the programs.
        layout: Devices on which batches and weights lie.
        shapes: Shapes of the `TrainState`.

    Raises:
        UserError: if the sharding rules do not fit the model or the mesh.
    """
    init, deterministic = reused(make_init), reused.experiment.deterministic
    seed, number, flag = (layout.abstract((), dtype) for dtype in (jnp.uint32, jnp.int32, jnp.bool_))
    state = placed(layout, shapes)
    train_operand, _ = feed.abstract()
    shardings = None if layout.mesh is None else jax.tree.map(lambda leaf: leaf.sharding, state)

    def program(
        name: str, function: Any, operands: Any, out: Any, spec: PartitionSpec, *, at: int, **more: Any
    ) -> Program:
        """Make a program; `spec` says how the mesh cuts the argument `at`."""
        if layout.strategy == "pmap":
            cuts = {} if spec == SAME else {at: spec}
            return PmapProgram(name, function, operands, layout=layout, cuts=cuts, deterministic=deterministic, **more)
        out = None if layout.mesh is None else out
        return Program(name, function, operands, out_shardings=out, deterministic=deterministic, **more)

    same = layout.sharding()

    def evaluation(feed: AbstractFeed) -> Program:
        operand = feed.abstract()[1]
        operands = (Weights.of(state), state.metrics, operand, *[number] * 4)
        function = reused(make_eval_chunk, feed, layout)
        return program("eval", function, operands, (same, same), feed.eval_spec, at=2)

    @cache
    def rest(num_rows: int) -> tuple[Program, AbstractFeed]:
        smaller = feed.with_eval_batch_size(num_rows)
        return evaluation(smaller), smaller

    # Created where they belong: no array passes whole through one device.
    fresh = Program("init", init, (seed,), out_shardings=shardings, runs_once=True, deterministic=deterministic)

    def starting_from(initial: Mapping[str, Any]) -> Callable[[Any], TrainState]:
        if not initial:
            return fresh
        given = {path: layout.abstract(array.shape, array.dtype) for path, array in initial.items()}
        start = replace(fresh, operands=(seed, given))
        return lambda seed: start(seed, dict(initial))

    train = reused(make_train_chunk, feed, layout)
    chosen = None
    if keeps_average(shapes):
        out = None if shardings is None else Weights.of(shardings)
        function = reused(make_weights, feed, layout)
        chosen = program("weights", function, (state, train_operand), out, feed.train_spec, at=1)
    return Programs(
        init=fresh,
        starting_from=starting_from,
        train=program(
            "train", train, (state, train_operand, number, flag), (shardings, same), feed.train_spec, at=1, donate=(0,)
        ),
        evaluate=evaluation(feed),
        abstract_state=state,
        layout=layout,
        weights=chosen,
        evaluate_rest=rest,
    )


def going_on(state: TrainState, changed: Collection[str], programs: Programs, experiment: Experiment) -> TrainState:
    """Let a changed seed and learning rate (or decay, or momentum) count: the old ones are in a restored state.

    Args:
        state: State that was restored.
        changed: Names of the settings that are not what they were.
        programs: Programs of the run.
        experiment: Experiment with the settings of now.
    """
    if not set(changed) - {"steps", "epochs"}:
        return state
    fresh = programs.init(np.uint32(experiment.seed))
    opt_state = with_hyperparams(state.opt_state, **hyperparams(fresh.opt_state))
    return state.replace(opt_state=opt_state, seed=fresh.seed)


def check_fits(programs: Programs, feed: AbstractFeed) -> None:
    """Refuse, before anything is allocated, a run whose state and data alone need more memory than there is.

    Args:
        programs: Programs of the run.
        feed: How batches reach them.

    Raises:
        UserError: if they do not fit.
    """

    def bytes_of(shapes: Any) -> int:
        sizes = [
            (leaf.shape if leaf.sharding is None else leaf.sharding.shard_shape(leaf.shape), leaf.dtype.itemsize)
            for leaf in jax.tree.leaves(shapes)
        ]
        return sum(math.prod(shape) * itemsize for shape, itemsize in sizes)

    state, data = bytes_of(programs.abstract_state), bytes_of(feed.abstract()[0])
    what = f"the run, with {size(state)} of weights and optimizer state and {size(data)} of data on a device,"
    check_memory(what, state + data, state + data, devices_of(programs.abstract_state))


def prepare(
    experiment: Experiment,
    mesh: str | Mesh | None = None,
    strategy: Strategy = "jit",
    *,
    absent: AbsentDevices | None = None,
    shapes: TrainState | None = None,
) -> tuple[AbstractFeed, Programs]:
    """Lay out an experiment and build its programs; nothing is allocated, read or compiled yet.

    Args:
        experiment: What is trained.
        mesh: As of `fit`.
        strategy: As of `fit`.
        absent: Devices that need not be here, to compile for. None: those of this run.
        shapes: Shapes of the `TrainState`, where they are known already.

    Returns:
        How batches reach the programs, and the programs.

    Raises:
        UserError: if mesh, batch and devices do not fit.
    """
    reused = Reused(experiment)
    if shapes is None:
        shapes = cast(TrainState, jax.eval_shape(reused(make_init), jax.ShapeDtypeStruct((), np.uint32)))
    state_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))
    layout = make_layout(mesh, strategy, state_bytes=state_bytes, absent=absent)
    if layout.mesh is not None:
        layout = replace(layout, rules=experiment.placement_rules)
    parts = layout.num_parts
    whole = experiment.batch_size == "full" and experiment.microbatch_size is None
    feed = make_feed(
        experiment.data,
        experiment.order.divided(parts, pad=whole),
        eval_batch_size=-(-experiment.resolved_eval_batch_size // parts) * parts,
        on_device=experiment.on_device,
        device_memory_bytes=None if absent is None else absent.memory_bytes,
        mesh=layout.mesh,
        axes=layout.batch_axes,
    )
    return feed, make_programs(reused, feed, layout, shapes)
