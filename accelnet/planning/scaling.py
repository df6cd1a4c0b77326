"""Predictions from one device to all that a family offers, and the batch where exchanges take over."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from accelnet.ops.flops import Product
from accelnet.planning.kernels import Kernel
from accelnet.planning.planner import Planner
from accelnet.planning.roofline import collective_seconds, step_time
from accelnet.planning.rows import Row
from accelnet.planning.targets import Target, slices

# Of a family's sizes at most so many, evenly spread.
_MOST_SIZES = 12


def scaling(planner: Planner, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Predict steps with data parallelism over every size that a family is sold in.

    The work of one device is modelled from shapes, for its share of the batch; the model's ratio to the compiled
    estimate, where there is one, corrects it at the size that was compiled.

    Args:
        planner: of the plan.
        rows: its answers; one prediction per family among them.

    Returns:
        One dict per family: "accelerator", "correction" and "points", each with "name", "devices", "fixed_global" and
        "fixed_per_device" ("seconds", "efficiency", "batch"), and "communication_batch", the batch per device below
        which exchanges take longer than everything else. Modelled.

    Source: what "fixed" means: strong and weak scaling.
    """
    found, seen = [], set[str]()
    for row in rows:
        assert row.target is not None
        accelerator = row.target.accelerator
        if accelerator.name in seen or accelerator.platform == "cpu":
            continue
        seen.add(accelerator.name)
        sizes = slices(accelerator)
        if len(sizes) > _MOST_SIZES:
            step = (len(sizes) - 1) / (_MOST_SIZES - 1)
            sizes = [sizes[round(index * step)] for index in range(_MOST_SIZES)]
        found.append(_family(planner, row, sizes))
    return found


def _family(planner: Planner, row: Row, sizes: Sequence[Target]) -> dict[str, Any]:
    assert row.target is not None
    assert row.time is not None
    batch = planner.experiment.order.batch_size
    work = _Work(planner)
    share = batch / row.target.num_devices
    modelled = work.seconds(row.target, share) + work.exchange(row.target)
    correction = row.time.expected / modelled if modelled else 1.0
    base = correction * work.seconds(sizes[0], batch / sizes[0].num_devices) + work.exchange(sizes[0])
    base_per_device = correction * work.seconds(sizes[0], batch)
    points = []
    for target in sizes:
        devices, exchange = target.num_devices, work.exchange(target)
        ratio = devices / sizes[0].num_devices
        point: dict[str, Any] = {"name": target.name, "devices": devices}
        if devices <= batch:
            seconds = correction * work.seconds(target, batch / devices) + exchange
            point["fixed_global"] = {"batch": batch, "seconds": seconds, "efficiency": base / (seconds * ratio)}
        seconds = correction * work.seconds(target, batch) + exchange
        point["fixed_per_device"] = {
            "batch": batch * devices,
            "seconds": seconds,
            "efficiency": (base_per_device + work.exchange(sizes[0])) / seconds,
        }
        point["communication_batch"] = work.balance(target, correction)
        points.append(point)
    return {
        "accelerator": row.target.accelerator.name,
        "from": row.name,
        "correction": correction,
        "source": "modelled" + (", corrected by the compiled estimate" if "compiled" in row.time.source else ""),
        "points": points,
    }


class _Work:
    """One device's work and exchanges under data parallelism, for any share of the batch."""

    def __init__(self, planner: Planner) -> None:
        self._planner = planner
        self._size = planner.experiment.order.batch_size
        self._kernels: dict[str, list[Kernel]] = {}
        self._seconds: dict[tuple[str, float], float] = {}
        self._bytes = planner.alone("tpu").weights_bytes

    def _kernels_for(self, platform: str) -> list[Kernel]:
        if platform not in self._kernels:
            self._kernels[platform] = self._planner.alone(platform).kernels()
        return self._kernels[platform]

    def seconds(self, target: Target, share: float) -> float:
        """Return the expected time of a device's work on `share` examples."""
        key = target.accelerator.name, share
        if key not in self._seconds:
            self._seconds[key] = self._estimate(target, share)
        return self._seconds[key]

    def _estimate(self, target: Target, share: float) -> float:
        ratio = share / self._size
        kernels = [_scaled(kernel, ratio, self._size) for kernel in self._kernels_for(target.accelerator.platform)]
        model = self._planner.device_model(target.accelerator)
        return step_time(kernels, (), target, model=model, source="modelled").expected

    def exchange(self, target: Target) -> float:
        """Return the expected time of adding up the gradients."""
        kernel = Kernel("collective", "", 1, self._bytes, opcode="all-reduce", group=target.num_devices)
        return collective_seconds(kernel, target)

    def balance(self, target: Target, correction: float) -> int | None:
        """Return the examples per device at which work and exchange take the same time; None for one device."""
        exchange = self.exchange(target)
        if exchange == 0.0:
            return None
        # Straight lines between powers of two.
        sizes = [1 << power for power in range(0, 25, 2)]
        seconds = np.maximum.accumulate([correction * self.seconds(target, size) for size in sizes])
        return None if exchange > seconds[-1] else math.ceil(np.interp(exchange, seconds, sizes))


def _scaled(kernel: Kernel, ratio: float, size: int) -> Kernel:
    """Give a kernel of the whole batch the work of a share; what belongs to the weights stays."""
    if kernel.label == "optimizer":
        return kernel
    products = tuple(_scaled_product(product, ratio, size) for product in kernel.products)
    width = 2 if products and products[0].dtype in ("bfloat16", "float16") else 4
    if products:
        moved = sum((p.m * p.k + p.k * p.n + p.m * p.n) * p.batch * width for p in products)
    else:
        moved = math.ceil(kernel.bytes * ratio)
    return replace(kernel, bytes=moved, elements=math.ceil(kernel.elements * ratio), products=products)


def _scaled_product(product: Product, ratio: float, size: int) -> Product:
    """Scale the axis that the batch is on: the largest that it divides."""
    axes = {name: getattr(product, name) for name in ("m", "k", "n") if getattr(product, name) % size == 0}
    if not axes:
        return product._replace(batch=max(1, math.ceil(product.batch * ratio)))
    axis = max(axes, key=axes.__getitem__)
    return product._replace(**{axis: max(1, math.ceil(axes[axis] * ratio))})
