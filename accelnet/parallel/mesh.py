"""The mesh: the devices of a run as a grid with named axes."""

import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from accelnet.errors import UserError
from accelnet.wording import shown

# What the axes mean. A batch lies in parts on "data" and "fsdp"; "fsdp" also cuts the weights, "model" the layers.
BATCH_AXES = ("data", "fsdp")
AXES = (*BATCH_AXES, "model")


def parse_mesh(text: str) -> dict[str, int]:
    """Read a mesh as people type it.

    Args:
        text: "data=8", "data=2,fsdp=4", "data=-1,model=2" (-1: as many as there are devices for, at most once).

    Returns:
        Sizes by axis, outermost first.

    Raises:
        UserError: if it cannot be read, an axis comes twice, or a size is not positive.

    Example:
        >>> parse_mesh("data=2,fsdp=4")
        {'data': 2, 'fsdp': 4}
    """
    if not isinstance(text, str):
        raise UserError(f"mesh is {shown(text)}, expected text such as 'data=8', a jax.sharding.Mesh, or None")
    axes: dict[str, int] = {}
    for part in text.split(","):
        found = re.fullmatch(r"\s*([A-Za-z_]\w*)\s*=\s*(-1|\d+)\s*", part)
        if not found or found[1] in axes or int(found[2]) == 0:
            raise UserError(
                f"the mesh is {text!r}, expected axes and their sizes, each axis once: data=8, data=2,fsdp=4, "
                "data=-1,model=2 (-1 for as many as there are devices), or auto"
            )
        axes[found[1]] = int(found[2])
    if list(axes.values()).count(-1) > 1:
        raise UserError(f"the mesh is {text!r}, expected at most one size of -1")
    return axes


def make_mesh(axes: dict[str, int], devices: Sequence[Any] | None = None) -> Mesh:
    """Arrange devices as a mesh, neighbours along the inner axes.

    Where the devices are several TPU slices, which only the data centre's network connects, the first axis spans them:
    of data parallelism little has to cross it.

    Args:
        axes: sizes by axis, outermost first; one may be -1.
        devices: devices to use. None: all of the run's.

    Returns:
        A mesh of axes that XLA partitions automatically (`AxisType.Auto`).

    Raises:
        UserError: if the sizes do not make up the number of devices, or the first does not divide into the slices.

    Example:
        >>> mesh = make_mesh({"data": -1}, jax.devices()[:1])
        >>> dict(mesh.shape)
        {'data': 1}
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = resolve_axes(axes, len(devices), _described(devices))
    shown = _typed(sizes)
    shape, names, types = tuple(sizes.values()), tuple(sizes), (AxisType.Auto,) * len(sizes)
    slices = _num_slices(devices)
    if slices > 1:
        return Mesh(_across_slices(shape, slices, devices, shown), names, axis_types=types)
    if devices[0].platform == "tpu":  # laid out along the torus
        return jax.make_mesh(shape, names, axis_types=types, devices=devices)
    return Mesh(np.array(devices).reshape(shape), names, axis_types=types)


def resolve_axes(axes: dict[str, int], num_devices: int, described: str = "") -> dict[str, int]:
    """Give an open size its value, or raise an error where the sizes do not make up the number of devices.

    Example:
        >>> resolve_axes({"data": -1, "model": 2}, 8)
        {'data': 4, 'model': 2}
    """
    known = math.prod(size for size in axes.values() if size != -1)
    sizes = {name: num_devices // known if size == -1 else size for name, size in axes.items()}
    if math.prod(sizes.values()) != num_devices:
        raise UserError(
            f"the mesh {_typed(axes)} takes {f'multiples of {known}' if -1 in axes.values() else known} devices, and "
            f"there are {described or num_devices}: give sizes whose product is {num_devices}, such as "
            f"--mesh data={num_devices}, or --mesh auto"
        )
    return sizes


def _typed(axes: dict[str, int]) -> str:
    return ",".join(f"{name}={size}" for name, size in axes.items())


def _num_slices(devices: Sequence[Any]) -> int:
    """Count the TPU slices that the devices belong to; other devices, in the order of their hosts, are one."""
    return len({getattr(device, "slice_index", 0) if device.platform == "tpu" else 0 for device in devices})


def _across_slices(shape: tuple[int, ...], slices: int, devices: list[Any], shown: str) -> np.ndarray:
    from jax.experimental import mesh_utils

    if shape[0] % slices:
        raise UserError(
            f"the mesh {shown} lies on {slices} slices, and its first axis, which spans them, does not divide into "
            f"{slices}: give a first axis of {slices}, {2 * slices}, … devices"
        )
    inner = (shape[0] // slices, *shape[1:])
    outer = (slices, *[1] * (len(shape) - 1))
    return mesh_utils.create_hybrid_device_mesh(inner, outer, devices)


def _described(devices: Sequence[Any]) -> str:
    processes = len({device.process_index for device in devices})
    return f"{len(devices)}" + (f" on {processes} processes" if processes > 1 else "")
