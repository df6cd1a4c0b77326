"""Layout: on which devices a run's batches and weights lie.

A batch is cut into parts along the mesh's batch axes (`parts.py`); the weights' axis "model" is left to XLA's
partitioner. The same program text therefore serves one device, `jit` over a mesh, and `pmap`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, cast, get_args

import jax
from jax.experimental import multihost_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from accelnet.errors import UserError
from accelnet.parallel.mesh import AXES, BATCH_AXES, make_mesh, parse_mesh, resolve_axes
from accelnet.parallel.parts import SAME, Parts
from accelnet.parallel.rules import Placement, Rule, check_rules, path_names, place

Strategy = Literal["jit", "pmap"]
Tree = Any


@dataclass(frozen=True, eq=False)
class Layout:
    """Say on which devices arrays lie. Without a mesh: all on one.

    Args:
        mesh: the devices, None for the default device alone.
        strategy: "jit" for a partitioned program, "pmap" for a replicated one.
        rules: the user's sharding rules, then those that the model brings along.

    Raises:
        UserError: if pmap is asked for with a mesh that has another axis than "data".

    Example:
        >>> layout = Layout(make_mesh({"data": 1}, jax.devices()[:1]))
        >>> layout.num_parts, layout.described
        (1, 'data=1')
    """

    mesh: Mesh | None = None
    strategy: Strategy = "jit"
    rules: Sequence[Rule] = ()

    def __post_init__(self) -> None:
        if self.strategy not in get_args(Strategy):
            raise UserError(f"the strategy is {self.strategy!r}, expected one of {', '.join(get_args(Strategy))}")
        if self.strategy == "pmap" and tuple(self.axes) != ("data",):
            raise UserError(
                f"pmap keeps all weights on every device and knows one axis, data; the mesh is {self.described}: give "
                f"--mesh data={max(1, self.num_devices)}, or --strategy jit"
            )

    @cached_property
    def axes(self) -> dict[str, int]:
        """Sizes of the mesh's axes, none without a mesh."""
        return {} if self.mesh is None else dict(self.mesh.shape)

    @property
    def described(self) -> str:
        """The mesh as it is typed."""
        return ",".join(f"{name}={size}" for name, size in self.axes.items()) or "one device"

    @property
    def num_devices(self) -> int:
        """Devices of the run."""
        return math.prod(self.axes.values())

    @cached_property
    def batch_axes(self) -> tuple[str, ...]:
        """The mesh's axes along which a batch is cut, those of size 1 left out."""
        return tuple(name for name in self.axes if name in BATCH_AXES and self.axes[name] > 1)

    @property
    def num_parts(self) -> int:
        """Parts of a batch."""
        return math.prod(self.axes[name] for name in self.batch_axes)

    def sharding(self, spec: PartitionSpec = SAME) -> NamedSharding | None:
        """Return the sharding of an array that is cut like this; the default is a copy on every device."""
        return None if self.mesh is None else NamedSharding(self.mesh, spec)

    def abstract(self, shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        """Return the shape of an array that is the same on every device."""
        return jax.ShapeDtypeStruct(shape, dtype, sharding=self.sharding())

    def placements(self, params: Tree) -> Tree:
        """Return the `Placement` of every parameter (or of the model's state): a tree like it."""
        placed = [place(path, leaf.shape, self.axes, self.rules) for path, leaf in path_names(params)]
        return jax.tree.unflatten(jax.tree.structure(params), placed)

    def check(self, paths: Sequence[str]) -> None:
        """Refuse rules that match none of the arrays of these paths, and axes that nothing uses."""
        check_rules(self.rules, paths, self.axes, AXES)

    def cuts(self, params: Tree) -> Tree:
        """Return how the batch axes cut the parameters: a tree of `PartitionSpec`s for `Parts.map`."""

        def cut(where: Placement) -> PartitionSpec:
            return PartitionSpec(*[name if name in self.batch_axes else None for name in where.spec])

        return jax.tree.map(cut, self.placements(params))

    @cached_property
    def parts(self) -> Parts:
        """What the devices that share a batch say to each other."""
        return Parts(self.batch_axes, self.num_parts, self.mesh if self.strategy == "jit" else None)


ONE_DEVICE = Layout()


def make_layout(
    mesh: str | Mesh | None = None,
    strategy: Strategy = "jit",
    rules: Sequence[Rule] = (),
    *,
    state_bytes: int = 0,
    devices: Sequence[Any] | None = None,
    absent: "AbsentDevices | None" = None,
) -> Layout:
    """Make the layout that a user asked for.

    Args:
        mesh: "data=8" and so on; "auto": all devices, "fsdp" if the state would take more than a quarter of a device's
            memory, else "data"; a `jax.sharding.Mesh`; None: "auto" on accelerators and with several processes, one
            device on a CPU, whose simulated devices share its cores.
        strategy: "jit" or "pmap".
        rules: the user's sharding rules.
        state_bytes: what weights and optimizer take, for "auto".
        devices: those to use. None: all of the run's.
        absent: devices that are not here, instead: the layout can be compiled for, and nothing run on it.

    Returns:
        The `Layout`.

    Raises:
        UserError: if mesh, devices and strategy do not fit.

    Example:
        >>> make_layout("data=1", devices=jax.devices()[:1]).described
        'data=1'
    """
    if isinstance(mesh, Mesh):
        return Layout(mesh, strategy, rules)
    if absent is not None:
        if mesh is None and absent.count == 1:
            return Layout(None, strategy, rules)
        axes = _axes(mesh or "auto", strategy, absent.count, state_bytes > absent.memory_bytes / 4)
        return Layout(_abstract_mesh(resolve_axes(axes, absent.count)), strategy, rules)
    devices = list(jax.devices() if devices is None else devices)
    if mesh is None:
        alone = len(devices) == 1 or (devices[0].platform == "cpu" and jax.process_count() == 1)
        if alone and strategy == "jit":
            return Layout(None, strategy, rules)
        mesh = "auto"
    stats = devices[0].memory_stats() if devices[0].process_index == jax.process_index() else None
    limit = (stats or {}).get("bytes_limit", math.inf)
    return Layout(make_mesh(_axes(mesh, strategy, len(devices), state_bytes > limit / 4), devices), strategy, rules)


def _axes(mesh: str, strategy: Strategy, num_devices: int, is_large: bool) -> dict[str, int]:
    if mesh == "auto":
        return {"fsdp" if is_large and strategy == "jit" else "data": num_devices}
    return parse_mesh(mesh)


def _abstract_mesh(axes: dict[str, int]) -> Mesh:
    return cast(Mesh, AbstractMesh(tuple(axes.values()), tuple(axes), axis_types=(AxisType.Auto,) * len(axes)))


@dataclass(frozen=True)
class AbsentDevices:
    """Devices that need not be here.

    Attributes:
        count: Number of devices.
        memory_bytes: Memory of each that a program can use.
    """

    count: int
    memory_bytes: int


def to_addressable(tree: Tree) -> Tree:
    """Bring arrays that lie on several processes' devices to this process, as NumPy arrays; all processes call this.

    Args:
        tree: arrays. Those of this process's own devices stay as they are.

    Example:
        >>> to_addressable({"a": jax.numpy.ones(2)})["a"].tolist()
        [1.0, 1.0]
    """

    def fetch(array: Any) -> Any:
        if array.is_fully_addressable:
            return array
        if array.is_fully_replicated:
            return jax.device_get(array)
        return multihost_utils.process_allgather(array, tiled=True)

    return jax.tree.map(fetch, tree)


def abstract_layout(mesh: str, strategy: Strategy = "jit", rules: Sequence[Rule] = ()) -> Layout:
    """Make a layout on devices that need not be here: what lies where can be asked of it, and nothing run.

    Args:
        mesh: as of `make_layout`; where it leaves sizes open, the devices that are here are counted.
        strategy: as of `make_layout`.
        rules: as of `make_layout`.

    Example:
        >>> abstract_layout("data=16,fsdp=16").num_devices
        256
    """
    axes = {} if mesh == "auto" else parse_mesh(mesh)
    if not axes or -1 in axes.values():
        return make_layout(mesh, strategy, rules)
    return Layout(_abstract_mesh(axes), strategy, rules)
