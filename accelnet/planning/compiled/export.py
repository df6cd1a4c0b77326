"""The programs of a run as bytes that another process, or another machine, can compile and run."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import export
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from accelnet.ops import kernels
from accelnet.training.compiled import Program


@dataclass(frozen=True)
class ExportedProgram:
    """A program before compilation, in JAX's own portable format (StableHLO, no pickle).

    Attributes:
        data: Bytes of `jax.export.Exported.serialize`.
        donated: Positions of the arguments whose buffers it may reuse.
        axes: Sizes of the mesh's axes, empty for one device.
        deterministic: As of `Program`.
    """

    name: str
    data: bytes
    donated: tuple[int, ...]
    axes: dict[str, int]
    deterministic: bool = False

    @property
    def num_devices(self) -> int:
        """Devices that run it."""
        return math.prod(self.axes.values())


def export_program(program: Program, axes: dict[str, int], platforms: Sequence[str]) -> ExportedProgram:
    """Lower a program for platforms that need not be here.

    Arguments and results become flat lists of arrays, so that whoever reads it needs none of the run's types.

    Args:
        program: Program of a run, as of `prepare`; its operands carry the shardings.
        axes: Sizes of the axes of the mesh that it was built for.
        platforms: JAX's names of them: "cpu", "cuda", "tpu".

    Source: `jax.export`.
    """
    jitted = jax.jit(program.function, donate_argnums=program.donate, out_shardings=program.out_shardings)
    checks = [export.DisabledSafetyCheck.custom_call(name) for name in kernels.TARGETS]
    # For the CPU alone it is this machine's, and the program of the run: with the kernels that are only here.
    with kernels.with_kernels(list(platforms) == ["cpu"]):
        exported = export.export(jitted, platforms=list(platforms), disabled_checks=checks)(*program.operands)
    arguments, results = (tuple(range(len(avals))) for avals in (exported.in_avals, exported.out_avals))
    in_tree, out_tree = jax.tree.structure((arguments, {})), jax.tree.structure(list(results))
    data = replace(exported, in_tree=in_tree, out_tree=out_tree).serialize()
    infos = jax.tree.leaves(jitted.trace(*program.operands).args_info)
    donated = tuple(position for position, info in enumerate(infos) if info.donated)
    return ExportedProgram(program.name, bytes(data), donated, dict(axes), program.deterministic)


def lower_exported(program: ExportedProgram, devices: Sequence[Any], mesh: Mesh | None) -> Any:
    """Lower an exported program for devices, which need not be here.

    Args:
        program: Program to compile.
        devices: Devices of a topology, or of this machine.
        mesh: Mesh of these devices; None for one device.

    Returns:
        A `jax.stages.Lowered`.

    Raises:
        ValueError: if the devices are too few.
    """
    exported = export.deserialize(bytearray(program.data))
    if program.num_devices > len(devices):
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
    call = jax.jit(exported.call, donate_argnums=program.donated)
    platform = "cuda" if devices[0].platform == "gpu" else devices[0].platform
    return call.trace(*operands).lower(lowering_platforms=(platform,))


def run_artifact(artifact: bytes, operands: Sequence[Any]) -> list[np.ndarray]:
    """Run the bytes of a program on operands, and return its results."""
    exported = export.deserialize(bytearray(artifact))
    return [np.asarray(result) for result in jax.device_get(jax.jit(exported.call)(*operands))]


def save_arrays(path: Path, arrays: Sequence[np.ndarray]) -> None:
    """Write arrays of any dtype, bfloat16 too, without pickle: their bytes, and a description in JSON."""
    described = json.dumps([[str(array.dtype), list(array.shape)] for array in arrays])
    raw: dict[str, Any] = {
        f"a{number}": np.frombuffer(array.tobytes(), np.uint8) for number, array in enumerate(arrays)
    }
    np.savez(path, described=np.frombuffer(described.encode(), np.uint8), **raw)


def load_arrays(path: Path) -> list[np.ndarray]:
    """Read what `save_arrays` wrote."""
    with np.load(path, allow_pickle=False) as stored:
        described = json.loads(stored["described"].tobytes().decode())
        return [
            np.frombuffer(stored[f"a{number}"].tobytes(), np.dtype(jax.numpy.dtype(dtype))).reshape(shape)
            for number, (dtype, shape) in enumerate(described)
        ]
