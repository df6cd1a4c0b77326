"""The compiled programs of a population: members that train together, as many as memory has room for."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from accelnet.choosing.members import Family
from accelnet.data.feed import AbstractFeed, DeviceFeed
from accelnet.errors import UserCodeError, UserError
from accelnet.experiment import Experiment
from accelnet.parallel.layout import SAME
from accelnet.training.compiled import Program
from accelnet.training.evaluation import make_eval_chunk, make_weights
from accelnet.training.initial import initial_arrays
from accelnet.training.progress import Progress
from accelnet.training.state import TrainState, abstract_state, init_state
from accelnet.training.step import make_train_step

Batches = Literal["own", "shared"]
Tree = Any

MEMBERS = PartitionSpec("members")


class Wave(flax.struct.PyTreeNode):
    """Members that train together.

    Attributes:
        step: int32 scalar, updates so far.
        failed: int32 [M], the step at which a member's loss was not finite, -1 as long as it is.
        states: `TrainState` with a leading axis of members.
    """

    step: Any
    failed: Any
    states: Any


def make_advance(
    make: Callable[[Tree], Experiment], example: Experiment, feed: AbstractFeed, batches: Batches
) -> Callable[..., Any]:
    """Return the function that trains members for a number of steps and evaluates them.

    `advance(wave, values, operand, stop, reset, rows) -> (wave, report)`: until step `stop`, or until all members have
    failed; then the batches of `rows`, int32 (number of batches, start, stop), are evaluated. `reset` (bool) empties
    the training metrics first. `report` has "train" and "evaluated", metrics by name, float32 [M].

    Args:
        make: from a member's values, scalars, to its experiment.
        example: for what all members have in common.
        feed: how batches reach the program.
        batches: "own": each member has the order of its seed; "shared": all have that of the example.
    """
    objective = example.objective

    def advance(
        wave: Wave, values: Tree, operand: Tree, stop: jax.Array, reset: jax.Array, rows: tuple[jax.Array, ...]
    ) -> Any:
        def train(values: Tree, state: TrainState, step: jax.Array) -> Any:
            def microbatch(arrays: Tree, number: Any, part: Any) -> Tree:
                own = (state.step, number, state.seed) if batches == "own" else (step, number, shared_seed)
                return feed.train_batch(arrays, jnp.int32(0), *own, part)

            state, loss, _ = make_train_step(make(values))(state, microbatch, operand)
            return state, loss

        def body(wave: Wave) -> Wave:
            states, losses = jax.vmap(train, (0, 0, None))(values, wave.states, wave.step)
            failed = jnp.where((wave.failed < 0) & ~jnp.isfinite(losses), wave.step, wave.failed)
            return Wave(wave.step + 1, failed, states)

        def evaluate(values: Tree, state: TrainState) -> Any:
            experiment = make(values)
            weights = make_weights(experiment, feed)(state, operand)
            chunk = make_eval_chunk(experiment, feed)
            _, computed = chunk(weights, objective.empty(), operand, jnp.int32(0), *rows)
            return computed

        shared_seed = jnp.uint32(example.seed)
        metrics = jax.tree.map(
            lambda new, old: jnp.where(reset, jnp.broadcast_to(new, old.shape), old),
            jax.tree.map(lambda leaf: leaf[None], objective.empty()),
            wave.states.metrics,
        )
        wave = wave.replace(states=wave.states.replace(metrics=metrics))
        wave = jax.lax.while_loop(lambda wave: (wave.step < stop) & jnp.any(wave.failed < 0), body, wave)
        report = {
            "train": jax.vmap(objective.compute)(wave.states.metrics),
            "evaluated": jax.vmap(evaluate)(values, wave.states),
        }
        return wave.replace(step=jnp.maximum(wave.step, stop)), report

    return advance


@dataclass(frozen=True)
class Compiled:
    """Programs for waves of one size, on devices."""

    init: Program
    advance: Program
    feed: DeviceFeed
    size: int
    mesh: Mesh


def compile_waves(
    batches: Batches, family: Family, devices: Sequence[Any] | None, memory_bytes: int | None, display: Progress
) -> Compiled:
    """Compile for as many members at a time as memory has room for.

    Args:
        batches: as of `make_advance`.
        family: the members.
        devices: that share the members. None: all of this process.
        memory_bytes: that a device may use. None: what it has free, half of the free memory on CPUs.
        display: that says what is going on.

    Raises:
        UserError: if one member does not fit, or a field cannot vary within one program.
    """
    devices = list(devices or jax.local_devices())[: len(family.members)]
    size = -(-len(family.members) // len(devices))
    limit = memory_bytes or free_bytes(devices)
    display.note(f"compiling {len(family.members)} members …")
    while True:
        made = _make(batches, family, devices, size * len(devices))
        memory = made.advance.compiled.memory_analysis()
        needed = memory.argument_size_in_bytes + memory.temp_size_in_bytes
        needed += memory.output_size_in_bytes - memory.alias_size_in_bytes
        if needed <= limit:
            return made
        if size == 1:
            raise UserError(
                f"one member takes {needed:,} bytes of a device, and {limit:,} are free: make the batch smaller"
            )
        # Not proportional: the data and the batches of evaluation are there once.
        size = max(1, min(size - 1, int(0.95 * size * limit / needed)))
        display.note(f"{needed:,} bytes where {limit:,} are free: waves of {size * len(devices)} members …")


def free_bytes(devices: Sequence[Any]) -> int:
    """Return the bytes that a program may use on each of some devices; CPU devices share half of the free memory."""
    stats = devices[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return int(0.9 * (stats["bytes_limit"] - stats["bytes_in_use"]))
    lines = Path("/proc/meminfo").read_text().splitlines()
    available = next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable"))
    return available // 2 // len(devices)


def _make(batches: Batches, family: Family, devices: list[Any], num_members: int) -> Compiled:
    mesh = Mesh(np.array(devices), ("members",), axis_types=(AxisType.Auto,))
    cut, whole = NamedSharding(mesh, MEMBERS), NamedSharding(mesh, SAME)
    example = family.example
    feed = DeviceFeed(example.data, example.order, eval_batch_size=example.resolved_eval_batch_size, mesh=mesh)

    def abstract(shape: tuple[int, ...], dtype: Any, sharding: NamedSharding = whole, **more: Any) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding, **more)

    # Weakly typed, as the Python numbers in their place would be: in bfloat16 they make nothing float32.
    values = {
        name: abstract((num_members,), column.dtype, cut, weak_type=True) for name, column in family.values().items()
    }
    seeds, number = abstract((num_members,), jnp.uint32, cut), abstract((), jnp.int32)
    initial = initial_arrays(example, abstract_state(example)) if example.initial is not None else {}

    def programs(plain: bool) -> tuple[Program, Program]:
        def make(values: Tree) -> Experiment:
            return family.traced(values, plain=plain)

        def init(seeds: jax.Array, values: Tree) -> Wave:
            # One member after the other: jaxlib's LAPACK kernels wait for threads of the pool that they run on, so that
            # two that factorize many matrices, as orthogonal weights need, wait for ever (jaxlib 0.10.2).
            states = jax.lax.map(lambda member: init_state(make(member[1]), member[0], initial), (seeds, values))
            return Wave(jnp.int32(0), jnp.full(seeds.shape, -1, jnp.int32), states)

        specs, shardings = Wave(SAME, MEMBERS, MEMBERS), Wave(whole, cut, cut)
        first = Program(
            "population's init",
            jax.shard_map(init, mesh=mesh, in_specs=(MEMBERS, MEMBERS), out_specs=specs, check_vma=False),
            (seeds, values),
            out_shardings=shardings,
        )
        wave = jax.tree.map(
            lambda leaf: abstract(leaf.shape, leaf.dtype, cut if leaf.ndim else whole), first.traced.out_info
        )
        advance = Program(
            "population",
            jax.shard_map(
                make_advance(make, example, feed, batches),
                mesh=mesh,
                in_specs=(specs, MEMBERS, SAME, SAME, SAME, SAME),
                out_specs=(specs, MEMBERS),
                check_vma=False,
            ),
            (wave, values, feed.abstract()[0], number, abstract((), jnp.bool_), (number,) * 3),
            donate=(0,),
            out_shardings=(shardings, cut),
        )
        _ = advance.traced  # what cannot be traced shows here, before anything is compiled
        return first, advance

    init, advance = _traceable(programs, family)
    return Compiled(init, advance, feed, num_members, mesh)


# What Python and jax raise where a number that is traced is none to them.
_UNTRACEABLE = (UserError, UserCodeError, TypeError, ValueError, AttributeError)


def _traceable(programs: Callable[[bool], tuple[Program, Program]], family: Family) -> tuple[Program, Program]:
    """Build the programs with operands, else with plain tracers: jax's functions take only these, Python only those."""
    try:
        return programs(False)
    except _UNTRACEABLE as error:
        if not family.names:
            raise
        family.check_models()
        refused = error
    try:
        return programs(True)
    except _UNTRACEABLE as error:
        if isinstance(refused, UserError):
            raise refused from None
        if isinstance(error, UserCodeError) and str(error) == str(refused):
            raise  # a fault that has nothing to do with what varies
        reason = refused.error if isinstance(refused, UserCodeError) else refused
        raise UserError(
            f"{' and '.join(family.names)} cannot vary within one program ({type(reason).__name__}: "
            f"{str(reason).splitlines()[0]}): vary fields that enter the computation as numbers"
        ) from error
