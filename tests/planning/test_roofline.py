"""The model of time against sums done by hand."""

import json

import pytest

from accelnet.ops.flops import Product
from accelnet.planning.calibration import load_model, measured_model, save_calibration
from accelnet.planning.device import MEMORY_EFFICIENCY, PRODUCT_EFFICIENCY, model_of, tile_efficiency
from accelnet.planning.kernels import Kernel
from accelnet.planning.roofline import LINK_EFFICIENCY, collective_seconds, step_time
from accelnet.planning.targets import find_target

V5E, H100 = find_target("v5e"), find_target("h100")


def product_kernel(m, n, k, dtype="bfloat16", count=1):
    product = Product(m, n, k, 1, dtype)
    return Kernel("product", "Linear", count, 2 * (m * k + k * n + m * n), products=(product,), opcode="dot")


def test_a_large_product_is_compute_bound_at_the_peak():
    time = step_time([product_kernel(8192, 8192, 8192)], (), V5E)
    assert time.bound == pytest.approx(2 * 8192**3 / 197e12)
    assert time.expected == pytest.approx(2 * 8192**3 / 197e12 / PRODUCT_EFFICIENCY, rel=1e-3)
    assert time.bottleneck == "compute-bound: 100 % in Linear"


def test_an_elementwise_pass_is_memory_bound():
    kernel = Kernel("elementwise", "BatchNorm", 2, 1 << 30, elements=1 << 20)
    time = step_time([kernel], (), V5E)
    assert time.bound == pytest.approx(2 * 2**30 / 819e9)
    assert time.limits["memory"] == pytest.approx(2 * 2**30 / 819e9 / MEMORY_EFFICIENCY)
    assert time.bottleneck.startswith("memory-bound: 100 % in BatchNorm")


def test_the_bound_lets_compute_and_memory_hide_behind_each_other():
    kernels = [product_kernel(8192, 8192, 8192), Kernel("elementwise", "", 1, 1 << 30)]
    alone = [step_time([kernel], (), V5E).bound for kernel in kernels]
    assert step_time(kernels, (), V5E).bound == pytest.approx(max(alone), rel=0.2)
    assert step_time(kernels, (), V5E).expected > sum(alone)


@pytest.mark.parametrize(
    ("product", "tile", "cores", "expected"),
    [
        ((128, 128, 128), (8, 128, 128), 1, 1.0),
        # The side of 64 is the one that is padded to 8.
        ((128, 64, 128), (8, 128, 128), 1, 1.0),
        ((64, 64, 128), (8, 128, 128), 1, 0.5),
        ((128, 128, 28), (8, 128, 128), 1, 28 / 128),
        ((1, 128, 128), (8, 128, 128), 1, 1 / 8),
        ((128, 1, 128), (8, 128, 128), 1, 1 / 8),
        # 4 tiles on 132 cores keep 4 of them busy.
        ((128, 128, 64), (64, 32, 64), 132, 4 / 132),
    ],
)
def test_padding_and_idle_cores_cost_their_share(product, tile, cores, expected):
    m, n, k = product
    assert tile_efficiency(Product(m, n, k, 1, "bfloat16"), tile, cores) == pytest.approx(expected)


def test_float32_products_run_at_the_default_precisions_peak():
    flops = Product(8192, 8192, 8192, 1, "float32")
    # One pass in bfloat16 on a TPU, tf32 on a GPU.
    assert model_of(V5E.accelerator, efficient=True).product(flops) == pytest.approx(flops.flops / 197e12)
    h100 = model_of(H100.accelerator, efficient=True).product(flops)
    assert h100 == pytest.approx(flops.flops / 494.7e12, rel=0.05)


def all_reduce(size, group):
    return Kernel("collective", "", 1, size, opcode="all-reduce", group=group)


def test_an_all_reduce_over_nvlink_is_a_ring():
    seconds = collective_seconds(all_reduce(1 << 30, 8), find_target("h100:8"), efficient=True)
    assert seconds == pytest.approx(2 * 7 / 8 * 2**30 / 450e9)
    assert collective_seconds(all_reduce(1 << 30, 8), find_target("h100:8")) > seconds / LINK_EFFICIENCY


def test_between_hosts_the_network_counts():
    near = collective_seconds(all_reduce(1 << 30, 8), find_target("h100:8"), efficient=True)
    far = collective_seconds(all_reduce(1 << 30, 16), find_target("h100:16"), efficient=True)
    network = find_target("h100:16").accelerator.network_bandwidth
    # The ring inside a host, and 1/8 of the bytes over each GPU's part of the network.
    assert far == pytest.approx(near + 2 * 1 / 2 * 2**30 / 8 / network)


def test_a_slice_without_wrap_around_links_exchanges_at_half_the_rate():
    small, large = find_target("v5e:4x4"), find_target("v5e:16x16")
    assert not any(small.wraps)
    assert all(large.wraps)
    seconds = collective_seconds(all_reduce(1 << 30, 16), small, efficient=True)
    assert seconds == pytest.approx(2 * 15 / 16 * 2**30 / (200e9 / 2))
    assert collective_seconds(all_reduce(1 << 30, 256), large, efficient=True) == pytest.approx(
        2 * 255 / 256 * 2**30 / 200e9
    )


def test_gathers_move_half_of_what_an_all_reduce_moves():
    gather = Kernel("collective", "", 1, 1 << 20, opcode="all-gather", group=8)
    target = find_target("h100:8")
    whole = collective_seconds(all_reduce(1 << 20, 8), target, efficient=True)
    assert collective_seconds(gather, target, efficient=True) == pytest.approx(whole / 2)


def test_communication_can_be_the_bottleneck():
    time = step_time([product_kernel(128, 128, 128)], [all_reduce(1 << 28, 8)], find_target("h100:8"))
    assert time.bottleneck.startswith("communication-bound")
    assert time.bound == pytest.approx(time.bounds["communication"])


def test_the_compilers_own_cycles_count_where_they_are_longer():
    kernel = Kernel("elementwise", "Dropout", 1, 1024, elements=256, cycles=1_500_000)
    assert step_time([kernel], (), V5E).expected == pytest.approx(1_500_000 / 1.5e9)


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


def test_dividing_a_kernel_and_a_trip_through_a_loop_cost_what_was_measured():
    model, cpu = measured_model(measurements()), find_target("cpu")
    whole = Kernel("elementwise", "", 1, 1000)
    assert step_time([whole], (), cpu, model=model).expected == pytest.approx(1e-6 + 1e-7)
    divided = Kernel("elementwise", "", 1, 1000, threads=2)
    assert step_time([divided], (), cpu, model=model).expected == pytest.approx(5e-7 + 1e-7 + 5e-6)
    loop = Kernel("other", "loops", 28, 0, opcode="while")
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
def test_measurements_that_are_damaged_count_as_none_and_are_replaced(content):
    path = save_calibration("h100", measurements())
    text = json.dumps(json.loads(path.read_text()) | content) if isinstance(content, dict) else content
    path.write_text(text, errors="surrogateescape")
    assert load_model(H100.accelerator) is None
    save_calibration("h100", measurements())
    assert load_model(H100.accelerator) is not None
