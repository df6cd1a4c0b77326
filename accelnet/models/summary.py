"""Describe a model layer by layer, without allocating its parameters."""

from dataclasses import asdict, dataclass
from typing import Any

import rich.box
import rich.table
from flax import linen

from accelnet.models.adapter import adapt
from accelnet.models.layer_trace import Layer, trace_linen, trace_nnx
from accelnet.terminal import folded, rendered

_MOST_LINES = 12


@dataclass(frozen=True, repr=False)
class Summary:
    """Hold a model's layers and totals; `str` gives a table at most 100 columns wide, `repr` its first lines.

    Attributes:
        layers: The modules that were called, in the order of their first call, and those that only hold
            variables. Their numbers add up to the totals.
        parameters: Trainable numbers; shared ones count once.
        state: Other numbers, without random number state.
        bytes: Memory of both.
        flops: Floating-point operations of one forward pass in evaluation mode on the given inputs, shared
            layers for every use. For what counts see `accelnet.ops.flops.count_flops`.
        unknown_loops: Where it is not zero, FLOPs are a lower bound.

    Example:
        >>> Summary((), parameters=0, state=0, bytes=0, flops=0, unknown_loops=0).to_dict()["layers"]
        []
    """

    layers: tuple[Layer, ...]
    parameters: int
    state: int
    bytes: int
    flops: int
    unknown_loops: int

    def to_dict(self) -> dict[str, Any]:
        """Return everything as dicts, lists, strings and integers, ready for JSON."""
        values = asdict(self)
        values["layers"] = [
            {**layer, "output": [{"shape": list(shape), "dtype": dtype} for shape, dtype in layer["output"]]}
            for layer in values["layers"]
        ]
        return values

    def __repr__(self) -> str:
        lines = str(self).splitlines()
        if len(lines) <= _MOST_LINES:
            return "\n".join(lines)
        end = next(number for number, line in enumerate(lines) if line.startswith("total")) - 1
        kept = max(3, _MOST_LINES - 1 - len(lines[end:]))
        return "\n".join([*lines[:kept], "... print(summary) shows all", *lines[end:]])

    def __str__(self) -> str:
        table = rich.table.Table(box=rich.box.SIMPLE, show_footer=True, show_edge=False, pad_edge=False)
        total = [f"{self.parameters:,}", _amount(self.bytes, "B"), _amount(self.flops, "")]
        table.add_column("layer", "total", overflow="fold")
        table.add_column("type", overflow="fold")
        table.add_column("output", overflow="fold")
        for name, footer in zip(("parameters", "bytes", "FLOPs"), total, strict=True):
            table.add_column(name, footer, justify="right", no_wrap=True)
        for layer in self.layers:
            calls = f" x{layer.calls}" if layer.calls > 1 else ""
            output = "\n".join(f"{dtype}[{','.join(map(str, shape))}]" for shape, dtype in layer.output)
            numbers = f"{layer.parameters:,}" if layer.parameters else ""
            size = _amount(layer.bytes, "B") if layer.bytes else ""
            flops = _amount(layer.flops, "") if layer.flops else ""
            table.add_row(layer.path or "(model)", layer.type + calls, output, numbers, size, flops)
        text = rendered(table, drop=("bytes", "type", "output", "FLOPs"))
        notes = f"{self.parameters:,} trainable, {self.state:,} in other state; FLOPs of one forward pass"
        if self.unknown_loops:
            notes += f", at least: {self.unknown_loops} loop(s) of unknown length counted once"
        return f"{text}\n{folded(notes)}"


def summary(model: Any, inputs: Any) -> Summary:
    """Describe a model layer by layer: output, parameters, bytes and FLOPs of a forward pass.

    The model is traced in evaluation mode on abstract arrays; nothing is allocated or run.

    Args:
        model: A callable `model(rngs=nnx.Rngs) -> nnx.Module`, an `nnx.Module`, or a Linen module.
        inputs: An array or `jax.ShapeDtypeStruct` [batch, ...], or a dict of the model's keyword arguments.

    Returns:
        The `Summary`.

    Raises:
        UserError: If `model` is none of these.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> print(summary(nnx.Linear(3, 2, rngs=nnx.Rngs(0)), jnp.ones((5, 3))))
        layer     type     output         parameters   bytes   FLOPs
        ────────────────────────────────────────────────────────────
        (model)   Linear   float32[5,2]            8    32 B      70
        ────────────────────────────────────────────────────────────
        total                                      8    32 B      70
        8 trainable, 0 in other state; FLOPs of one forward pass
    """
    pure = adapt(model)  # says what is wrong with it
    source = pure.source
    if isinstance(source, linen.Module):
        trace = trace_linen(source, inputs, getattr(pure, "changes", ()))
    else:
        trace = trace_nnx(source, inputs)
    layers = trace.shown()
    totals = {name: sum(getattr(layer, name) for layer in layers) for name in ("parameters", "state", "bytes")}
    return Summary(layers, **totals, flops=trace.flops.total, unknown_loops=trace.flops.unknown_loops)


def _amount(number: int, unit: str) -> str:
    for prefix, size in (("T", 10**12), ("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= size:
            return f"{number / size:.2f} {prefix}{unit}"
    return f"{number} {unit}".rstrip()
