"""How long a device takes for the parts of an operation, by its facts."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from accelnet.ops.flops import Product
from accelnet.planning.compiled.calls import Call
from accelnet.planning.compiled.ops import DeviceOp
from accelnet.planning.targets.accelerators import Accelerator

# Share of a peak that programs reach, where nothing was measured: a stated model, not a fact. Large products on MXUs
# and tensor cores reach 60 to 80 % in published results, copies 80 to 90 % of a memory's nominal rate.
PRODUCT_EFFICIENCY = 0.6
MEMORY_EFFICIENCY = 0.75
# Seconds to start a kernel inside one program; a stated model. A CUDA graph launches a kernel in 1 to 2 microseconds;
# a TPU's own estimates never go below 1,800 cycles, which are 1 to 2 microseconds.
LAUNCH_SECONDS = {"tpu": 1.5e-6, "cuda": 2.0e-6, "cpu": 0.5e-6}
# Libraries cut a long sum among idle cores, but not into parts of fewer terms: a stated model.
_LEAST_TERMS = 256
# A trip through a loop on a GPU, which its host steers: 8.3 to 11.3 microseconds on an H100, by `plan --measure`.
_CUDA_TRIP_SECONDS = 9e-6


@dataclass(frozen=True)
class DeviceModel:
    """How long a device takes for the parts of an operation, each alone, in seconds.

    Attributes:
        product: Time of a matrix product.
        memory: Time of reading and writing `(bytes, kind of operation, threads)`.
        elements: Time of arithmetic, `(elements, transcendental ones among them, threads)`.
        launch: Time of starting an operation, beside its work.
        dispatch: Time of dividing one among threads.
        trip: Time of a trip through a loop, beside what is in it.
        source: "facts" or "measured".
        call: Time of a whole custom call, `(call, FLOPs)`, None if nothing like it was measured.
    """

    product: Callable[[Product], float]
    memory: Callable[[int, str, int], float]
    elements: Callable[[int, int, int], float]
    launch: float
    dispatch: float
    trip: float
    source: str
    call: Callable[[Call, int], float | None] = lambda _call, _flops: None

    def parts(self, op: DeviceOp) -> dict[str, float]:
        """Return the seconds of one run of an operation by what they are for; the largest is how long it takes."""
        whole = None if op.call is None else self.call(op.call, sum(product.flops for product in op.products))
        if whole is not None:
            return {"compute": whole}
        arithmetic = self.elements(op.elements, op.transcendentals, op.threads)
        return {
            "compute": sum(map(self.product, op.products)) + arithmetic,
            "memory": self.memory(op.bytes, op.kind, op.threads) if op.bytes else 0.0,
        }


def model_of(accelerator: Accelerator, *, efficient: bool = False) -> DeviceModel:
    """Return the model that follows from a device's facts.

    Args:
        accelerator: Kind of device.
        efficient: Whether it runs at its peak: FLOPs over peak, bytes over bandwidth, and nothing else. Otherwise as
            programs typically do, padding to tiles and idle cores included.

    Example:
        >>> from accelnet.planning.targets.target import find_target
        >>> peak = model_of(find_target("v5e").accelerator, efficient=True)
        >>> round(peak.product(Product(8192, 8192, 8192, 1, "bfloat16")) * 197e12 / 8192**3)
        2
    """
    peaks, bandwidth = accelerator.peak_flops, accelerator.memory_bandwidth

    def peak_of(product: Product) -> float:
        return peaks.get(product.dtype) or peaks["float32"]

    if efficient:
        return DeviceModel(
            product=lambda product: product.flops / peak_of(product),
            memory=lambda size, _kind, _threads: size / bandwidth,
            # Their peak is that of other units, and not stated for every dtype.
            elements=lambda _number, _transcendental, _threads: 0.0,
            launch=0.0, dispatch=0.0, trip=0.0, source="facts",
        )  # fmt: skip

    def product(product: Product) -> float:
        parts = split_sum(product, accelerator.matrix_tile, accelerator.cores)
        share = PRODUCT_EFFICIENCY * tile_efficiency(product, accelerator.matrix_tile, accelerator.cores, parts)
        # Every part writes its sums in float32, and they are read to be added.
        sums = 0 if parts == 1 else 2 * 4 * parts * product.m * product.n * product.batch
        return product.flops / (peak_of(product) * share) + sums / (bandwidth * MEMORY_EFFICIENCY)

    def memory(size: int, _kind: str, _threads: int) -> float:
        return size / (bandwidth * MEMORY_EFFICIENCY)

    def elements(number: int, transcendental: int, _threads: int) -> float:
        # An exponential or logarithm costs about ten multiplications on every vector unit.
        return (number + 9 * transcendental) / (accelerator.vector_flops * PRODUCT_EFFICIENCY)

    launch = LAUNCH_SECONDS[accelerator.platform]
    trip = _CUDA_TRIP_SECONDS if accelerator.platform == "cuda" else launch
    return DeviceModel(product, memory, elements, launch, 0.0, trip, "facts")


def split_sum(product: Product, tile: tuple[int, int, int], cores: int) -> int:
    """Return into how many parts a library cuts the sum of a product that has fewer tiles than there are cores.

    Args:
        product: [m, k] x [k, n].
        tile: (m, k, n) of the matrix unit.
        cores: Number of cores that work side by side.

    Returns:
        As many parts as give every core one, each of at least 256 terms; 1 where the tiles are enough.

    Example:
        >>> split_sum(Product(64, 256, 200_704, 1, "float32"), (64, 32, 64), 80)  # 4 tiles
        20
    """
    tiles = math.ceil(product.m / tile[0]) * math.ceil(product.n / tile[2]) * product.batch
    return max(1, min(cores // tiles, product.k // _LEAST_TERMS))


def tile_efficiency(product: Product, tile: tuple[int, int, int], cores: int, parts: int = 1) -> float:
    """Return the share of a matrix unit's work that is not padding, from 0 to 1.

    A product is cut into tiles, the last of each row and column is padded, and the last round of tiles may leave some
    of the cores without work. Which operand is padded to which side is the compiler's choice: the better counts.

    Args:
        product: [m, k] x [k, n].
        tile: (m, k, n) of the matrix unit.
        cores: Number of cores that work side by side.
        parts: Number of parts that the sum over k is cut into.

    Example:
        >>> tile_efficiency(Product(128, 128, 64, 1, "bfloat16"), (8, 128, 128), 1)
        0.5
    """

    def padded(size: int, multiple: int) -> int:
        return math.ceil(size / multiple) * multiple

    def share(m: int, n: int) -> float:
        work = padded(m, tile[0]) * padded(math.ceil(product.k / parts), tile[1]) * parts * padded(n, tile[2])
        tiles = math.ceil(m / tile[0]) * math.ceil(n / tile[2]) * product.batch * parts
        rounds = math.ceil(tiles / cores) * cores / tiles if cores > 1 else 1.0
        return m * product.k * n / (work * rounds)

    return max(share(product.m, product.n), share(product.n, product.m))
