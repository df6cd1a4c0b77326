"""Rates that were measured, and what they bound."""

import json

import pytest

from accelnet.ops.flops import Product
from accelnet.planning.compiled.ops import DeviceOp
from accelnet.planning.modelled.calibration import load_model, measured_model, save_calibration
from accelnet.planning.modelled.device import MEMORY_EFFICIENCY
from accelnet.planning.modelled.roofline import step_time
from accelnet.planning.targets.target import find_target
from tests.planning.modelled.test_roofline import H100


def measurements():
    return {
        "products": [[64, 64, 64, 1, "float32", 1e-5], [4096, 4096, 4096, 1, "float32", 0.1]],
        "memory": {"elementwise": {"1": [[1000, 1e-6], [100_000, 1e-4]], "2": [[1000, 1e-6], [100_000, 6e-5]]}},
        "element_seconds": 1e-10,
        "transcendental_seconds": 1e-9,
        "launch_seconds": 1e-7,
        "dispatch_seconds": 5e-6,
        "trip_seconds": 3e-7,
        "calls": [],
        "threads": 2,
    }


def test_measured_rates_are_used_as_measured_and_between():
    model = measured_model(measurements())
    assert model.product(Product(64, 64, 64, 1, "float32")) == 1e-5
    # A shape that was not measured takes the nearest one's rate.
    assert model.product(Product(64, 64, 128, 1, "float32")) == pytest.approx(2e-5)
    assert model.memory(10_000, "elementwise", 1) == pytest.approx(1e-5)
    assert model.memory(200_000, "elementwise", 1) == pytest.approx(2e-4)
    # What dividing costs is counted apart.
    assert model.memory(100_000, "elementwise", 2) == pytest.approx(5.5e-5)
    # Measured too small to be divided: as if divided evenly.
    assert model.memory(1000, "elementwise", 2) == pytest.approx(5e-7)
    assert model.elements(1000, 100, 1) == pytest.approx(2e-7)


def test_what_was_measured_is_expected_and_bounds_nothing_unless_it_beats_the_stated_peak():
    h100, product = find_target("h100"), Product(4096, 4096, 4096, 1, "float32")
    model = measured_model(measurements())
    slow = DeviceOp("product", "", 1, 0, products=(product,))
    time = step_time([slow], (), h100, model=model)
    assert time.expected == pytest.approx(0.1 + 1e-7)
    assert time.bound == product.flops / 494.7e12
    fast = measured_model(measurements() | {"products": [[*product, 1e-6]]})
    time = step_time([slow], (), h100, model=fast)
    assert time.bound == 1e-6
    assert time.bound <= time.expected


def test_neither_bandwidth_nor_caches_of_a_cpu_are_known_so_that_bytes_bound_nothing_there():
    time = step_time([DeviceOp("elementwise", "", 1, 1 << 30)], (), find_target("cpu"))
    assert time.bound == 0.0 < time.expected
    assert set(time.bounds) == {"compute"}


def test_bytes_that_a_fusion_may_save_bound_nothing():
    sure, unsure = DeviceOp("elementwise", "", 1, 1 << 30), DeviceOp("elementwise", "", 1, 1 << 30, least_bytes=0)
    assert step_time([sure], (), H100).bound == 2**30 / 3352e9
    time = step_time([unsure, sure], (), H100)
    assert time.bound == 2**30 / 3352e9
    assert time.limits["memory"] == pytest.approx(2 * 2**30 / 3352e9 / MEMORY_EFFICIENCY)


def test_dividing_a_kernel_and_a_trip_through_a_loop_cost_what_was_measured():
    model, cpu = measured_model(measurements()), find_target("cpu")
    whole = DeviceOp("elementwise", "", 1, 1000)
    assert step_time([whole], (), cpu, model=model).expected == pytest.approx(1e-6 + 1e-7)
    divided = DeviceOp("elementwise", "", 1, 1000, threads=2)
    assert step_time([divided], (), cpu, model=model).expected == pytest.approx(5e-7 + 1e-7 + 5e-6)
    loop = DeviceOp("other", "loops", 28, 0, opcode="while")
    assert step_time([loop], (), cpu, model=model).expected == pytest.approx(28 * 3e-7)


def test_measurements_are_kept_privately_and_found_again():
    assert load_model(H100.accelerator) is None
    path = save_calibration("h100", measurements())
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    model = load_model(H100.accelerator)
    assert model is not None
    assert model.source == "measured"
    other = measurements()["products"][:1]
    save_calibration("h100", measurements() | {"products": [[8, 8, 8, 1, "float32", 1e-7], [*other[0][:5], 2e-5]]})
    model = load_model(H100.accelerator)
    assert model.product(Product(8, 8, 8, 1, "float32")) == 1e-7
    assert model.product(Product(64, 64, 64, 1, "float32")) == 2e-5  # the newest
    assert model.product(Product(4096, 4096, 4096, 1, "float32")) == 0.1  # of another model
    path.write_text("{")
    assert load_model(H100.accelerator) is None


@pytest.mark.parametrize(
    "content",
    [
        "[]", "null", "7", '"text"', "{", "[" * 100_000, '{"version": 7}', '{"version": 8}', "\udcff",
        *[{name: value} for name in ("products", "calls", "memory") for value in (5, None, "x", [[1]])],
        *[{"threads": value} for value in (None, "x", [1])],
        {"products": []}, {"memory": {}}, {"memory": {"elementwise": {"1": []}}}, {"element_seconds": "x"},
    ],
)  # fmt: skip
def test_measurements_that_are_damaged_count_as_none_are_named_and_are_replaced(content, capsys):
    path = save_calibration("h100", measurements())
    text = json.dumps(json.loads(path.read_text()) | content) if isinstance(content, dict) else content
    path.write_text(text, errors="surrogateescape")
    assert load_model(H100.accelerator) is None
    said = capsys.readouterr().err.splitlines()
    # That of another version is there after every update.
    assert len(said) == (text != '{"version": 8}') and all(f"{path} cannot be read as meas" in line for line in said)
    save_calibration("h100", measurements())
    assert load_model(H100.accelerator) is not None
