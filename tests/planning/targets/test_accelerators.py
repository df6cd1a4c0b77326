"""Facts of machines: those of the package against their sources, a file of the user's, and this CPU."""

import math
import re
import tomllib
from importlib import resources

import pytest

from accelnet.planning.targets.accelerators import load_accelerators
from accelnet.planning.targets.target import (
    find_target,
    slices,
)

OWN = load_accelerators("")
SOLD = [accelerator for accelerator in OWN.values() if accelerator.name != "cpu"]
GPU = """
title = "NVIDIA L40S"
platform = "cuda"
peak_bf16_tflops = 362.0
vector_fp32_tflops = 91.6
memory_gib_per_device = 44.7
memory_gb_per_s = 864.0
cores = 142
chips_per_host = 8
"""


def write(folder, text):
    path = folder / "mine.toml"
    path.write_text(text)
    return path


# Facts


def test_the_facts_of_v5e_are_those_of_its_documentation():
    v5e = OWN["v5e"]
    assert (v5e.title, v5e.platform, v5e.devices_per_chip, v5e.cores) == ("Cloud TPU v5e", "tpu", 1, 1)
    assert dict(v5e.peak_flops) == {"bfloat16": 197e12, "float16": 197e12, "float32": 197e12, "int8": 393e12}
    assert v5e.memory_bytes == 16_911_433_728  # 15.75 GiB
    assert v5e.memory_bandwidth == 819e9
    assert v5e.matrix_tile == (8, 128, 128)
    assert (v5e.num_links, v5e.link_bandwidth, v5e.link_domain) == (4, 200e9, 256)
    assert v5e.network_bandwidth == 3.125e9  # 200 Gbit/s for 8 chips
    assert (v5e.usd_per_chip_hour, v5e.price_note) == (1.2, "on demand, us, 2026-09-17")
    assert v5e.vector_flops == pytest.approx(8 * 128 * 4 * 1.5e9, rel=0.02)  # figures of two digits
    assert "TPU v5 lite" in v5e.device_kinds


def test_the_facts_of_v5p_are_those_of_its_documentation():
    v5p = OWN["v5p"]
    assert dict(v5p.peak_flops) == {
        "bfloat16": 459e12, "float16": 459e12, "float32": 459e12, "int8": 918e12, "float8_e4m3fn": 459e12,
    }  # fmt: skip
    assert v5p.memory_bytes == int(95.73 * 1024**3)
    assert v5p.memory_bandwidth == 2765e9
    assert (v5p.num_links, v5p.link_bandwidth, v5p.link_domain) == (6, 600e9, 8960)
    assert v5p.network_bandwidth == 6.25e9
    target = find_target("v5p-128", OWN)
    assert (target.topology, target.num_chips, target.num_devices, target.num_hosts) == ((4, 4, 4), 64, 64, 16)
    assert target.usd_per_hour == pytest.approx(64 * 4.2)


def test_the_facts_of_h100_are_those_of_its_white_paper():
    h100 = OWN["h100"]
    teraflops = {dtype: round(peak / 1e12, 1) for dtype, peak in h100.peak_flops.items()}
    assert teraflops == {
        "bfloat16": 989.4, "float16": 989.4, "float32": 494.7, "float64": 66.9, "int8": 1978.9, "float8_e4m3fn": 1978.9,
    }  # fmt: skip
    assert h100.vector_flops == pytest.approx(66.9e12)
    assert h100.memory_bytes == pytest.approx(84_942_979_072, abs=2**17)  # the table has GiB of four decimals
    assert (h100.memory_bandwidth, h100.cores, h100.matrix_tile) == (3352e9, 132, (64, 32, 64))
    assert (h100.num_links, h100.link_bandwidth, h100.link_domain) == (1, 450e9, 8)
    target = find_target("h100:16", OWN)
    assert (target.num_devices, target.num_hosts, target.wraps, target.topology) == (16, 2, (), ())
    assert target.usd_per_hour == pytest.approx(16 * 11.06)


def test_a_chip_of_two_devices_divides_its_facts_between_them():
    ironwood = OWN["tpu7x"]
    assert ironwood.devices_per_chip == 2
    assert ironwood.peak_flops["bfloat16"] == 1153.5e12
    assert ironwood.memory_bandwidth == 3690e9
    assert ironwood.memory_bytes == int(94.74 * 2**30)
    assert ironwood.link_bandwidth == 300e9
    assert ironwood.network_bandwidth == 6.25e9
    target = find_target("tpu7x:2x2x1", OWN)
    assert (target.num_chips, target.num_devices, target.usd_per_hour) == (4, 8, 48.0)


def test_gpus_without_bfloat16_or_tf32_run_it_at_their_float32_peak():
    v100 = OWN["v100"].peak_flops
    assert v100["bfloat16"] == v100["float32"] == 15.7e12
    assert v100["float16"] == 125e12


@pytest.mark.parametrize("accelerator", OWN.values(), ids=OWN)
def test_every_accelerator_has_positive_facts_and_sources(accelerator):
    a = accelerator
    assert {"bfloat16", "float16", "float32"} <= set(a.peak_flops)
    numbers = [*a.peak_flops.values(), a.vector_flops, a.memory_bytes, a.memory_bandwidth, a.cores, *a.matrix_tile]
    assert all(math.isfinite(number) and number > 0 for number in numbers)
    assert a.chips_per_host >= 1 and a.devices_per_chip in {1, 2}
    # A misplaced power of ten would leave these ranges.
    assert a.peak_flops["bfloat16"] >= a.vector_flops
    assert a.name == "cpu" or 1e12 < a.vector_flops < 2e14
    assert a.name == "cpu" or 1e11 < a.memory_bandwidth < 2e13
    assert 2**30 < a.memory_bytes < 2**42
    assert a.sources and all(a.sources)
    assert a.platform == "cpu" or (a.link_bandwidth > 1e10 and a.network_bandwidth > 1e9)
    assert hash(a) == hash(OWN[a.name])


# Units of a core and GHz of the data sheets' peaks, for GPUs that have no target_config.
UNITS = {"v100": (64, 1.53), "t4": (64, 1.59), "l4": (128, 2.04), "a10g": (128, 1.71), "rtx4090": (128, 2.52)}


@pytest.mark.parametrize("accelerator", [a for a in SOLD if a.platform == "cuda"], ids=lambda known: known.name)
def test_a_gpus_peak_is_its_cores_times_their_units_times_the_clock(accelerator):
    if accelerator.name in UNITS:
        units, ghz = UNITS[accelerator.name]
    else:
        config = accelerator.compile_options["target_config"]
        units, ghz = config["fpus_per_core"], config["clock_rate_ghz"]
    peak = 2 * accelerator.cores * units * ghz * 1e9
    assert accelerator.vector_flops == pytest.approx(peak, rel=0.015)


# Gigabytes as they are sold, of a device.
SOLD_GB = {
    "v2": 8, "v3": 16, "v4": 32, "v5e": 16, "v5p": 95, "v6e": 32, "tpu7x": 96, "v100": 16, "t4": 16, "l4": 24,
    "a10g": 24, "a100-40": 40, "a100-80": 80, "h100": 80, "h100-pcie": 80, "h200": 141, "b200": 180, "gb200": 186,
    "b300": 270, "gb300": 279, "rtx4090": 24, "rtx-pro-6000": 96,
}  # fmt: skip


@pytest.mark.parametrize("accelerator", SOLD, ids=lambda accelerator: accelerator.name)
def test_memory_is_somewhat_less_than_what_is_sold(accelerator):
    # Gigabytes are sold as 2**30 or as 10**9 bytes; none has more than the former, nor a twelfth less than that.
    share = accelerator.memory_bytes / 2**30 / SOLD_GB[accelerator.name]
    assert 11 / 12 < share < (1.01 if accelerator.name == "v5p" else 1.0)


def test_memory_and_cores_are_those_that_devices_report():
    mib = {"rtx4090": 24564, "h200": 143771, "b300": 275040, "l4": 23034, "a10g": 23028, "rtx-pro-6000": 97887}
    for name, size in mib.items():
        assert OWN[name].memory_bytes == pytest.approx(size * 2**20, rel=1e-5)
    assert OWN["t4"].memory_bytes == pytest.approx(15_843_721_216, rel=1e-5)
    assert OWN["l4"].cores == 7424 // 128


@pytest.mark.parametrize("accelerator", SOLD, ids=lambda accelerator: accelerator.name)
def test_every_price_has_a_basis_a_region_and_a_date(accelerator):
    if accelerator.usd_per_chip_hour is None:
        assert accelerator.price_note == ""
        assert slices(accelerator)[0].usd_per_hour is None
    else:
        assert re.fullmatch(r"(on demand|list|pay as you go).*, .+, 2026(-\d\d-\d\d)?", accelerator.price_note)


def test_the_file_of_facts_holds_nothing_that_is_not_read():
    read = set()

    class Noted(dict):
        def __getitem__(self, key):
            read.add(key)
            return super().__getitem__(key)

        def get(self, key, default=None):
            read.add(key)
            return super().get(key, default)

    from accelnet.planning.targets.accelerators import _accelerator

    text = (resources.files("accelnet.planning.targets") / "accelerators.toml").read_text()
    tables = tomllib.loads(text)["accelerators"]
    for name, facts in tables.items():
        _accelerator(name, Noted(facts), "accelerators.toml")
    assert {key for facts in tables.values() for key in facts} <= read


def test_slices_wrap_where_their_links_close_a_ring():
    wraps = {
        "v5e:4x4": (False, False), "v5e:8x16": (False, True), "v6e:16x16": (True, True), "v2:16x16": (True, True),
        "v3:16x16": (False, False), "v3:16x32": (False, True), "v4:2x2x4": (False,) * 3, "v4:4x4x4": (True,) * 3,
        "v5p:4x8x12": (True,) * 3, "tpu7x:2x4x4": (False,) * 3, "h100:8": (), "cpu": (),
    }  # fmt: skip
    assert {name: find_target(name, OWN).wraps for name in wraps} == wraps


def test_hosts_are_whole_up_to_their_chips_and_of_2x2_beyond():
    hosts = {"v5e:1x1": 1, "v5e:2x4": 1, "v5e:4x4": 4, "v6e:16x16": 64, "v4:2x2x1": 1, "v4:2x2x2": 2, "v2:4x4": 4}
    hosts |= {"h100:4": 1, "h100:8": 1, "h100:24": 3, "gb200:4": 1, "gb200:72": 18, "cpu": 1}
    assert {name: find_target(name, OWN).num_hosts for name in hosts} == hosts


# A file of the user's
