"""The two compiled programs of a run: a chunk of training steps, and a chunk of evaluation batches."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, cast

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import ShapedArray
from jax.sharding import Mesh, PartitionSpec

from accelnet import runtime
from accelnet.data.feed import AbstractFeed, make_feed
from accelnet.experiment import Experiment
from accelnet.models.pure import merged
from accelnet.optim import eval_params, learning_rates
from accelnet.parallel.layout import ONE_DEVICE, SAME, AbsentDevices, Layout, Strategy, make_layout
from accelnet.parallel.noise import shard_key
from accelnet.training.state import EVALUATION, TrainState, abstract_state, init_state, random_key
from accelnet.training.step import (
    make_loss,
    make_train_step,
    merge_parts,
    num_examples,
    prepared,
    training_batch,
    with_precision,
)

Tree = Any

# Batches that the statistics of averaged weights are computed from: 4,096 examples at the usual 64.
_STATISTICS_BATCHES = 64


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
        runtime.prepare()
        start = time.perf_counter()
        compiled = self.lowered.compile()
        runtime.return_freed_memory()
        self.compile_seconds += time.perf_counter() - start
        self.compiles += 1
        return compiled

    @cached_property
    def _expected(self) -> tuple[Any, list[tuple[tuple[int, ...], Any]]]:
        leaves, structure = jax.tree.flatten(self.operands)
        return structure, [(leaf.shape, leaf.dtype) for leaf in leaves]

    def __call__(self, *operands: Any) -> Any:
        if jax.config.jax_disable_jit:  # pyright: ignore[reportAttributeAccessIssue]
            return self.function(*operands)
        compiled = self.compiled
        leaves, structure = jax.tree.flatten(operands)
        if (structure, [(leaf.shape, leaf.dtype) for leaf in leaves]) != self._expected:
            raise RecompilationError(
                f"program {self.name!r} would have to be compiled again:\n  "
                + "\n  ".join(_differences(self.operands, operands))
            )
        try:
            return self._run(compiled, operands)
        except FloatingPointError as error:  # of jax_debug_nans
            raise FloatingPointError(
                f"program {self.name!r} made a NaN. With JAX_DISABLE_JIT=1 beside JAX_DEBUG_NANS=1 it runs operation "
                "by operation, slowly, and the traceback names the one that made it"
            ) from error
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
        grad_norm: float32 scalar, global norm of the gradients there; 0 if the loss was finite.
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
    since the last reset), "loss" of the last step, "rates" (learning rates of the last update by name, as of
    `accelnet.optim.learning_rates`) and "failure". A step whose loss is not finite ends the chunk.
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

        nothing = jnp.float32(0)  # NaN would be taken for a fault by jax_debug_nans
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
        report = {
            "metrics": objective.compute(state.metrics),
            "loss": loss,
            "rates": {name: jnp.asarray(rate, jnp.float32) for name, rate in learning_rates(state.opt_state).items()},
            "failure": failure,
        }
        return state, report

    return train_chunk


def _observe_failure(loss: jax.Array, grads: Tree, params: Tree) -> tuple[Tree, Failure]:
    failed, nothing = ~jnp.isfinite(loss), jnp.float32(0)
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


class Weights(flax.struct.PyTreeNode):
    """What a state is evaluated with.

    Attributes:
        params: the trained ones, or their average where the optimizer keeps such.
        frozen: the params that are not trained.
        model_state: with the batch statistics that belong to these params.
        step: int32 scalar.
    """

    params: Any
    frozen: Any
    model_state: Any
    step: Any


def keeps_average(state: TrainState) -> bool:
    """Say whether the weights to evaluate with are others than those that are trained; shapes are enough."""
    same = []

    def look(state: TrainState) -> Any:
        params = eval_params(state.opt_state, state.params)
        same.append(params is state.params)
        return params

    jax.eval_shape(look, state)
    return not same[0]


def make_weights(experiment: Experiment, feed: AbstractFeed, layout: Layout = ONE_DEVICE) -> Callable[..., Weights]:
    """Return the function that gives the weights to evaluate a state with.

    `weights(state, operand) -> Weights`. `operand` is that of the training steps 0 to `num_statistics_batches(...)`.
    Averaged weights have other activations than those that they are the average of, and with running averages of the
    latter a network can lose most of its accuracy. So BatchNorm's statistics are computed anew: the mean over batches,
    as training sees them.

    Source: Izmailov et al., "Averaging Weights Leads to Wider Optima and Better Generalization", 2018, section 3.2.
    """
    apply = with_precision(experiment.pure_model.apply, experiment.precision)
    count = num_statistics_batches(experiment, feed)

    def of_part(cuts: Tree, params: Tree, others: Any, operand: Tree) -> Tree:
        frozen, model_state, seed = others
        part, params = layout.part(), merged(layout.whole(params, cuts), frozen)

        def add(index: Any, mean: Tree) -> Tree:
            batch = feed.train_batch(operand, index, index, jnp.int32(0), seed, part)
            batch, key = training_batch(experiment, batch, layout, part, seed, index, jnp.int32(0))
            settings = {"key": key, "train": True, "axes": layout.batch_axes, "batch_statistics": True}
            offered = {"step": index, "progress": experiment.progress(index)}
            _, new, *_ = apply(params, model_state, batch["inputs"], **settings, **offered)
            return jax.tree.map(lambda a, b: a if b is None else a + (b - a) / (index + 1), mean, new)

        return layout.agreed(jax.lax.fori_loop(0, count, add, model_state))

    def weights(state: TrainState, operand: Tree) -> Weights:
        params, model_state = eval_params(state.opt_state, state.params), state.model_state
        if params is not state.params and jax.tree.leaves(model_state):
            cuts = layout.cuts(params)
            of_parts = layout.over_parts(partial(of_part, cuts), (cuts, SAME, feed.train_spec), SAME)
            model_state = of_parts(params, (state.frozen, model_state, state.seed), operand)
        return Weights(params, state.frozen, model_state, state.step)

    return weights


def num_statistics_batches(experiment: Experiment, feed: AbstractFeed) -> int:
    """Return from how many training batches the statistics of averaged weights are computed."""
    whole = max(1, experiment.order.num_examples // experiment.order.batch_size)
    return min(whole, _STATISTICS_BATCHES, feed.max_steps or _STATISTICS_BATCHES)


def make_eval_chunk(experiment: Experiment, feed: AbstractFeed, layout: Layout = ONE_DEVICE) -> Callable[..., Any]:
    """Return the function that evaluates a number of batches.

    `eval_chunk(weights, metrics, operand, first, num_batches, start, stop) -> (metrics, values)`: the metric states
    with the batches `first` to `first + num_batches` of the rows `start` to `stop` merged in, and what they compute to.
    """
    loss = make_loss(experiment, layout.batch_axes)
    objective = experiment.objective

    def of_part(cuts: Tree, params: Tree, others: Tree, operand: Tree, numbers: Any) -> Tree:
        part, params = layout.part(), layout.whole(params, cuts)
        frozen, model_state, step = others
        first, num_batches, start, stop = numbers

        def body(index: jax.Array, metrics: Tree) -> Tree:
            batch = prepared(experiment, feed.eval_batch(operand, index, first, start, stop, part))
            # Noise in evaluation, such as a VAE's, is that of the batch's number: the same in every evaluation.
            key = random_key(jnp.uint32(0), EVALUATION, first + index)
            key = shard_key(key, part, layout.num_parts, num_examples(batch))
            settings = {"key": key, "train": False, "frozen": frozen, "step": step}
            _, (_, states, _) = loss(params, model_state, batch, **settings)
            return objective.merge(metrics, states)

        return merge_parts(experiment, layout, jax.lax.fori_loop(0, num_batches, body, objective.empty()))

    def eval_chunk(
        weights: Weights, metrics: Tree, operand: Tree,
        first: jax.Array, num_batches: jax.Array, start: jax.Array, stop: jax.Array,
    ) -> Any:  # fmt: skip
        cuts = layout.cuts(weights.params)
        of_parts = layout.over_parts(partial(of_part, cuts), (cuts, SAME, feed.eval_spec, SAME), SAME)
        others = (weights.frozen, weights.model_state, weights.step)
        states = of_parts(weights.params, others, operand, (first, num_batches, start, stop))
        metrics = objective.merge(metrics, states)
        return metrics, objective.compute(metrics)

    return eval_chunk


@dataclass(frozen=True)
class Programs:
    """What a run compiles, and the shapes it is compiled for.

    Attributes:
        init: seed -> `TrainState`.
        starting_from: from arrays by path to the function seed -> `TrainState` that starts from them.
        train: see `make_train_chunk`.
        evaluate: see `make_eval_chunk`.
        abstract_state: shapes of the `TrainState`.
        weights: see `make_weights`; None where a state is evaluated with the weights that are trained.
        evaluate_rest: from a number of examples to the program that evaluates a batch of so many, and its feed; for a
            loss of which padding cannot be taken out.
    """

    init: Program
    starting_from: Callable[[Mapping[str, Any]], Callable[[Any], TrainState]]
    train: Program
    evaluate: Program
    abstract_state: TrainState
    weights: Program | None
    evaluate_rest: Callable[[int], tuple[Program, AbstractFeed]]

    @property
    def compiles(self) -> dict[str, int]:
        """How often each program of the run was compiled."""
        counts = {"train": self.train.compiles, "eval": self.evaluate.compiles}
        return counts if self.weights is None else counts | {"weights": self.weights.compiles}


def make_programs(
    experiment: Experiment,
    feed: AbstractFeed,
    layout: Layout = ONE_DEVICE,
    shapes: TrainState | None = None,
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
    """

    def init(seed: jax.Array, initial: Any = None) -> TrainState:
        return init_state(experiment, seed, initial)

    seed, number, flag = (layout.abstract((), dtype) for dtype in (jnp.uint32, jnp.int32, jnp.bool_))
    shapes = cast(TrainState, jax.eval_shape(init, seed)) if shapes is None else shapes
    layout.check(shapes)
    state = layout.placed(shapes)
    train_operand, _ = feed.abstract()
    shardings = None if layout.mesh is None else jax.tree.map(lambda leaf: leaf.sharding, state)

    def of_weights(tree: Any) -> Weights:
        return Weights(tree.params, tree.frozen, tree.model_state, tree.step)

    def program(
        name: str, function: Any, operands: Any, out: Any, spec: PartitionSpec, *, at: int, **more: Any
    ) -> Program:
        """Make a program; `spec` says how the mesh cuts the argument `at`."""
        if layout.strategy == "pmap":
            cuts = {} if spec == SAME else {at: spec}
            return PmapProgram(name, function, operands, layout=layout, cuts=cuts, **more)
        return Program(name, function, operands, out_shardings=None if layout.mesh is None else out, **more)

    same = layout.sharding()

    def evaluation(feed: AbstractFeed) -> Program:
        operand = feed.abstract()[1]
        operands = (of_weights(state), state.metrics, operand, *[number] * 4)
        function = make_eval_chunk(experiment, feed, layout)
        return program("eval", function, operands, (same, same), feed.eval_spec, at=2)

    rests: dict[int, tuple[Program, AbstractFeed]] = {}

    def rest(num_rows: int) -> tuple[Program, AbstractFeed]:
        if num_rows not in rests:
            smaller = feed.with_eval_batch_size(num_rows)
            rests[num_rows] = evaluation(smaller), smaller
        return rests[num_rows]

    # Created where they belong: no array passes whole through one device.
    fresh = Program("init", init, (seed,), out_shardings=shardings)

    def starting_from(initial: Mapping[str, Any]) -> Callable[[Any], TrainState]:
        if not initial:
            return fresh
        given = {path: layout.abstract(array.shape, array.dtype) for path, array in initial.items()}
        start = Program("init", init, (seed, given), out_shardings=shardings)
        return lambda seed: start(seed, dict(initial))

    train = make_train_chunk(experiment, feed, layout)
    chosen = None
    if keeps_average(shapes):
        out = None if shardings is None else of_weights(shardings)
        function = make_weights(experiment, feed, layout)
        chosen = program("weights", function, (state, train_operand), out, feed.train_spec, at=1)
    return Programs(
        init=fresh,
        starting_from=starting_from,
        train=program(
            "train", train, (state, train_operand, number, flag), (shardings, same), feed.train_spec, at=1, donate=(0,)
        ),
        evaluate=evaluation(feed),
        abstract_state=state,
        weights=chosen,
        evaluate_rest=rest,
    )


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
    """
    shapes = abstract_state(experiment) if shapes is None else shapes
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
    return feed, make_programs(experiment, feed, layout, shapes)
