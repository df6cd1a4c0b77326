"""The programs of a run as bytes that another process, or another machine, can compile."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
from jax import export
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from accelnet.ops import kernels
from accelnet.training.compiled import Program


@dataclass(frozen=True)
class ExportedProgram:
    """A program before compilation, in JAX's own portable format (StableHLO, no pickle).

    Attributes:
        name: of the program.
        data: of `jax.export.Exported.serialize`.
        num_donated: its first arguments, whose buffers it may reuse.
        axes: sizes of the mesh's axes, empty for one device.
    """

    name: str
    data: bytes
    num_donated: int
    axes: dict[str, int]


def export_program(program: Program, axes: dict[str, int], platforms: Sequence[str]) -> ExportedProgram:
    """Lower a program for platforms that need not be here.

    Arguments and results become flat lists of arrays, so that whoever reads it needs none of the run's types.

    Args:
        program: as of `prepare`; its operands carry the shardings.
        axes: of the mesh that it was built for.
        platforms: jax's names: "cpu", "cuda", "tpu".

    Returns:
        The exported program.

    Source: `jax.export`.
    """
    leaves, structure = jax.tree.flatten(program.operands)

    def flat(*leaves: Any) -> list[Any]:
        return jax.tree.leaves(program.function(*jax.tree.unflatten(structure, leaves)))

    shardings = None
    if program.out_shardings is not None:
        results = jax.eval_shape(program.function, *program.operands)
        shardings = jax.tree.leaves(_broadcast(program.out_shardings, results))
    # Donated arguments come first in every program.
    num_donated = len(jax.tree.leaves(program.operands[: len(program.donate)]))
    jitted = jax.jit(flat, donate_argnums=tuple(range(num_donated)), out_shardings=shardings)
    checks = [export.DisabledSafetyCheck.custom_call(name) for name in kernels.TARGETS]
    # For the CPU alone it is this machine's, and the program of the run: with the kernels that are only here.
    with kernels.taken(list(platforms) == ["cpu"]):
        exported = export.export(jitted, platforms=list(platforms), disabled_checks=checks)(*leaves)
    return ExportedProgram(program.name, bytes(exported.serialize()), num_donated, dict(axes))


def _broadcast(prefix: Any, tree: Any) -> Any:
    def is_leaf(node: Any) -> bool:
        return isinstance(node, NamedSharding)

    return jax.tree.map(lambda sharding, part: jax.tree.map(lambda _: sharding, part), prefix, tree, is_leaf=is_leaf)


def lower_exported(program: ExportedProgram, devices: Sequence[Any], mesh: Mesh | None) -> Any:
    """Lower an exported program for devices, which need not be here.

    Args:
        program: to compile.
        devices: of a topology, or of this machine.
        mesh: of these devices; None for one device.

    Returns:
        A `jax.stages.Lowered`.

    Raises:
        ValueError: if the devices are too few.
    """
    exported = export.deserialize(bytearray(program.data))
    if math.prod(program.axes.values()) > len(devices):
        raise ValueError(f"{len(devices)} devices for a program of {program.axes}")
    if mesh is None:
        shardings: list[Any] = [SingleDeviceSharding(devices[0])] * len(exported.in_avals)
    else:
        everywhere = NamedSharding(mesh, PartitionSpec())
        shardings = [everywhere if s is None else s for s in exported.in_shardings_jax(mesh)]
    operands = [
        jax.ShapeDtypeStruct(aval.shape, aval.dtype, sharding=sharding)
        for aval, sharding in zip(exported.in_avals, shardings, strict=True)
    ]
    call = jax.jit(exported.call, donate_argnums=tuple(range(program.num_donated)))
    platform = "cuda" if devices[0].platform == "gpu" else devices[0].platform
    return call.trace(*operands).lower(lowering_platforms=(platform,))
