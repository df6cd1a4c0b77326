"""How long a device takes for the parts of a kernel, as its facts say it."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from accelnet.ops.flops import Product
from accelnet.planning.calls import Call
from accelnet.planning.kernels import Kernel
from accelnet.planning.targets import Accelerator

# What programs reach of a peak, where nothing was measured: a stated model, not a fact. Large products on MXUs and
# tensor cores reach 60 to 80 % in published results, copies 80 to 90 % of a memory's nominal rate, rings about 80 %.
PRODUCT_EFFICIENCY = 0.6
MEMORY_EFFICIENCY = 0.75
# Seconds to start a kernel inside one program; a stated model. A CUDA graph launches a kernel in 1 to 2 microseconds;
# a TPU's own estimates never go below 1,800 cycles, which are 1 to 2 microseconds.
LAUNCH_SECONDS = {"tpu": 1.5e-6, "cuda": 2.0e-6, "cpu": 0.5e-6}
# A trip through a loop on a GPU, which its host steers: 8.3 to 11.3 microseconds on an H100, by `plan --measure`.
_CUDA_TRIP_SECONDS = 9e-6


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
        call: `(call, operations)` of a whole custom call, None if nothing like it was measured.
    """

    product: Callable[[Product], float]
    memory: Callable[[int, str, int], float]
    elements: Callable[[int, int, int], float]
    launch: float
    dispatch: float
    trip: float
    source: str
    call: Callable[[Call, int], float | None] = lambda _call, _flops: None

    def parts(self, kernel: Kernel) -> dict[str, float]:
        """Return the seconds of one run of a kernel by what they are for; the largest is how long it takes."""
        flops = sum(product.flops for product in kernel.products)
        whole = None if kernel.call is None else self.call(kernel.call, flops)
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

    trip = _CUDA_TRIP_SECONDS if accelerator.platform == "cuda" and not efficient else launch
    return DeviceModel(product, memory, elements, launch, 0.0, trip, "facts")


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
