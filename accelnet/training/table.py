"""What lands where: a table of a run's arrays on a mesh."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import rich.box
import rich.table
from jax.sharding import PartitionSpec

from accelnet.parallel.layout import Layout
from accelnet.parallel.rules import path_names
from accelnet.terminal import folded, rendered
from accelnet.training.state import state_placements

_PARTS = (("params", "weights"), ("model_state", "model's state"), ("opt_state", "optimizer's state"))


def bytes_per_device(shape: tuple[int, ...], itemsize: int, spec: PartitionSpec, axes: Mapping[str, int]) -> int:
    """Return the bytes that one device holds of an array of some shape, which a mesh of some axes cuts by a spec.

    Example:
        >>> bytes_per_device((8, 6), 4, PartitionSpec(None, "model"), {"model": 2})
        96
    """
    names = [name for cut in spec if cut is not None for name in (cut if isinstance(cut, tuple) else (cut,))]
    return math.prod(shape) * itemsize // math.prod(axes[name] for name in names)


def placement_table(layout: Layout, state: Any) -> str:
    """Describe where the arrays of a `TrainState` lie, one line per parameter, and what a device holds in all.

    Args:
        layout: Layout with a mesh.
        state: State, or its shapes.

    Returns:
        Text, as wide as the terminal; without one, at most 140 columns.
    """
    placed, axes = state_placements(layout, state), layout.axes
    table = rich.table.Table(box=rich.box.SIMPLE, show_edge=False, pad_edge=False)
    for name in ("parameter", "shape", "cut over"):
        table.add_column(name, overflow="fold")
    table.add_column("bytes per device", justify="right", no_wrap=True)
    table.add_column("why", overflow="fold")
    totals = []
    for field, title in _PARTS:
        whole = share = 0
        wheres = jax.tree.leaves(getattr(placed, field))
        for (path, leaf), where in zip(path_names(getattr(state, field)), wheres, strict=True):
            size = bytes_per_device(leaf.shape, leaf.dtype.itemsize, where.spec, axes)
            whole += leaf.size * leaf.dtype.itemsize
            share += size
            if field == "params":
                cut = ", ".join("·" if name is None else str(name) for name in where.spec) or "nothing"
                table.add_row(path, ",".join(map(str, leaf.shape)), cut, f"{size:,}", where.reason)
        totals.append(f"{title}: {share:,} of {whole:,} bytes on each of {layout.num_devices} devices")
    lines = rendered(table, 140, drop=("shape", "why")).splitlines()
    return "\n".join([f"mesh {layout.described}, a batch in {layout.num_parts} parts", *lines, *map(folded, totals)])
