"""Predictions from one device to all that a family offers, and the batch where exchanges take over."""

import functools
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from accelnet.ops.flops import Product
from accelnet.planning.compiled.ops import DeviceOp
from accelnet.planning.modelled.roofline import collective_seconds, step_time
from accelnet.planning.planner import Planner
from accelnet.planning.rows import Row
from accelnet.planning.targets.target import Target, slices

# At most so many sizes of a family are shown, evenly spread.
_MOST_SIZES = 12


def scaling(planner: Planner, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Predict steps with data parallelism over every size that a family is sold in.

    The work of one device is modelled from shapes, for its share of the batch; the model's ratio to the compiled
    estimate, where there is one, corrects it at the size that was compiled.

    Args:
        planner: Planner of the plan.
        rows: Its answers, with one prediction per family among them.

    Returns:
        One dict per family: "accelerator", "correction" and "points", each with "name", "devices", "fixed_global"
        (strong scaling) and "fixed_per_device" (weak scaling), both with "seconds", "efficiency" and "batch", and
        "communication_batch", the batch per device below which exchanges take longer than everything else.
    """
    families: dict[str, Row] = {}
    for row in rows:
        assert row.target is not None
        if row.target.accelerator.platform != "cpu":
            families.setdefault(row.target.accelerator.name, row)
    return [_family(planner, row) for row in families.values()]


def _family(planner: Planner, row: Row) -> dict[str, Any]:
    assert row.target is not None
    assert row.time is not None
    sizes, batch, work = slices(row.target.accelerator), planner.experiment.order.batch_size, _Work(planner)
    if len(sizes) > _MOST_SIZES:
        step = (len(sizes) - 1) / (_MOST_SIZES - 1)
        sizes = [sizes[round(index * step)] for index in range(_MOST_SIZES)]
    modelled = work.seconds(row.target, batch / row.target.num_devices) + work.exchange(row.target)
    correction = row.time.expected / modelled if modelled else 1.0

    def seconds(target: Target, share: float) -> float:
        return correction * work.seconds(target, share) + work.exchange(target)

    base, base_per_device = seconds(sizes[0], batch / sizes[0].num_devices), seconds(sizes[0], batch)
    points = []
    for target in sizes:
        devices = target.num_devices
        point: dict[str, Any] = {"name": target.name, "devices": devices}
        if devices <= batch:
            taken = seconds(target, batch / devices)
            efficiency = base / (taken * (devices / sizes[0].num_devices))
            point["fixed_global"] = {"batch": batch, "seconds": taken, "efficiency": efficiency}
        taken = seconds(target, batch)
        efficiency = base_per_device / taken
        point["fixed_per_device"] = {"batch": batch * devices, "seconds": taken, "efficiency": efficiency}
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
        self._ops = functools.cache(lambda platform: planner.alone(platform).ops())
        self._seconds: dict[tuple[str, float], float] = {}
        self._bytes = planner.alone("tpu").held_bytes["weights"]

    def seconds(self, target: Target, share: float) -> float:
        """Return the expected time of a device's work on `share` examples."""
        key = target.accelerator.name, share
        if key not in self._seconds:
            ops = [_scaled(op, share / self._size, self._size) for op in self._ops(target.accelerator.platform)]
            model = self._planner.device_model(target.accelerator)
            self._seconds[key] = step_time(ops, (), target, model=model, source="modelled").expected
        return self._seconds[key]

    def exchange(self, target: Target) -> float:
        """Return the expected time of adding up the gradients."""
        op = DeviceOp("collective", "", 1, self._bytes, opcode="all-reduce", group=target.num_devices)
        return collective_seconds(op, target)

    def balance(self, target: Target, correction: float) -> int | None:
        """Return the examples per device at which work and exchange take the same time; None for one device."""
        exchange = self.exchange(target)
        if exchange == 0.0:
            return None
        # Straight lines between powers of two.
        sizes = [1 << power for power in range(0, 25, 2)]
        seconds = np.maximum.accumulate([correction * self.seconds(target, size) for size in sizes])
        return None if exchange > seconds[-1] else math.ceil(np.interp(exchange, seconds, sizes))


def _scaled(op: DeviceOp, ratio: float, size: int) -> DeviceOp:
    """Give an operation of the whole batch the work of a share; what belongs to the weights stays."""
    if op.label == "optimizer":
        return op
    products = tuple(_scaled_product(product, ratio, size) for product in op.products)
    width = 2 if products and products[0].dtype in ("bfloat16", "float16") else 4
    if products:
        moved = sum((p.m * p.k + p.k * p.n + p.m * p.n) * p.batch * width for p in products)
    else:
        moved = math.ceil(op.bytes * ratio)
    return replace(op, bytes=moved, elements=math.ceil(op.elements * ratio), products=products)


def _scaled_product(product: Product, ratio: float, size: int) -> Product:
    """Scale the axis that the batch is on: the largest that it divides."""
    axes = {name: getattr(product, name) for name in ("m", "k", "n") if getattr(product, name) % size == 0}
    if not axes:
        return product._replace(batch=max(1, math.ceil(product.batch * ratio)))
    axis = max(axes, key=axes.__getitem__)
    return product._replace(**{axis: max(1, math.ceil(axes[axis] * ratio))})
