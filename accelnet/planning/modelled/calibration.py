"""Measurements of a device, kept privately, and the model made of them."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from accelnet.cache import private_directory, reason_of, write_private
from accelnet.errors import UserError
from accelnet.json_file import read_json
from accelnet.ops.flops import Product
from accelnet.planning.compiled.calls import Call
from accelnet.planning.modelled.device import DeviceModel
from accelnet.planning.targets.accelerators import Accelerator
from accelnet.terminal import say, say_once

VERSION = 7


def _path(device: str) -> Path | None:
    directory = private_directory("calibration")
    name = "".join(character if character.isalnum() else "-" for character in device)
    return None if directory is None else directory / f"{name}.json"


def save_calibration(device: str, values: dict[str, Any]) -> Path | None:
    """Write measurements, whole or not at all, readable by the user alone; None where that cannot be.

    Products and custom calls that were measured for other models stay.
    """
    earlier = load_calibration(device)
    if earlier is not None:
        products = {Product(*row[:5]): row for row in (*earlier["products"], *values["products"])}
        calls = {Call.read(row[0]): row for row in (*earlier["calls"], *values["calls"])}
        values = values | {"products": list(products.values()), "calls": list(calls.values())}
    path = _path(device)
    if path is None:
        return None
    try:
        write_private(path, (json.dumps(values | {"version": VERSION}, indent=1) + "\n").encode())
    except OSError as error:
        say(f"accelnet: what was measured is not kept: {reason_of(error)}")
        return None
    return path


_ARRAYS = [[str, [int]]]
_SHAPE = {
    "version": int, "products": [[int, int, int, int, str, float]], "calls": [[[str, _ARRAYS, _ARRAYS], float, float]],
    "memory": {str: {str: [[float, float]]}}, "threads": int,
    **{f"{name}_seconds": float for name in ("element", "transcendental", "launch", "dispatch", "trip")},
}  # fmt: skip


def load_calibration(device: str) -> dict[str, Any] | None:
    """Read measurements; None if there are none, of another version, or, said once, such as are never written."""
    path, advice = _path(device), "it counts as none, and --measure replaces it"
    if path is None:
        return None
    try:
        values = read_json(path, "measurements", {"version": int}, advice)
        if values is None or values["version"] != VERSION:
            return None
        values = read_json(path, "measurements", _SHAPE, advice)
        model = measured_model(values)
        # What is read only when a plan asks for it.
        for threads in (1, values["threads"]):
            model.memory(1024, "elementwise", threads)
            model.elements(1024, 1, threads)
        model.product(Product(8, 8, 8, 1, "float32"))
    except UserError as error:
        say_once(f"accelnet: {error}")
        return None
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        say_once(f"accelnet: {path} cannot be read as measurements ({error}): {advice}")
        return None
    return values


def load_model(accelerator: Accelerator) -> DeviceModel | None:
    """Return the model of a device from what was measured of it, None if nothing was."""
    values = load_calibration(accelerator.name)
    return None if values is None else measured_model(values)


def measured_model(values: dict[str, Any]) -> DeviceModel:
    """Make a model of measurements.

    Args:
        values: "products" ([m, n, k, batch, dtype, seconds] each), "calls" ([a `Call`, its FLOPs, seconds] each),
            "memory" (by kind of operation and number of threads, [bytes, seconds] each, ascending), "element_seconds"
            and "transcendental_seconds" (of one thread), "launch_seconds", "dispatch_seconds", "trip_seconds" and
            "threads".

    A product whose shape was not measured takes the rate of the nearest that was, by the logarithms of its sides; a
    custom call that of the nearest of its target, by its FLOPs.
    """
    measured = {Product(*row[:5]): row[5] for row in values["products"]}
    curves_of = {
        kind: {int(threads): np.array(points, float) for threads, points in curves.items()}
        for kind, curves in values["memory"].items()
    }

    def product(product: Product) -> float:
        if product in measured:
            return measured[product]
        nearest = min(measured, key=lambda other: _distance(product, other))
        return measured[nearest] * product.flops / nearest.flops

    def memory(size: int, kind: str, threads: int) -> float:
        curves = curves_of.get(kind, curves_of["elementwise"])
        alone = _at(curves[1], size)
        if threads == 1 or len(curves) == 1:
            return alone
        # Where what was measured was too small to be divided, its curves are the same.
        together, ideal = _at(curves[max(curves)], size), alone / min(threads, max(curves))
        return max(together - values["dispatch_seconds"], ideal) if together < 0.9 * alone else ideal

    def elements(number: int, transcendental: int, threads: int) -> float:
        alone = number * values["element_seconds"] + transcendental * values["transcendental_seconds"]
        return alone / min(threads, values["threads"])

    calls = {Call.read(name): (flops, taken) for name, flops, taken in values["calls"]}

    def call(name: Call, flops: int) -> float | None:
        if name in calls:
            return calls[name][1]
        similar = [row for other, row in calls.items() if other.target == name.target and row[0] and flops]
        if not similar:
            return None
        of_nearest, taken = min(similar, key=lambda row: abs(math.log(row[0] / flops)))
        return taken * flops / of_nearest

    launch, dispatch, trip = (values[f"{name}_seconds"] for name in ("launch", "dispatch", "trip"))
    return DeviceModel(product, memory, elements, launch, dispatch, trip, "measured", call)


def _at(points: np.ndarray, size: int) -> float:
    """Read a curve between sizes on logarithmic axes, and beyond them at the rate of the last."""
    if size <= points[0, 0]:
        return float(points[0, 1] * size / points[0, 0])
    if size >= points[-1, 0]:
        return float(points[-1, 1] * size / points[-1, 0])
    return float(np.exp(np.interp(math.log(size), np.log(points[:, 0]), np.log(points[:, 1]))))


def _distance(a: Product, b: Product) -> float:
    sides = ((a.m, b.m), (a.n, b.n), (a.k, b.k), (a.batch, b.batch))
    return sum(abs(math.log(x / y)) for x, y in sides) + (0.0 if a.dtype == b.dtype else 3.0)
