"""How long a step takes on a device: bounds from its facts, kernel by kernel, and what limits it.

Two times are given. The *bound* is what no program of these operations can beat: the largest of the times that all
products, all memory traffic and all exchanges take at the device's peak, as if each hid behind the others. The
*expected* time adds up the kernels one after another at the fraction of the peak that programs typically reach, with
what starting each of them costs.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from accelnet.ops.flops import Product
from accelnet.planning.kernels import Kernel
from accelnet.planning.targets import Accelerator, Target

# What programs reach of a peak, where nothing was measured: a stated model, not a fact. Large products on MXUs and
# tensor cores reach 60 to 80 % in published results, copies 80 to 90 % of a memory's nominal rate, rings about 80 %.
PRODUCT_EFFICIENCY = 0.6
MEMORY_EFFICIENCY = 0.75
LINK_EFFICIENCY = 0.8
# Seconds to start a kernel inside one program; a stated model. A CUDA graph launches a kernel in 1 to 2 microseconds;
# a TPU's own estimates never go below 1,800 cycles, which are 1 to 2 microseconds.
LAUNCH_SECONDS = {"tpu": 1.5e-6, "cuda": 2.0e-6, "cpu": 0.5e-6}
# Seconds until the first byte arrives: per hop of a torus, per exchange over NVLink, per exchange between hosts.
HOP_SECONDS = {"tpu": 1e-6, "cuda": 8e-6, "cpu": 5e-6}
NETWORK_SECONDS = 30e-6
# Of one instruction on a number by a TPU's scalar core: some tens of cycles.
_SCALAR_SECONDS = 3e-8


@dataclass(frozen=True)
class DeviceModel:
    """How long a device takes for parts of a kernel, each alone, in seconds.

    Attributes:
        product: of a matrix product.
        memory: `(bytes, kind of kernel, threads)`.
        elements: `(elements, transcendental ones among them, threads)` of arithmetic.
        launch: of starting a kernel, beside its work.
        dispatch: of dividing one among threads.
        trip: of a trip through a loop, beside what is in it.
        source: "facts" or "measured".
        call: of a whole kernel that is a custom call, None if nothing like it was measured.
    """

    product: Callable[[Product], float]
    memory: Callable[[int, str, int], float]
    elements: Callable[[int, int, int], float]
    launch: float
    dispatch: float
    trip: float
    source: str
    call: Callable[[Kernel], float | None] = lambda _kernel: None

    def parts(self, kernel: Kernel) -> dict[str, float]:
        """Return the seconds of one run of a kernel by what they are for; the largest is how long it takes."""
        whole = None if kernel.call is None else self.call(kernel)
        if whole is not None:
            return {"compute": whole}
        arithmetic = self.elements(kernel.elements, kernel.transcendentals, kernel.threads)
        return {
            "compute": sum(map(self.product, kernel.products)) + arithmetic,
            "memory": self.memory(kernel.bytes, kernel.kind, kernel.threads) if kernel.bytes else 0.0,
        }


def model_of(accelerator: Accelerator, *, efficient: bool = False) -> DeviceModel:
    """Return what a device's facts say.

    Args:
        accelerator: the device.
        efficient: at its peak. Otherwise at what programs typically reach.

    Example:
        >>> from accelnet.planning.targets import find_target
        >>> peak = model_of(find_target("v5e").accelerator, efficient=True)
        >>> round(peak.product(Product(8192, 8192, 8192, 1, "bfloat16")) * 197e12 / 8192**3)
        2
    """
    tile, cores, peaks = accelerator.matrix_tile, accelerator.cores, accelerator.peak_flops
    product_share, memory_share, launch = (1.0, 1.0, 0.0) if efficient else (
        PRODUCT_EFFICIENCY, MEMORY_EFFICIENCY, LAUNCH_SECONDS[accelerator.platform]
    )  # fmt: skip

    def product(product: Product) -> float:
        peak = peaks.get(product.dtype) or peaks["float32"]
        return product.flops / (peak * product_share * tile_efficiency(product, tile, cores))

    def memory(size: int, _kind: str, _threads: int) -> float:
        return size / (accelerator.memory_bandwidth * memory_share)

    def elements(number: int, transcendental: int, _threads: int) -> float:
        # An exponential or logarithm costs about ten multiplications on every vector unit.
        return (number + 9 * transcendental) / (accelerator.vector_flops * product_share)

    return DeviceModel(product, memory, elements, launch, 0.0, launch, "facts")


def tile_efficiency(product: Product, tile: tuple[int, int, int], cores: int) -> float:
    """Return the share of a matrix unit's work that is not padding, from 0 to 1.

    A product is cut into tiles, the last of each row and column is padded, and the last round of tiles may leave some
    of the cores without work. Which operand is padded to which side is the compiler's choice: the better counts.

    Args:
        product: [m, k] x [k, n].
        tile: (m, k, n) of the matrix unit.
        cores: that work side by side.

    Example:
        >>> tile_efficiency(Product(128, 128, 64, 1, "bfloat16"), (8, 128, 128), 1)
        0.5
    """

    def padded(size: int, multiple: int) -> int:
        return math.ceil(size / multiple) * multiple

    def share(m: int, n: int) -> float:
        work = padded(m, tile[0]) * padded(product.k, tile[1]) * padded(n, tile[2])
        tiles = math.ceil(m / tile[0]) * math.ceil(n / tile[2]) * product.batch
        rounds = math.ceil(tiles / cores) * cores / tiles if cores > 1 else 1.0
        return m * product.k * n / (work * rounds)

    return max(share(product.m, product.n), share(product.n, product.m))


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
    # Beside the others, or part of one function.
    if kernel.opcode.endswith("-start") or kernel.opcode.startswith("inlined:"):
        return 0.0
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
