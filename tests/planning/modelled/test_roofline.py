"""The model of time against sums done by hand."""

import numpy as np
import pytest

from accelnet.ops.flops import Product
from accelnet.planning.compiled.ops import DeviceOp
from accelnet.planning.modelled.device import (
    MEMORY_EFFICIENCY,
    PRODUCT_EFFICIENCY,
    model_of,
    split_sum,
    tile_efficiency,
)
from accelnet.planning.modelled.roofline import LINK_EFFICIENCY, collective_seconds, step_time
from accelnet.planning.targets.target import find_target

V5E, H100 = find_target("v5e"), find_target("h100")


def product_kernel(m, n, k, dtype="bfloat16", count=1):
    product = Product(m, n, k, 1, dtype)
    return DeviceOp("product", "Linear", count, 2 * (m * k + k * n + m * n), products=(product,), opcode="dot")


def test_a_large_product_is_compute_bound_at_the_peak():
    time = step_time([product_kernel(8192, 8192, 8192)], (), V5E)
    assert time.bound == pytest.approx(2 * 8192**3 / 197e12)
    assert time.expected == pytest.approx(2 * 8192**3 / 197e12 / PRODUCT_EFFICIENCY, rel=1e-3)
    assert time.bottleneck == "compute-bound: 100 % in Linear"


def test_an_elementwise_pass_is_memory_bound():
    kernel = DeviceOp("elementwise", "BatchNorm", 2, 1 << 30, elements=1 << 20)
    time = step_time([kernel], (), V5E)
    assert time.bound == pytest.approx(2 * 2**30 / 819e9)
    assert time.limits["memory"] == pytest.approx(2 * 2**30 / 819e9 / MEMORY_EFFICIENCY)
    assert time.bottleneck.startswith("memory-bound: 100 % in BatchNorm")


def test_the_bound_lets_compute_and_memory_hide_behind_each_other():
    kernels = [product_kernel(8192, 8192, 8192), DeviceOp("elementwise", "", 1, 1 << 30)]
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
        # 4 tiles on 132 cores keep 4 of them busy; the sum is too short to be split.
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
    assert h100 == pytest.approx(flops.flops / 494.7e12)


FEW_TILES = Product(64, 256, 200_704, 1, "float32")


@pytest.mark.parametrize(("name", "milliseconds"), [("v100", 0.42), ("a100", 0.042), ("h100", 0.013)])
def test_a_product_of_few_tiles_and_a_long_sum_is_bounded_by_its_flops_alone(name, milliseconds):
    target = find_target(name)
    time = step_time([DeviceOp("product", "", 1, 0, products=(FEW_TILES,))], (), target)
    assert time.bound == pytest.approx(milliseconds / 1e3, rel=0.03)
    assert time.bound == FEW_TILES.flops / target.accelerator.peak_flops["float32"]
    # Its sum is split over the cores: it is no more than somewhat slower than a product of many tiles.
    assert time.bound / PRODUCT_EFFICIENCY < time.expected < 1.2 * time.bound / PRODUCT_EFFICIENCY


def test_a_sum_is_split_into_long_parts_where_cores_are_idle_and_only_there():
    tile = (64, 32, 64)
    assert split_sum(FEW_TILES, tile, 80) == 20
    assert split_sum(FEW_TILES, tile, 3) == 1
    assert split_sum(Product(64, 64, 1024, 1, "float32"), tile, 80) == 4  # parts of 256 terms
    assert split_sum(Product(64, 64, 100, 1, "float32"), tile, 80) == 1
    assert split_sum(Product(64, 64, 10_000, 40, "float32"), tile, 80) == 2  # a batch of them


def random_products(count=300):
    rng = np.random.default_rng(0)
    for _ in range(count):
        m, n, k = (int(2**x) for x in rng.uniform(0, 18, 3))
        yield Product(m, n, k, int(2 ** rng.uniform(0, 5)), str(rng.choice(["float32", "bfloat16", "float16"])))


@pytest.mark.parametrize("name", ["v100", "t4", "a100", "h100", "b200", "l4", "v3:2x2", "v5e", "v6e"])
def test_a_bound_is_flops_over_peak_or_bytes_over_bandwidth_and_nothing_is_expected_to_beat_it(name):
    target = find_target(name)
    accelerator = target.accelerator
    for product in random_products():
        size = 4 * product.batch * (product.m * product.k + product.k * product.n + product.m * product.n)
        time = step_time([DeviceOp("product", "", 1, size, products=(product,))], (), target)
        peak = accelerator.peak_flops[product.dtype]
        assert time.bound == max(product.flops / peak, size / accelerator.memory_bandwidth)
        assert time.bound <= time.expected
        # Splitting is a choice: never slower than leaving each tile to one core.
        unsplit = tile_efficiency(product, accelerator.matrix_tile, accelerator.cores)
        column = product.flops / (peak * PRODUCT_EFFICIENCY * unsplit)
        launch = model_of(accelerator).launch
        assert time.expected <= max(column, size / (accelerator.memory_bandwidth * MEMORY_EFFICIENCY)) * 1.0001 + launch


def resnet50(batch):
    """Yield the convolutions of ResNet-50 v1.5 as (positions, outputs, taps, elements that go in)."""
    yield batch * 112**2, 64, 49 * 3, batch * 224**2 * 3
    features = 64
    for width, size, blocks in ((64, 56, 3), (128, 28, 4), (256, 14, 6), (512, 7, 3)):
        for block in range(blocks):
            before = size * 2 if block == 0 and width > 64 else size
            yield batch * before**2, width, features, batch * before**2 * features
            yield batch * size**2, width, 9 * width, batch * before**2 * width
            yield batch * size**2, 4 * width, width, batch * size**2 * width
            if block == 0:
                yield batch * size**2, 4 * width, features, batch * before**2 * features
            features = 4 * width
    yield batch, 1000, 2048, batch * 2048


def test_resnet50_on_a_v100_is_not_bounded_below_what_nvidia_measured():
    """In float32: 367 images a second of one V100 of 16 GB, NVIDIA DeepLearningExamples, ResNet-50 v1.5, 21.03."""
    batch, kernels = 128, []
    for number, (m, n, k, inputs) in enumerate(resnet50(batch)):
        size = 4 * (inputs + k * n + m * n)
        passes = [(m, n, k), (k, n, m)] + ([(m, k, n)] if number else [])  # no gradient of the images
        kernels += [DeviceOp("product", "", 1, size, products=(Product(*sides, 1, "float32"),)) for sides in passes]
    flops = sum(product.flops for kernel in kernels for product in kernel.products)
    assert flops / batch == pytest.approx(3 * 2 * 4.1e9, rel=0.03)  # 4.1 billion multiplications forward
    time = step_time(kernels, (), find_target("v100"))
    assert 367 < batch / time.bound == pytest.approx(batch * 15.7e12 / flops)
    assert batch / time.expected < 450  # what is typical is near to it


def all_reduce(size, group):
    return DeviceOp("collective", "", 1, size, opcode="all-reduce", group=group)


def test_an_all_reduce_over_nvlink_is_a_ring_and_bounded_by_its_bytes_over_the_links():
    target = find_target("h100:8")
    ring = 2 * 7 / 8 * 2**30 / 450e9
    assert collective_seconds(all_reduce(1 << 30, 8), target) == pytest.approx(ring / LINK_EFFICIENCY, rel=0.01)
    bound = collective_seconds(all_reduce(1 << 30, 8), target, efficient=True)
    assert bound == 2**30 / 450e9
    # Switches that add reach "bus bandwidths" of 475 and 480 GB/s, over links of 450.
    assert bound < 2 * 7 / 8 * 2**30 / 480e9 < ring


@pytest.mark.parametrize("opcode", ["all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute"])
@pytest.mark.parametrize("name", ["h100:8", "h100:64", "gb200:72", "l4:8", "t4:4", "v5e:2x2", "v5e:8x16", "v4:2x2x1"])
def test_no_exchange_is_expected_to_beat_its_bound(name, opcode):
    target = find_target(name)
    for group in {2, target.num_devices}:
        kernel = DeviceOp("collective", "", 1, 1 << 28, opcode=opcode, group=group)
        bound = collective_seconds(kernel, target, efficient=True)
        assert 0 < bound < collective_seconds(kernel, target)
        accelerator = target.accelerator
        # Nobody receives more than all of it, on fewer links than a chip has at the corner of a slice.
        assert bound <= 2**28 / min(accelerator.link_bandwidth / 3, accelerator.network_bandwidth)


def test_between_hosts_the_network_counts():
    target = find_target("h100:16")
    network = target.accelerator.network_bandwidth
    near = collective_seconds(all_reduce(1 << 30, 8), find_target("h100:8"))
    # The ring inside a host, and 1/8 of the bytes over each GPU's part of the network.
    far = 2 * 1 / 2 * 2**30 / 8 / (network * LINK_EFFICIENCY)
    assert collective_seconds(all_reduce(1 << 30, 16), target) == pytest.approx(near + far, rel=0.01)
    assert collective_seconds(all_reduce(1 << 30, 16), target, efficient=True) == 2**30 / 8 / network
    # Of an all-to-all no device's part is another's.
    exchange = DeviceOp("collective", "", 1, 1 << 30, opcode="all-to-all", group=16)
    assert collective_seconds(exchange, target, efficient=True) == 2**30 / 2 / network


def test_gpus_of_one_host_without_nvlink_exchange_over_pcie_and_not_over_the_network():
    target = find_target("l4:8")
    assert collective_seconds(all_reduce(1 << 30, 8), target, efficient=True) == 2**30 / 32e9
    typical = collective_seconds(all_reduce(1 << 30, 8), target)
    assert typical == pytest.approx(2 * 7 / 8 * 2**30 / 12e9, rel=0.01)  # 15 GB/s at 80 %


@pytest.mark.parametrize(
    ("name", "links"),
    [
        ("v5e:4x4", 2),
        ("v5e:2x4", 2),
        ("v5e:8x16", 3),
        ("v5e:16x16", 4),
        ("v4:2x2x1", 2),
        ("v4:2x2x2", 3),
        ("v4:4x4x4", 6),
    ],
)
def test_a_chip_at_the_corner_of_a_slice_has_only_the_links_that_lead_somewhere(name, links):
    target = find_target(name)
    rate = links * 50e9
    group = target.num_devices
    assert collective_seconds(all_reduce(1 << 30, group), target, efficient=True) == pytest.approx(2**30 / rate)
    ring = 2 * (group - 1) / group * 2**30 / (rate * LINK_EFFICIENCY)
    assert collective_seconds(all_reduce(1 << 30, group), target) == pytest.approx(ring, rel=0.02)


def test_gathers_move_half_of_what_an_all_reduce_moves():
    gather = DeviceOp("collective", "", 1, 1 << 30, opcode="all-gather", group=8)
    target = find_target("h100:8")
    whole = collective_seconds(all_reduce(1 << 30, 8), target)
    assert collective_seconds(gather, target) == pytest.approx(whole / 2)
    assert collective_seconds(gather, target, efficient=True) == 7 / 8 * 2**30 / 450e9


def test_a_permutation_sends_all_of_its_bytes():
    send = DeviceOp("collective", "", 1, 1 << 30, opcode="collective-permute", group=2)
    assert collective_seconds(send, find_target("h100:8"), efficient=True) == 2**30 / 450e9


def test_communication_can_be_the_bottleneck():
    time = step_time([product_kernel(128, 128, 128)], [all_reduce(1 << 28, 8)], find_target("h100:8"))
    assert time.bottleneck.startswith("communication-bound")
    assert time.bound == pytest.approx(time.bounds["communication"])


def test_the_compilers_own_cycles_count_where_they_are_longer():
    kernel = DeviceOp("elementwise", "Dropout", 1, 1024, elements=256, cycles=1_500_000)
    assert step_time([kernel], (), V5E).expected == pytest.approx(1_500_000 / 1.5e9)
