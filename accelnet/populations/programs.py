"""The compiled programs of a population: members that train together, as many as memory has room for."""

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, Literal

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from accelnet.data.abstract_feed import AbstractFeed
from accelnet.data.feed import DeviceFeed
from accelnet.errors import UserError
from accelnet.experiment import Experiment
from accelnet.parallel.layout import SAME, Layout
from accelnet.parallel.memory import free_bytes
from accelnet.populations.members import Sweep
from accelnet.training.compiled import Program
from accelnet.training.evaluation import Weights, keeps_average, make_eval_chunk, make_weights
from accelnet.training.initial import initial_arrays
from accelnet.training.program import Programs, prepare
from accelnet.training.progress import Progress
from accelnet.training.state import TrainState, abstract_state, init_state
from accelnet.training.step import make_train_step

Batches = Literal["own", "shared"]
Tree = Any

MEMBERS = PartitionSpec("members")


class Wave(flax.struct.PyTreeNode):
    """Members that train together.

    Attributes:
        step: Updates so far, int32 scalar.
        failed: Step at which a member's loss was not finite, int32 [M]; -1 as long as it is.
        values: Numbers of the members by field, [M].
        states: `TrainState` with a leading axis of members.
    """

    step: Any
    failed: Any
    values: Any
    states: Any

    @property
    def seed(self) -> Any:
        """Seed of the first member."""
        return self.states.seed[0]

    @property
    def metrics(self) -> Any:
        """Metric states with a leading axis of members."""
        return self.states.metrics


WaveWeights = tuple[Tree, Weights]  # the members' values, and weights with a leading axis of members


def _trained_weights(wave: Wave) -> WaveWeights:
    return wave.values, Weights.of(wave.states)


def make_wave_chunk(
    make: Callable[[Tree], Experiment], example: Experiment, feed: AbstractFeed, batches: Batches
) -> Callable[..., Any]:
    """Return the function that trains members for a number of steps: `make_train_chunk` of many.

    `wave_chunk(wave, operand, num_steps, reset) -> (wave, report)`. It stops early when all members have failed. In the
    report, "metrics" (by name) and "loss" are float32 [M]; a member that has failed has the loss NaN.

    Args:
        make: Function from a member's values, scalars, to its experiment.
        example: Experiment for what all members have in common.
        feed: How batches reach the program.
        batches: "own": each member has the order of its seed; "shared": all have that of the example.
    """
    objective = example.objective

    def wave_chunk(wave: Wave, operand: Tree, num_steps: jax.Array, reset: jax.Array) -> Any:
        def train(values: Tree, state: TrainState, step: jax.Array) -> Any:
            def microbatch(arrays: Tree, number: Any, part: Any) -> Tree:
                own = (state.step, number, state.seed) if batches == "own" else (step, number, shared_seed)
                return feed.train_batch(arrays, jnp.int32(0), *own, part)

            state, loss, _ = make_train_step(make(values))(state, microbatch, operand)
            return state, loss

        def body(carry: tuple[Wave, jax.Array]) -> tuple[Wave, jax.Array]:
            states, losses = jax.vmap(train, (0, 0, None))(wave.values, carry[0].states, carry[0].step)
            failed = jnp.where((carry[0].failed < 0) & ~jnp.isfinite(losses), carry[0].step, carry[0].failed)
            return carry[0].replace(step=carry[0].step + 1, failed=failed, states=states), losses

        shared_seed, stop = jnp.uint32(example.seed), wave.step + num_steps
        metrics = jax.tree.map(
            lambda new, old: jnp.where(reset, jnp.broadcast_to(new, old.shape), old),
            jax.tree.map(lambda leaf: leaf[None], objective.empty()),
            wave.metrics,
        )
        wave = wave.replace(states=wave.states.replace(metrics=metrics))
        nothing = jnp.zeros(wave.failed.shape, jnp.float32)
        wave, losses = jax.lax.while_loop(
            lambda carry: (carry[0].step < stop) & jnp.any(carry[0].failed < 0), body, (wave, nothing)
        )
        report = {
            "metrics": jax.vmap(objective.compute)(wave.metrics),
            "loss": jnp.where(wave.failed < 0, losses, jnp.nan),
            "rates": {},
            "failure": None,
        }
        return wave.replace(step=jnp.maximum(wave.step, stop)), report

    return wave_chunk


def make_programs(
    sweep: Sweep, batches: Batches, devices: Sequence[Any] | None, memory_bytes: int | None, display: Progress
) -> tuple[DeviceFeed, Programs]:
    """Compile for as many members at a time as memory has room for.

    Args:
        sweep: The members.
        batches: As of `make_wave_chunk`.
        devices: Devices that share the members. None: all of this process.
        memory_bytes: Memory that a device may use. None: what it has free, half of the free memory on CPUs.
        display: Where the user learns what goes on.

    Returns:
        How batches reach the programs, and the programs, whose state is a `Wave`.

    Raises:
        UserError: if one member does not fit, or a field cannot vary within one program.
    """
    example = sweep.example
    if example.data.stream is not None or (example.data.is_lazy and not example.on_device):
        way = "" if example.data.stream is not None else ", or say on_device=True to copy all of it there"
        raise UserError(
            f"data {example.data.name!r} is read by rows, and a population trains on a copy that lies on the device: "
            f"train its members one by one{way}"
        )
    devices = list(devices or jax.local_devices())[: len(sweep.members)]
    size = -(-len(sweep.members) // len(devices))
    limit = memory_bytes or free_bytes(devices)
    display.note(f"compiling {len(sweep.members)} members …")
    while True:
        feed, programs = programs_of_size(sweep, batches, devices, size * len(devices))
        programs.train.begin_compiling()
        programs.evaluate.begin_compiling()
        needed = max(programs.train.num_bytes, programs.evaluate.num_bytes)
        if needed <= limit:
            return feed, programs
        if size == 1:
            raise UserError(
                f"one member takes {needed:,} bytes of a device, and {limit:,} are free: make the batch smaller"
            )
        # Not proportional: the data and the batches of evaluation are there once.
        size = max(1, min(size - 1, int(0.95 * size * limit / needed)))
        display.note(f"{needed:,} bytes where {limit:,} are free: waves of {size * len(devices)} members …")


def programs_of_size(
    sweep: Sweep, batches: Batches, devices: list[Any], num_members: int
) -> tuple[DeviceFeed, Programs]:
    """Build the programs that train a number of members at once; nothing is compiled yet."""
    mesh = Mesh(np.array(devices), ("members",), axis_types=(AxisType.Auto,))
    cut, same = NamedSharding(mesh, MEMBERS), NamedSharding(mesh, SAME)
    example = sweep.example
    feed = DeviceFeed(example.data, example.order, eval_batch_size=example.resolved_eval_batch_size, mesh=mesh)

    def abstract(shape: tuple[int, ...], dtype: Any, sharding: NamedSharding = same, **more: Any) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding, **more)

    # Weakly typed, as the Python numbers in their place would be: in bfloat16 they make nothing float32.
    columns, shape = sweep.values(), (num_members,)
    values = {name: abstract(shape, column.dtype, cut, weak_type=True) for name, column in columns.items()}
    seeds, number = abstract(shape, jnp.uint32, cut), abstract((), jnp.int32)
    initial = initial_arrays(example, abstract_state(example)) if example.initial is not None else {}
    wave_specs = Wave(SAME, MEMBERS, MEMBERS, MEMBERS)

    program = partial(_program, mesh, deterministic=example.deterministic)

    def build(plain: bool) -> Programs:
        def make(values: Tree) -> Experiment:
            return sweep.traced(values, plain=plain)

        def init(seeds: jax.Array, values: Tree) -> Wave:
            # One member after the other: jaxlib's LAPACK kernels wait for threads of the pool that they run on, so that
            # two that factorize many matrices, as orthogonal weights need, wait for ever (jaxlib 0.10.2).
            states = jax.lax.map(lambda member: init_state(make(member[1]), member[0], initial), (seeds, values))
            return Wave(jnp.int32(0), jnp.full(seeds.shape, -1, jnp.int32), values, states)

        first = program("population's init", init, (seeds, values), (MEMBERS, MEMBERS), wave_specs, runs_once=True)
        wave = jax.tree.map(lambda a: abstract(a.shape, a.dtype, cut if a.ndim else same), first.traced.out_info)
        wave = wave.replace(values=values)

        def evaluation(feed: DeviceFeed) -> Program:
            def evaluate(weights: WaveWeights, metrics: Tree, operand: Tree, *numbers: jax.Array) -> Any:
                def of_member(values: Tree, weights: Weights, metrics: Tree) -> Any:
                    return make_eval_chunk(make(values), feed)(weights, metrics, operand, *numbers)

                return jax.vmap(of_member)(*weights, metrics)

            operands = (_trained_weights(wave), wave.metrics, feed.abstract()[1], *[number] * 4)
            specs = (MEMBERS, MEMBERS, *[SAME] * 5)
            return program("population's evaluation", evaluate, operands, specs, (MEMBERS, MEMBERS))

        @cache
        def rest(num_rows: int) -> tuple[Program, AbstractFeed]:
            smaller = feed.with_eval_batch_size(num_rows)
            return evaluation(smaller), smaller

        def average(wave: Wave, operand: Tree) -> WaveWeights:
            def of_member(values: Tree, state: TrainState) -> Weights:
                return make_weights(make(values), feed)(state, operand)

            return wave.values, jax.vmap(of_member)(wave.values, wave.states)

        arrays = feed.abstract()[0]
        averages = program("averages", average, (wave, arrays), (wave_specs, SAME), MEMBERS)
        chunk, flag = make_wave_chunk(make, example, feed, batches), abstract((), jnp.bool_)
        made = Programs(
            init=first,
            starting_from=lambda _: first,
            train=program(
                "population", chunk, (wave, arrays, number, flag), (wave_specs, SAME, SAME, SAME),
                (wave_specs, {"metrics": MEMBERS, "loss": MEMBERS, "rates": SAME, "failure": SAME}), donate=(0,),
            ),
            evaluate=evaluation(feed),
            abstract_state=wave,
            layout=Layout(mesh),
            weights=averages if keeps_average(abstract_state(example)) else None,
            evaluate_rest=rest,
            trained_weights=_trained_weights,
        )  # fmt: skip
        _ = made.train.traced, made.evaluate.traced  # what cannot be traced shows here, before anything is compiled
        return made

    return feed, _traceable(build, sweep)


def _program(mesh: Mesh, name: str, function: Any, operands: Any, specs: Any, out: Any, **more: Any) -> Program:
    """Make a program that each device computes for its own members."""
    mapped = jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=out, check_vma=False)
    shardings = jax.tree.map(
        lambda spec: NamedSharding(mesh, spec), out, is_leaf=lambda leaf: isinstance(leaf, PartitionSpec)
    )
    return Program(name, mapped, operands, out_shardings=shardings, **more)


def _traceable(build: Callable[[bool], Programs], sweep: Sweep) -> Programs:
    """Build the programs with operands, else with plain tracers: jax's functions take only these, Python only those."""
    try:
        return build(False)
    except Exception as error:
        if not sweep.names:
            raise
        refused = error
    # What a member raises by itself too: a number out of range, a fault that has nothing to do with varying.
    for experiment in sweep.experiments():
        _ = experiment.pure_model
    _, programs = prepare(sweep.example)
    _ = programs.train.traced, programs.evaluate.traced
    try:
        return build(True)
    except Exception as error:
        if isinstance(refused, UserError):
            raise refused from None
        reason = getattr(refused, "error", refused)  # that of a `UserCodeError` is the user's own
        raise UserError(
            f"{' and '.join(sweep.names)} cannot vary within one program ({type(reason).__name__}: "
            f"{str(reason).splitlines()[0]}): vary fields that enter the computation as numbers"
        ) from error
