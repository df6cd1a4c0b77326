"""How long a step takes on a device: bounds from its facts, kernel by kernel, and what limits it.

Two times are given. The *bound* is what no program of these operations can beat: the largest of the times that all
products, all memory traffic and all exchanges take at the device's peak, as if each hid behind the others. The
*expected* time adds up the kernels one after another at the fraction of the peak that programs typically reach, with
what starting each of them costs.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from accelnet.planning.device import DeviceModel, model_of
from accelnet.planning.kernels import Kernel
from accelnet.planning.targets import Target

# A share of a link's rate that rings reach: a stated model.
LINK_EFFICIENCY = 0.8
# Seconds until the first byte arrives: per hop of a torus, per exchange over NVLink, per exchange between hosts.
HOP_SECONDS = {"tpu": 1e-6, "cuda": 8e-6, "cpu": 5e-6}
NETWORK_SECONDS = 30e-6
# Of one instruction on a number by a TPU's scalar core: some tens of cycles.
_SCALAR_SECONDS = 3e-8
# A loop over a few numbers within one function of the CPU's: the XOR network's step, 37 of them, takes 0.24 us.
_INLINED_SECONDS = 4e-9


def collective_seconds(kernel: Kernel, target: Target, *, efficient: bool = False) -> float:
    """Return how long one exchange takes: rings over the fast links, and between hosts over the network.

    An all-reduce of b bytes over n devices moves 2 (n - 1) / n b bytes through every device's links, a reduce-scatter
    or all-gather half of that. Where the devices lie in several domains of links (hosts without NVLink between them),
    each domain reduces first and the domains exchange a share of 1 / n each.

    Args:
        kernel: of the kind "collective", with the bytes of the whole array and its group.
        target: the devices.
        efficient: at the links' peak, without latency.

    Source: the ring algorithm: Patarasuk and Yuan, "Bandwidth Optimal All-reduce Algorithms for Clusters of
    Workstations", 2009.
    """
    accelerator, group = target.accelerator, kernel.group
    if group <= 1 or not kernel.bytes:
        return 0.0
    passes = 2 if kernel.opcode.startswith("all-reduce") else 1
    share = 1.0 if efficient else LINK_EFFICIENCY
    domain = min(group, accelerator.link_domain * accelerator.devices_per_chip)
    seconds = 0.0
    if domain > 1:
        bandwidth = accelerator.link_bandwidth or accelerator.memory_bandwidth
        if target.topology and not any(target.wraps):
            bandwidth /= 2  # without wrap-around links a ring goes there and back
        seconds += passes * (domain - 1) / domain * kernel.bytes / (bandwidth * share)
        if not efficient:
            hops = max(target.topology) if target.topology else 2
            seconds += passes * hops * HOP_SECONDS[accelerator.platform]
    if group > domain:
        domains = math.ceil(group / domain)
        network = accelerator.network_bandwidth or accelerator.memory_bandwidth
        seconds += passes * (domains - 1) / domains * kernel.bytes / domain / (network * share)
        seconds += 0.0 if efficient else passes * NETWORK_SECONDS
    return seconds


@dataclass(frozen=True)
class StepTime:
    """How long a step takes, and why.

    Attributes:
        bound: seconds that no program of these operations can beat.
        expected: seconds that such a program typically takes.
        bounds: seconds of "compute", "memory" and "communication", each alone at the device's peak.
        limits: expected seconds by what limits the kernels: these three, and "launch".
        labels: expected seconds by layer or part of the step.
        bottleneck: in words.
        source: of the kernels: "compiled" or "modelled"; of the rates: "facts" or "measured".
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
        return {
            "bound": self.bound,
            "expected": self.expected,
            "bounds": self.bounds,
            "limits": self.limits,
            "labels": self.labels,
            "source": self.source,
        }


def step_time(
    kernels: Sequence[Kernel],
    collectives: Iterable[Kernel],
    target: Target,
    *,
    model: DeviceModel | None = None,
    source: str = "compiled",
) -> StepTime:
    """Estimate a step.

    Args:
        kernels: of one device, collectives left out.
        collectives: of one step.
        target: the devices.
        model: of the device. None: its facts.
        source: of the kernels.

    Returns:
        The times.

    Source: Williams et al., "Roofline: An Insightful Visual Performance Model for Multicore Architectures", 2009.
    """
    typical = model or model_of(target.accelerator)
    # What was measured bounds a device better than a guess at its peak.
    peak = typical if typical.source == "measured" else model_of(target.accelerator, efficient=True)
    clock = target.accelerator.clock_hz
    bounds: dict[str, float] = defaultdict(float)
    limits: dict[str, float] = defaultdict(float)
    labels: dict[tuple[str, str], float] = defaultdict(float)
    rows = []
    for kernel in kernels:
        if kernel.kind == "collective":
            continue
        for name, seconds in peak.parts(kernel).items():
            bounds[name] += seconds * kernel.count
        parts = typical.parts(kernel)
        limit = max(parts, key=parts.__getitem__)
        seconds = parts[limit]
        if clock and kernel.cycles is not None:  # the compiler's own estimate, starting it included
            estimate = kernel.cycles / clock
            if estimate > seconds:
                limit, seconds = "compute" if kernel.kind in ("product", "elementwise") else "memory", estimate
            launch = 0.0
        else:
            launch = _launch(kernel, target.accelerator.platform, typical)
        label = kernel.label or _KIND_NAMES[kernel.kind]
        limits[limit] += seconds * kernel.count
        limits["launch"] += launch * kernel.count
        labels[limit if seconds >= launch else "launch", label] += (seconds + launch) * kernel.count
        rows.append(_row(kernel, label, limit, seconds + launch))
    for kernel in collectives:
        bounds["communication"] += collective_seconds(kernel, target, efficient=True) * kernel.count
        seconds = collective_seconds(kernel, target) * kernel.count
        limits["communication"] += seconds
        labels["communication", kernel.opcode] += seconds
    bound, expected = max([*bounds.values(), 0.0]), sum(limits.values())
    # The typical time of a measured or cycle-exact model can fall below a bound of nominal facts.
    expected = max(expected, bound)
    by_label: dict[str, float] = defaultdict(float)
    for (_, label), seconds in labels.items():
        by_label[label] += seconds
    return StepTime(
        bound=bound,
        expected=expected,
        bounds=dict(bounds),
        limits=dict(limits),
        labels=dict(sorted(by_label.items(), key=lambda item: -item[1])),
        bottleneck=_bottleneck(limits, labels, expected),
        source=f"{source}, {typical.source}",
        rows=tuple(sorted(rows, key=lambda row: -row["seconds"])[:200]),
    )


def _launch(kernel: Kernel, platform: str, model: DeviceModel) -> float:
    """Return what starting a kernel costs, and dividing it among threads."""
    if kernel.opcode == "while":
        return _SCALAR_SECONDS if platform == "tpu" else model.trip
    if kernel.opcode.endswith("-start"):  # beside the others
        return 0.0
    if kernel.opcode.startswith("inlined:"):
        return _INLINED_SECONDS
    if platform == "tpu" and kernel.elements <= 1 and not kernel.opcode.startswith("fusion"):
        return _SCALAR_SECONDS  # the scalar core computes it between two kernels
    return model.launch + (model.dispatch if kernel.threads > 1 else 0.0)


_KIND_NAMES = {
    "product": "matrix products", "elementwise": "elementwise", "reduction": "reductions", "move": "copies",
    "gather": "gathers",
    "other": "the rest", "collective": "collectives",
}  # fmt: skip
_LIMIT_NAMES = {
    "compute": "compute-bound", "memory": "memory-bound", "communication": "communication-bound",
    "launch": "launch-bound",
}  # fmt: skip


def _row(kernel: Kernel, label: str, limit: str, seconds: float) -> dict[str, Any]:
    return {
        "label": label,
        "kind": kernel.kind,
        "count": kernel.count,
        "seconds": seconds * kernel.count,
        "limit": limit,
        "flops": sum(product.flops for product in kernel.products) * kernel.count,
        "bytes": kernel.bytes * kernel.count,
        "products": [list(product) for product in kernel.products],
    }


def _bottleneck(limits: dict[str, float], labels: dict[tuple[str, str], float], expected: float) -> str:
    if not limits or expected <= 0:
        return "nothing to do"
    limit = max(limits, key=limits.__getitem__)
    inside = {label: seconds for (name, label), seconds in labels.items() if name == limit}
    if not inside:
        return _LIMIT_NAMES[limit]
    label = max(inside, key=inside.__getitem__)
    return f"{_LIMIT_NAMES[limit]}: {100 * inside[label] / expected:.0f} % in {label}"
