"""What shapes say about a step, without any compiler: state, activations, memory traffic and exchanges."""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
from jax.extend.core import Jaxpr, Literal

from accelnet.data.abstract_feed import AbstractFeed
from accelnet.experiment import Experiment
from accelnet.ops.flops import Flops, count_jaxpr_flops
from accelnet.parallel.layout import Layout
from accelnet.planning.compiled.calls import bodies
from accelnet.planning.compiled.ops import DeviceOp
from accelnet.training.flops import StepFlops, TracedStep
from accelnet.training.state import state_placements
from accelnet.training.table import bytes_per_device

# Number of operations that one pass over memory serves, where XLA fuses: a stated model.
_OPERATIONS_PER_PASS = 8
_ITEM_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2, "int8": 1}


@dataclass(frozen=True)
class AbstractStep:
    """A step on one of the devices that share it, known by its shapes.

    Attributes:
        platform: Platform whose programs of accelnet's operations count.
        trace: Function that gives the step of a microbatch of a size.
    """

    experiment: Experiment
    layout: Layout
    feed: AbstractFeed
    state: Any
    platform: str
    trace: Callable[[Experiment, int], TracedStep]

    @cached_property
    def held_bytes(self) -> dict[str, int]:
        """Bytes that a device holds beside activations, by the names of `Memory`.

        "data" is the training operand: the data set, or the batches of a chunk. "gradients" are those before they are
        exchanged: whole on every device, and their sums with accumulation.
        """
        placed, axes = state_placements(self.layout, self.state), self.layout.axes

        def held(field: str) -> int:
            pairs = zip(
                jax.tree.leaves(getattr(self.state, field)), jax.tree.leaves(getattr(placed, field)), strict=True
            )
            return sum(bytes_per_device(leaf.shape, leaf.dtype.itemsize, where.spec, axes) for leaf, where in pairs)

        train, evaluation = self.feed.abstract()
        sums = 2 if self.experiment.order.num_microbatches > 1 else 1
        return {
            "weights": held("params"),
            "optimizer": held("opt_state"),
            "model_state": held("model_state"),
            "data": max(map(_tree_bytes, (train, evaluation)))
            // (1 if self.feed.max_steps is None else self.layout.num_parts),
            "gradients": _tree_bytes(self.state.params) // axes.get("model", 1) * sums,
        }

    @cached_property
    def local_microbatch_size(self) -> int:
        """Examples of a microbatch on one device."""
        return math.ceil(self.feed.order.microbatch_size / self.layout.num_parts)

    @cached_property
    def activations_bytes(self) -> int:
        """Bytes that the backward pass needs, if nothing is fused: an upper estimate from the lives of all values."""
        jaxpr = self.trace(self.experiment, self.local_microbatch_size).gradient
        inputs = sum(_bytes(variable.aval) for variable in jaxpr.invars)
        return max(0, _peak(jaxpr) - inputs - self.held_bytes["gradients"]) // self.layout.axes.get("model", 1)

    @property
    def total_bytes(self) -> int:
        """Bytes that a device holds."""
        return sum(self.held_bytes.values()) + self.activations_bytes

    @cached_property
    def flops(self) -> StepFlops:
        """FLOPs of one device's share of a step."""
        return self.trace(self.experiment, self.local_microbatch_size).flops(self.platform)

    def ops(self) -> list[DeviceOp]:
        """Return a step's operations as shapes suggest them: one per matrix product, and passes over memory.

        Of the bytes only those of weights and optimizer are sure: a compiler may fuse what lies between, and reads an
        image once where the patches of a convolution hold it several times.
        """
        weights = self.held_bytes["weights"]
        state = weights + self.held_bytes["optimizer"]
        moved, elements = 2 * state + weights, self.flops.optimizer.elementwise
        update = DeviceOp("elementwise", "optimizer", 1, moved, elements, least_bytes=2 * state)
        return [*self._passes(self.flops.forward), *self._passes(self.flops.backward), update]

    def evaluation_ops(self, batch_size: int) -> list[DeviceOp]:
        """Return the operations of an evaluation batch of so many examples, as those of the loss."""
        traced = self.trace(self.experiment, math.ceil(batch_size / self.layout.num_parts))
        return self._passes(count_jaxpr_flops(traced.forward, platform=self.platform))

    def _passes(self, flops: Flops) -> list[DeviceOp]:
        shards, ops = self.layout.axes.get("model", 1), []
        for product, count in flops.products.items():
            product = product._replace(n=math.ceil(product.n / shards))
            width = _ITEM_BYTES.get(product.dtype, 4)
            size = (product.m * product.k + product.k * product.n + product.m * product.n) * product.batch * width
            ops.append(DeviceOp("product", "", count, size, products=(product,), opcode="dot", least_bytes=0))
        elementwise = flops.elementwise // shards
        size = 8 * elementwise // _OPERATIONS_PER_PASS
        return [*ops, DeviceOp("elementwise", "", 1, size, elementwise, least_bytes=0)]

    def collectives(self) -> list[DeviceOp]:
        """Return a step's exchanges: gradients of whole parameters added up, cut ones gathered and scattered."""
        layout = self.layout
        if layout.num_parts == 1:
            return []
        sizes: Counter[tuple[str, int]] = Counter()
        cuts = jax.tree.leaves(layout.cuts(self.state.params))
        for leaf, cut in zip(jax.tree.leaves(self.state.params), cuts, strict=True):
            size = leaf.size * leaf.dtype.itemsize // layout.axes.get("model", 1)
            group = math.prod(layout.axes[name] for name in cut if name is not None)
            if group > 1:
                sizes["all-gather", group] += size
                sizes["reduce-scatter", group] += size
                size //= group
            if layout.num_parts > group:
                sizes["all-reduce", layout.num_parts // group] += size
        return [DeviceOp("collective", "", 1, size, opcode=kind, group=group) for (kind, group), size in sizes.items()]


def _tree_bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _bytes(aval: Any) -> int:
    return int(aval.size * aval.dtype.itemsize) if hasattr(aval, "size") and hasattr(aval.dtype, "itemsize") else 0


def _peak(jaxpr: Jaxpr) -> int:
    """Return the most bytes that are alive at once, run in order, values freed after their last use."""
    last_use: dict[Any, int] = {}
    for index, read in enumerate([*(equation.invars for equation in jaxpr.eqns), jaxpr.outvars]):
        last_use |= {variable: index for variable in read if not isinstance(variable, Literal)}
    alive = sum(_bytes(variable.aval) for variable in (*jaxpr.invars, *jaxpr.constvars))
    peak = alive
    for index, equation in enumerate(jaxpr.eqns):
        outputs = sum(_bytes(variable.aval) for variable in equation.outvars if variable in last_use)
        variables = [v for v in equation.invars if not isinstance(v, Literal)]
        inside = () if equation.primitive.name == "pallas_call" else bodies(equation)
        inner = max((_peak(body) - sum(_bytes(v.aval) for v in variables) for body in inside), default=0)
        peak = max(peak, alive + max(outputs, inner, 0))
        dying = {v for v in variables if last_use.get(v) == index}
        alive += outputs - sum(_bytes(variable.aval) for variable in dying)
    return peak
