"""The two compiled programs of a run: a chunk of training steps, and a chunk of evaluation batches."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import ShapedArray
from jax.sharding import Mesh, PartitionSpec

from accelnet.allocator import return_freed_memory
from accelnet.data.feed import AbstractFeed, make_feed
from accelnet.experiment import Experiment
from accelnet.optim import eval_params, learning_rate
from accelnet.parallel.layout import ONE_DEVICE, SAME, AbsentDevices, Layout, Strategy, make_layout
from accelnet.training.state import TrainState, abstract_state, init_state
from accelnet.training.step import make_loss, make_train_step, merge_parts

Tree = Any


class RecompilationError(RuntimeError):
    """Report that a program got operands it was not compiled for."""


@dataclass
class Program:
    """A function compiled once, ahead of time, for fixed shapes. A call with any others is an error.

    Args:
        name: for messages.
        function: what to compile.
        operands: its abstract arguments (`jax.ShapeDtypeStruct`s).
        donate: positions of arguments whose buffers the program may reuse.
        out_shardings: where the results go, as of `jax.jit`; None leaves it to the compiler.

    Example:
        >>> double = Program("double", lambda x: 2 * x, (jax.ShapeDtypeStruct((2,), jnp.float32),))
        >>> double(jnp.ones(2)).tolist()
        [2.0, 2.0]
        >>> double(jnp.ones(3))
        Traceback (most recent call last):
        accelnet.training.program.RecompilationError: program 'double' would have to be compiled again:
          argument 0: float32[3], compiled for float32[2]

    Source: original.
    """

    name: str
    function: Callable[..., Any]
    operands: tuple[Any, ...]
    donate: tuple[int, ...] = ()
    out_shardings: Any = None
    compiles: int = field(default=0, init=False)
    compile_seconds: float = field(default=0.0, init=False)

    @cached_property
    def traced(self) -> Any:
        """The program as its operations (`jax.stages.Traced`); what cannot be traced shows here."""
        jitted = jax.jit(self.function, donate_argnums=self.donate, out_shardings=self.out_shardings)
        return jitted.trace(*self.operands)

    @cached_property
    def lowered(self) -> Any:
        """The program before compilation (`jax.stages.Lowered`)."""
        return self.traced.lower()

    @cached_property
    def compiled(self) -> Any:
        """The compiled program (`jax.stages.Compiled`)."""
        start = time.perf_counter()
        compiled = self.lowered.compile()
        return_freed_memory()
        self.compile_seconds += time.perf_counter() - start
        self.compiles += 1
        return compiled

    @cached_property
    def _expected(self) -> tuple[Any, list[tuple[tuple[int, ...], Any]]]:
        leaves, structure = jax.tree.flatten(self.operands)
        return structure, [(leaf.shape, leaf.dtype) for leaf in leaves]

    def __call__(self, *operands: Any) -> Any:
        compiled = self.compiled
        leaves, structure = jax.tree.flatten(operands)
        if (structure, [(leaf.shape, leaf.dtype) for leaf in leaves]) != self._expected:
            raise RecompilationError(
                f"program {self.name!r} would have to be compiled again:\n  "
                + "\n  ".join(_differences(self.operands, operands))
            )
        try:
            return self._run(compiled, operands)
        except ValueError as error:  # a sharding or layout that is not the compiled one
            raise RecompilationError(f"program {self.name!r} would have to be compiled again:\n  {error}") from error

    def _run(self, compiled: Any, operands: tuple[Any, ...]) -> Any:
        return compiled(*operands)


@dataclass
class PmapProgram(Program):
    """A `Program` that `jax.pmap` replicates over the mesh's axis "data"; arguments and results are ordinary arrays.

    Args:
        layout: with the mesh.
        cuts: by position, how the mesh cuts an argument; all others are the same on every device.

    Source: original.
    """

    layout: Layout = ONE_DEVICE
    cuts: dict[int, PartitionSpec] = field(default_factory=dict)

    @cached_property
    def _parts(self) -> jax.Array:
        """What pmap maps over: it wants one argument with a leading axis of devices."""
        numbers = np.arange(self.layout.num_devices, dtype=np.int32)
        sharding = self.layout.sharding(PartitionSpec("data"))
        assert sharding is not None
        return jax.make_array_from_callback(numbers.shape, sharding, lambda index: numbers[index])

    @cached_property
    def _to_front(self) -> dict[int, Callable[[Tree], Tree]]:
        """Put the devices' parts of an argument behind a leading axis of devices."""
        mesh, front = self.layout.mesh, PartitionSpec("data")
        return {
            position: jax.jit(
                jax.shard_map(
                    lambda tree: jax.tree.map(lambda a: a[None], tree), mesh=mesh, in_specs=cut, out_specs=front
                )
            )
            for position, cut in self.cuts.items()
        }

    @cached_property
    def lowered(self) -> Any:
        """The program before compilation (`jax.stages.Lowered`)."""
        assert isinstance(self.layout.mesh, Mesh)
        mapped = [0 if position in self.cuts else None for position in range(len(self.operands))]
        replicated = jax.pmap(
            lambda _, *operands: self.function(*operands),
            axis_name="data",
            in_axes=(0, *mapped),
            out_axes=None,
            donate_argnums=tuple(position + 1 for position in self.donate),
            devices=list(self.layout.mesh.devices.flat),
        )
        operands = [
            jax.eval_shape(self._to_front[position], operand) if position in self.cuts else operand
            for position, operand in enumerate(self.operands)
        ]
        # With several processes pmap takes shapes for those of one process, abstract values for those of all.
        parts, *operands = jax.tree.map(lambda leaf: ShapedArray(leaf.shape, leaf.dtype), (self._parts, *operands))
        return replicated.lower(parts, *operands)

    def _run(self, compiled: Any, operands: tuple[Any, ...]) -> Any:
        fronted = [
            self._to_front[position](operand) if position in self.cuts else operand
            for position, operand in enumerate(operands)
        ]
        return compiled(self._parts, *fronted)


def _differences(expected: tuple[Any, ...], given: tuple[Any, ...]) -> list[str]:
    def described(tree: Any) -> dict[str, str]:
        return {
            f"argument {path[0].idx}{jax.tree_util.keystr(path[1:])}": f"{leaf.dtype}{list(leaf.shape)}"
            for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
        }

    old, new = described(expected), described(given)
    return [
        f"{path}: {new.get(path, 'nothing')}, compiled for {old.get(path, 'nothing')}"
        for path in dict.fromkeys([*old, *new])
        if old.get(path) != new.get(path)
    ]


class Failure(flax.struct.PyTreeNode):
    """A step whose loss was not finite, or, at the end of a chunk, weights that are not.

    Attributes:
        happened: bool scalar.
        loss: float32 scalar, the loss at that step.
        grad_norm: float32 scalar, global norm of the gradients there; NaN if the loss was finite.
        param_norm: float32 scalar, global norm of the weights that the loss was computed with, or of those at the end.
    """

    happened: jax.Array
    loss: jax.Array
    grad_norm: jax.Array
    param_norm: jax.Array


def make_train_chunk(experiment: Experiment, feed: AbstractFeed, layout: Layout = ONE_DEVICE) -> Callable[..., Any]:
    """Return the function that runs a number of steps.

    `train_chunk(state, operand, num_steps, reset) -> (state, report)`. `num_steps` is an int32 operand, so one
    program serves chunks of every length, and where a run is cut into chunks cannot change a bit of it.
    `reset` (bool) empties the metrics first. `report` holds "metrics" (float32 scalars by name, over the steps
    since the last reset), "loss" of the last step, "learning_rate" and "failure". A step whose loss is not
    finite ends the chunk.
    """
    step = make_train_step(experiment, layout, feed.order.num_microbatches, _observe_failure)
    objective = experiment.objective

    def microbatch(operand: Tree, number: Any, part: Any) -> Tree:
        data, index, step, seed = operand
        return feed.train_batch(data, index, step, number, seed, part)

    def train_chunk(state: TrainState, operand: Tree, num_steps: jax.Array, reset: jax.Array) -> Any:
        metrics = jax.tree.map(lambda new, old: jnp.where(reset, new, old), objective.empty(), state.metrics)

        def goes_on(carry: Any) -> jax.Array:
            index, _, _, failure = carry
            return (index < num_steps) & ~failure.happened

        def body(carry: Any) -> Any:
            index, state, _, _ = carry

            operands = (operand, index, state.step, state.seed)
            after, loss, failure = step(state, microbatch, operands, (feed.train_spec, SAME, SAME, SAME))
            return index + 1, after, loss, failure

        nothing = jnp.float32(jnp.nan)
        start = (
            jnp.int32(0),
            state.replace(metrics=metrics),
            nothing,
            Failure(jnp.bool_(False), *[nothing] * 3),
        )
        _, state, loss, failure = jax.lax.while_loop(goes_on, body, start)
        # The last update can spoil the weights without a loss that shows it; such weights must not be saved as good.
        norm = _norm(state.params)
        spoiled = Failure(~jnp.isfinite(norm), loss, nothing, norm)
        failure = jax.tree.map(lambda a, b: jnp.where(failure.happened, a, b), failure, spoiled)
        rate = learning_rate(state.opt_state)
        report = {
            "metrics": objective.compute(state.metrics),
            "loss": loss,
            "learning_rate": nothing if rate is None else jnp.asarray(rate, jnp.float32),
            "failure": failure,
        }
        return state, report

    return train_chunk


def _observe_failure(loss: jax.Array, grads: Tree, params: Tree) -> tuple[Tree, Failure]:
    failed, nothing = ~jnp.isfinite(loss), jnp.float32(jnp.nan)
    # The norms cost a pass over the gradients, 4 % of an MLP's step: only when there is something to say.
    with jax.named_scope("failure"):  # by which `plan` knows that this does not count
        norms = jax.lax.cond(
            failed, lambda *trees: tuple(map(_norm, trees)), lambda *_: (nothing, nothing), grads, params
        )
    # No norm is below 0. So the update has to wait for the norms; free to do it before, XLA copied all weights in every
    # step, to have them for the norms afterwards: 4 % of an MLP's step.
    params = jax.tree.map(lambda p: jnp.where(norms[1] < 0, jnp.zeros((), p.dtype), p), params)
    return params, Failure(failed, loss, *norms)


def _norm(tree: Tree) -> jax.Array:
    return jnp.asarray(optax.tree.norm(tree), jnp.float32)


def make_eval_chunk(experiment: Experiment, feed: AbstractFeed, layout: Layout = ONE_DEVICE) -> Callable[..., Any]:
    """Return the function that evaluates a number of batches.

    `eval_chunk(params, opt_state, model_state, metrics, operand, first, num_batches, start, stop) -> (metrics,
    values)`: the metric states with the batches `first` to `first + num_batches` of the rows `start` to `stop`
    merged in, and what they compute to. The weights are the averaged ones where the optimizer keeps such.
    """
    loss = make_loss(experiment, layout.batch_axes)
    objective = experiment.objective

    def of_part(cuts: Tree, params: Tree, model_state: Tree, operand: Tree, numbers: Any) -> Tree:
        part, params = layout.part(), layout.whole(params, cuts)
        first, num_batches, start, stop = numbers

        def body(index: jax.Array, metrics: Tree) -> Tree:
            batch = experiment.data.prepare(feed.eval_batch(operand, index, first, start, stop, part))
            _, (_, states, _) = loss(params, model_state, batch, key=jax.random.key(0), train=False)
            return objective.merge(metrics, states)

        return merge_parts(experiment, layout, jax.lax.fori_loop(0, num_batches, body, objective.empty()))

    def eval_chunk(
        params: Tree, opt_state: Tree, model_state: Tree, metrics: Tree, operand: Tree,
        first: jax.Array, num_batches: jax.Array, start: jax.Array, stop: jax.Array,
    ) -> Any:  # fmt: skip
        params, cuts = eval_params(opt_state, params), layout.cuts(params)
        of_parts = layout.over_parts(partial(of_part, cuts), (cuts, SAME, feed.eval_spec, SAME), SAME)
        states = of_parts(params, model_state, operand, (first, num_batches, start, stop))
        metrics = objective.merge(metrics, states)
        return metrics, objective.compute(metrics)

    return eval_chunk


@dataclass(frozen=True)
class Programs:
    """What a run compiles, and the shapes it is compiled for.

    Attributes:
        init: seed -> `TrainState`.
        train: see `make_train_chunk`.
        evaluate: see `make_eval_chunk`.
        abstract_state: shapes of the `TrainState`.
    """

    init: Program
    train: Program
    evaluate: Program
    abstract_state: TrainState


def make_programs(
    experiment: Experiment, feed: AbstractFeed, layout: Layout = ONE_DEVICE, shapes: TrainState | None = None
) -> Programs:
    """Build the programs of an experiment from shapes alone: nothing is allocated, read or compiled yet.

    Args:
        experiment: what is trained.
        feed: how batches reach the program.
        layout: on which devices batches and weights lie.
        shapes: of the `TrainState`, where they are known already.

    Returns:
        The `Programs`; each compiles when it is first called.

    Raises:
        UserError: if the sharding rules do not fit the model or the mesh.

    Source: original.
    """

    def init(seed: jax.Array) -> TrainState:
        return init_state(experiment, seed)

    seed, number, flag = (layout.abstract((), dtype) for dtype in (jnp.uint32, jnp.int32, jnp.bool_))
    shapes = jax.eval_shape(init, seed) if shapes is None else shapes
    layout.check(shapes)
    state = layout.placed(shapes)
    train_operand, eval_operand = feed.abstract()
    train = (state, train_operand, number, flag)
    evaluate = (state.params, state.opt_state, state.model_state, state.metrics, eval_operand, *[number] * 4)
    functions = make_train_chunk(experiment, feed, layout), make_eval_chunk(experiment, feed, layout)
    shardings = None if layout.mesh is None else jax.tree.map(lambda leaf: leaf.sharding, state)
    if layout.strategy == "pmap":
        cuts = [
            {} if spec == SAME else {position: spec} for position, spec in ((1, feed.train_spec), (4, feed.eval_spec))
        ]
        programs = (
            PmapProgram("train", functions[0], train, donate=(0,), layout=layout, cuts=cuts[0]),
            PmapProgram("eval", functions[1], evaluate, layout=layout, cuts=cuts[1]),
        )
    else:
        out = (None, None) if layout.mesh is None else ((shardings, layout.sharding()), layout.sharding())
        programs = (
            Program("train", functions[0], train, donate=(0,), out_shardings=out[0]),
            Program("eval", functions[1], evaluate, out_shardings=out[1]),
        )
    # Created where they belong: no array passes whole through one device.
    return Programs(Program("init", init, (seed,), out_shardings=shardings), *programs, abstract_state=state)


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
        experiment: what is trained.
        mesh: as of `fit`.
        strategy: as of `fit`.
        absent: devices that need not be here, to compile for. None: those of this run.
        shapes: of the `TrainState`, where they are known already.

    Returns:
        How batches reach the programs, and the programs.

    Raises:
        UserError: if mesh, batch and devices do not fit.

    Source: original.
    """
    shapes = abstract_state(experiment) if shapes is None else shapes
    state_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))
    layout = make_layout(mesh, strategy, experiment.sharding_rules, state_bytes=state_bytes, absent=absent)
    parts = layout.num_parts
    whole = experiment.batch_size == "full" and experiment.microbatch_size is None
    feed = make_feed(
        experiment.data,
        experiment.order.divided(parts, pad=whole),
        seed=experiment.seed,
        eval_batch_size=-(-experiment.resolved_eval_batch_size // parts) * parts,
        on_device=experiment.on_device,
        device_memory_bytes=None if absent is None else absent.memory_bytes,
        mesh=layout.mesh,
        axes=layout.batch_axes,
    )
    return feed, make_programs(experiment, feed, layout, shapes)
