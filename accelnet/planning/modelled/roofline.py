"""How long a step takes on a device: bounds from its facts, operation by operation, and what limits it.

Two times are given. The *bound* is what the device's peaks allow: the largest of the FLOPs of all products over the
peak, the bytes of all operations over the memory's bandwidth, and the bytes of all exchanges over the links', as if
each hid behind the others, and nothing else. Only other operations can beat it: an algorithm with fewer
multiplications, such as Winograd's for convolutions, or kernels that keep in a cache what these pass through memory.
The *expected* time adds up the operations, one after another, at the fraction of the peak that programs typically
reach, with what padding to tiles and starting each of them costs.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from accelnet.planning.compiled.ops import DeviceOp
from accelnet.planning.modelled.device import DeviceModel, model_of
from accelnet.planning.targets.target import Target

# Share of a link's rate that rings reach: a stated model.
LINK_EFFICIENCY = 0.8
# Seconds until the first byte arrives: per hop of a torus, per exchange over NVLink, per exchange between hosts.
HOP_SECONDS = {"tpu": 1e-6, "cuda": 8e-6, "cpu": 5e-6}
NETWORK_SECONDS = 30e-6
# Bytes/s of rings over PCIe, whatever its generation: 15 GB/s, a general figure (JAX Scaling Book), at LINK_EFFICIENCY.
_PCIE_RATE = 12e9
# Every member has, or wants, a part of the array that all others hold.
_OF_ALL = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all")
# One instruction on a number by a TPU's scalar core: some tens of cycles.
_SCALAR_SECONDS = 3e-8
# A loop over a few numbers within one function of the CPU's: the XOR network's step, 37 of them, takes 0.24 us.
_INLINED_SECONDS = 4e-9
_KIND_NAMES = {
    "product": "matrix products", "elementwise": "elementwise", "reduction": "reductions", "move": "copies",
    "gather": "gathers", "other": "the rest",
}  # fmt: skip


def collective_seconds(op: DeviceOp, target: Target, *, efficient: bool = False) -> float:
    """Return how long one exchange takes.

    Typically that is a ring over the fast links, then one over the network: an all-reduce of b bytes over n devices
    moves 2 (n - 1) / n b bytes through every device's links, a reduce-scatter, all-gather or all-to-all half of that, a
    permutation b. Where the devices lie in several domains of links (hosts without NVLink between them), each domain
    reduces first and the domains exchange a share of 1 / n each.

    At its peak, the time is the bytes that a device has to receive or send, divided by its links' bandwidth: b for an
    all-reduce, since switches can add (8 H200 reach 475 GB/s of "bus bandwidth" over links of 450).

    Args:
        op: Operation of the kind "collective", with the bytes of the whole array and its group.
        target: Devices.
        efficient: Whether the links run at their peak, without latency.

    Source: Patarasuk and Yuan, "Bandwidth Optimal All-reduce Algorithms for Clusters of Workstations", 2009; for the
    switches https://github.com/NVIDIA/nccl-tests/issues/272 (2024-11-27).
    """
    accelerator, group, size = target.accelerator, op.group, op.bytes
    if group <= 1 or not size:
        return 0.0
    joined = accelerator.link_domain if accelerator.link_domain > 1 else accelerator.chips_per_host
    domain = min(group, joined * accelerator.devices_per_chip)
    domains = math.ceil(group / domain)
    link = (accelerator.link_bandwidth or accelerator.memory_bandwidth) * _link_share(target)
    network = accelerator.network_bandwidth or accelerator.memory_bandwidth
    # Of an all-to-all no two devices of a domain want the same.
    crossing = size if op.opcode == "all-to-all" else size / domain
    if efficient:
        if domains == 1:
            return _received(op.opcode, group) * size / link
        far = _received(op.opcode, domains) * crossing / network if op.opcode in _OF_ALL else 0.0
        return max(_received(op.opcode, group) * size / (link + network), far)
    passes = 2 if op.opcode == "all-reduce" else 1
    seconds = 0.0
    if domain > 1:
        rate = link * LINK_EFFICIENCY
        if accelerator.platform == "cuda" and accelerator.link_domain == 1:
            rate = min(rate, _PCIE_RATE)
        hops = max(target.topology) if target.topology else 2
        seconds += passes * _ring(op.opcode, domain) * size / rate
        seconds += passes * hops * HOP_SECONDS[accelerator.platform]
    if domains > 1:
        seconds += passes * _ring(op.opcode, domains) * crossing / (network * LINK_EFFICIENCY)
        seconds += passes * NETWORK_SECONDS
    return seconds


def _received(opcode: str, group: int) -> float:
    """Return the share of an exchange's array that one of its members receives, or sends, at least."""
    return 1.0 if opcode == "all-reduce" else _ring(opcode, group)


def _ring(opcode: str, group: int) -> float:
    """Return the share of an array that passes a device's links in one turn round a ring."""
    return 1.0 if opcode in ("collective-permute", "collective-broadcast") else (group - 1) / group


def _link_share(target: Target) -> float:
    """Return the share of a chip's links that lead somewhere, at the corner of the slice: all the others wait for it.

    A dimension that is a ring gives every chip two links; one that is not gives the chips at its ends one.
    """
    links = sum(2 if ring else 1 for size, ring in zip(target.topology, target.wraps, strict=True) if size > 1)
    return min(1.0, links / target.accelerator.num_links) if links else 1.0


@dataclass(frozen=True)
class StepTime:
    """How long a step takes, and why.

    Attributes:
        bound: Seconds at the device's peaks, the largest of `bounds`.
        expected: Seconds that such a program typically takes.
        bounds: Seconds of "compute", "memory" and "communication", each alone at the device's peak. Of a CPU "compute"
            alone: neither its bandwidth nor what its caches hold is known.
        limits: Expected seconds by what limits the operations: these three, and "launch".
        labels: Expected seconds by layer or part of the step.
        bottleneck: Limit and label that take most, in words.
        source: Source of the operations, "compiled" or "modelled", and of the rates, "facts" or "measured"; "timed"
            where `expected` is a step that was timed on this machine.
        rows: Operations that take longest, as JSON values.
    """

    bound: float
    expected: float
    bounds: dict[str, float]
    limits: dict[str, float]
    labels: dict[str, float]
    bottleneck: str
    source: str
    rows: tuple[dict[str, Any], ...] = field(default=(), repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {name: value for name, value in vars(self).items() if name not in ("bottleneck", "rows")}


def step_time(
    ops: Sequence[DeviceOp],
    collectives: Iterable[DeviceOp],
    target: Target,
    *,
    model: DeviceModel | None = None,
    source: str = "compiled",
) -> StepTime:
    """Estimate a step.

    Args:
        ops: Operations of one device; collectives among them are left out.
        collectives: Exchanges of one step.
        target: Devices.
        model: Model of the device. None: its facts.
        source: Source of the operations.

    Source: Williams et al., "Roofline: An Insightful Visual Performance Model for Multicore Architectures", 2009.
    """
    typical, peak = model or model_of(target.accelerator), model_of(target.accelerator, efficient=True)
    clock, on_cpu = target.accelerator.clock_hz, target.accelerator.platform == "cpu"
    bounds: dict[str, float] = dict.fromkeys(("compute",) if on_cpu else ("compute", "memory", "communication"), 0.0)
    limits: dict[str, float] = defaultdict(float)
    labels: dict[tuple[str, str], float] = defaultdict(float)
    rows = []
    for op in (op for op in ops if op.kind != "collective"):
        parts = typical.parts(op)
        limit = max(parts, key=parts.__getitem__)
        seconds, launch = parts[limit], _launch(op, target.accelerator.platform, typical)
        if clock and op.cycles is not None:  # the compiler's own estimate, starting it included
            launch = 0.0
            if op.cycles / clock > seconds:
                limit = "compute" if op.kind in ("product", "elementwise") else "memory"
                seconds = op.cycles / clock
        sure = op if op.least_bytes is None else replace(op, bytes=op.least_bytes)
        for name, at_peak in peak.parts(sure).items():
            if name in bounds:
                # Where an operation was measured to be faster than the stated peak, the peak is too low.
                bounds[name] += min(at_peak, seconds) * op.count
        label = op.label or _KIND_NAMES[op.kind]
        limits[limit] += seconds * op.count
        limits["launch"] += launch * op.count
        labels[limit if seconds >= launch else "launch", label] += (seconds + launch) * op.count
        rows.append(
            {
                "label": label,
                "kind": op.kind,
                "count": op.count,
                "seconds": (seconds + launch) * op.count,
                "limit": limit,
                "flops": sum(product.flops for product in op.products) * op.count,
                "bytes": op.bytes * op.count,
                "products": [list(product) for product in op.products],
            }
        )
    for op in collectives:
        if "communication" in bounds:
            bounds["communication"] += collective_seconds(op, target, efficient=True) * op.count
        seconds = collective_seconds(op, target) * op.count
        limits["communication"] += seconds
        labels["communication", op.opcode] += seconds
    expected = sum(limits.values())
    by_label: dict[str, float] = defaultdict(float)
    for (_, label), seconds in labels.items():
        by_label[label] += seconds
    return StepTime(
        bound=max(bounds.values()),
        expected=expected,
        bounds=bounds,
        limits=dict(limits),
        labels=dict(sorted(by_label.items(), key=lambda item: -item[1])),
        bottleneck=_bottleneck(limits, labels, expected),
        source=f"{source}, {typical.source}",
        rows=tuple(sorted(rows, key=lambda row: -row["seconds"])[:200]),
    )


def _launch(op: DeviceOp, platform: str, model: DeviceModel) -> float:
    """Return what starting an operation costs, and dividing it among threads."""
    if op.opcode == "while":
        return _SCALAR_SECONDS if platform == "tpu" else model.trip
    if op.opcode.endswith("-start"):  # beside the others
        return 0.0
    if op.opcode.startswith("inlined:"):
        return _INLINED_SECONDS
    if platform == "tpu" and op.elements <= 1 and not op.opcode.startswith("fusion"):
        return _SCALAR_SECONDS  # the scalar core computes it between two others
    return model.launch + (model.dispatch if op.threads > 1 else 0.0)


def _bottleneck(limits: dict[str, float], labels: dict[tuple[str, str], float], expected: float) -> str:
    if not limits or expected <= 0:
        return "nothing to do"
    limit = max(limits, key=limits.__getitem__)
    inside = {label: seconds for (name, label), seconds in labels.items() if name == limit}
    if not inside:
        return f"{limit}-bound"
    label = max(inside, key=inside.__getitem__)
    return f"{limit}-bound: {100 * inside[label] / expected:.0f} % in {label}"
