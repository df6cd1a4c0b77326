"""What can be said about a step without any compiler: state, activations, memory traffic and exchanges from shapes."""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
from jax.extend.core import Jaxpr, Literal

from accelnet.data.feed import AbstractFeed
from accelnet.experiment import Experiment
from accelnet.ops.flops import Flops, count_jaxpr_flops
from accelnet.parallel.layout import Layout
from accelnet.planning.calls import bodies
from accelnet.planning.kernels import Kernel
from accelnet.training.flops import StepFlops, TracedStep
from accelnet.training.state import state_placements
from accelnet.training.table import bytes_per_device

# Operations that one pass over memory serves, where XLA fuses: a stated model.
_OPERATIONS_PER_PASS = 8
_ITEM_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2, "int8": 1}


@dataclass(frozen=True)
class AbstractStep:
    """A step on one of the devices that share it, known by its shapes.

    Attributes:
        experiment: what is trained.
        layout: on which devices.
        feed: how batches come.
        state: shapes of the `TrainState`.
        platform: whose programs of accelnet's operations count.
        trace: gives the step of a microbatch of a size.
    """

    experiment: Experiment
    layout: Layout
    feed: AbstractFeed
    state: Any
    platform: str
    trace: Callable[[Experiment, int], TracedStep]

    def _bytes(self, field: str) -> int:
        """Return a device's share of a part of the state."""
        placed, axes = state_placements(self.layout, self.state), self.layout.axes
        leaves = jax.tree.leaves(getattr(self.state, field))
        wheres = jax.tree.leaves(getattr(placed, field))
        return sum(
            bytes_per_device(leaf.shape, leaf.dtype.itemsize, where.spec, axes)
            for leaf, where in zip(leaves, wheres, strict=True)
        )

    @cached_property
    def weights_bytes(self) -> int:
        """Of the parameters, on one device."""
        return self._bytes("params")

    @cached_property
    def optimizer_bytes(self) -> int:
        """Of the optimizer's state, on one device."""
        return self._bytes("opt_state")

    @cached_property
    def model_state_bytes(self) -> int:
        """Of batch statistics and the like, on one device."""
        return self._bytes("model_state")

    @cached_property
    def data_bytes(self) -> int:
        """Of the training operand: the data set, or the batches of a chunk."""
        train, evaluation = self.feed.abstract()
        parts = 1 if self.feed.max_steps is None else self.layout.num_parts
        return max(_tree_bytes(train), _tree_bytes(evaluation)) // parts

    @cached_property
    def gradients_bytes(self) -> int:
        """Of the gradients before they are exchanged: whole on every device, and as many sums with accumulation."""
        whole = _tree_bytes(self.state.params) // self.layout.axes.get("model", 1)
        return whole * (2 if self.experiment.order.num_microbatches > 1 else 1)

    @cached_property
    def local_microbatch_size(self) -> int:
        """Examples of a microbatch on one device."""
        return math.ceil(self.feed.order.microbatch_size / self.layout.num_parts)

    @cached_property
    def activations_bytes(self) -> int:
        """Of what the backward pass needs, if nothing is fused: an upper estimate from the lives of all values."""
        jaxpr = self.trace(self.experiment, self.local_microbatch_size).gradient
        inputs = sum(_bytes(variable.aval) for variable in jaxpr.invars)
        return max(0, _peak(jaxpr) - inputs - self.gradients_bytes) // self.layout.axes.get("model", 1)

    @property
    def total_bytes(self) -> int:
        """Of all of these."""
        return (
            self.weights_bytes + self.optimizer_bytes + self.model_state_bytes + self.data_bytes
            + self.gradients_bytes + self.activations_bytes
        )  # fmt: skip

    @cached_property
    def flops(self) -> StepFlops:
        """Operations of one device's share of a step."""
        return self.trace(self.experiment, self.local_microbatch_size).flops(self.platform)

    def kernels(self) -> list[Kernel]:
        """Return a step's kernels as shapes suggest them: one per matrix product, and passes over memory.

        Of the bytes only those of weights and optimizer are sure: a compiler may fuse what lies between, and reads an
        image once where the patches of a convolution hold it several times.
        """
        kernels = [*self._passes(self.flops.forward), *self._passes(self.flops.backward)]
        state = self.weights_bytes + self.optimizer_bytes
        moved, elements = 2 * state + self.weights_bytes, self.flops.optimizer.elementwise
        kernels.append(Kernel("elementwise", "optimizer", 1, moved, elements, least_bytes=2 * state))
        return kernels

    def evaluation_kernels(self, batch_size: int) -> list[Kernel]:
        """Return the kernels of an evaluation batch of so many examples, as those of the loss."""
        traced = self.trace(self.experiment, math.ceil(batch_size / self.layout.num_parts))
        return self._passes(count_jaxpr_flops(traced.forward, platform=self.platform))

    def _passes(self, flops: Flops) -> list[Kernel]:
        shards, kernels = self.layout.axes.get("model", 1), []
        for product, count in flops.products.items():
            product = product._replace(n=math.ceil(product.n / shards))
            width = _ITEM_BYTES.get(product.dtype, 4)
            size = (product.m * product.k + product.k * product.n + product.m * product.n) * product.batch * width
            kernels.append(Kernel("product", "", count, size, products=(product,), opcode="dot", least_bytes=0))
        elementwise = flops.elementwise // shards
        size = 8 * elementwise // _OPERATIONS_PER_PASS
        return [*kernels, Kernel("elementwise", "", 1, size, elementwise, least_bytes=0)]

    def collectives(self) -> list[Kernel]:
        """Return a step's exchanges: gradients of whole parameters added up, cut ones gathered and scattered."""
        layout = self.layout
        if layout.num_parts == 1:
            return []
        found: Counter[tuple[str, int, int]] = Counter()
        cuts = jax.tree.leaves(layout.cuts(self.state.params))
        for leaf, cut in zip(jax.tree.leaves(self.state.params), cuts, strict=True):
            size = leaf.size * leaf.dtype.itemsize // layout.axes.get("model", 1)
            names = [name for name in cut if name is not None]
            group = math.prod(layout.axes[name] for name in names)
            if group > 1:
                found["all-gather", size, group] += 1
                found["reduce-scatter", size, group] += 1
                size //= group
            if layout.num_parts > group:
                found["all-reduce", size, layout.num_parts // group] += 1
        merged: Counter[tuple[str, int]] = Counter()
        for (kind, size, group), count in found.items():
            merged[kind, group] += size * count
        return [Kernel("collective", "", 1, size, opcode=kind, group=group) for (kind, group), size in merged.items()]


def _tree_bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _bytes(aval: Any) -> int:
    return int(aval.size * aval.dtype.itemsize) if hasattr(aval, "size") and hasattr(aval.dtype, "itemsize") else 0


def _peak(jaxpr: Jaxpr) -> int:
    """Return the most bytes that are alive at once, run in order, values freed after their last use."""
    last_use: dict[Any, int] = {}
    for index, equation in enumerate(jaxpr.eqns):
        for variable in equation.invars:
            if not isinstance(variable, Literal):
                last_use[variable] = index
    for variable in jaxpr.outvars:
        if not isinstance(variable, Literal):
            last_use[variable] = len(jaxpr.eqns)
    alive = sum(_bytes(variable.aval) for variable in (*jaxpr.invars, *jaxpr.constvars))
    peak = alive
    for index, equation in enumerate(jaxpr.eqns):
        outputs = sum(_bytes(variable.aval) for variable in equation.outvars if variable in last_use)
        inputs = sum(_bytes(v.aval) for v in equation.invars if not isinstance(v, Literal))
        inside = () if equation.primitive.name == "pallas_call" else bodies(equation)
        inner = max((_peak(body) - inputs for body in inside), default=0)
        peak = max(peak, alive + max(outputs, inner, 0))
        dying = {v for v in equation.invars if not isinstance(v, Literal) and last_use.get(v) == index}
        alive += outputs - sum(_bytes(variable.aval) for variable in dying)
    return peak
