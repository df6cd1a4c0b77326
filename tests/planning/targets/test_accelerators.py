"""Facts of machines: those of the package against their sources, a file of the user's, and this CPU."""

import math
import re
import tomllib
from importlib import resources

import pytest

from accelnet.errors import UserError
from accelnet.planning.targets.accelerators import load_accelerators
from accelnet.planning.targets.listing import targets_table
from accelnet.planning.targets.target import (
    find_target,
    slices,
    this_machine,
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


def test_a_file_of_the_users_replaces_only_what_it_gives(tmp_path):
    path = write(
        tmp_path, "[accelerators.h100]\nusd_per_chip_hour = 2.5\n[accelerators.a100]\nmemory_gb_per_s = 1500\n"
    )
    mine = load_accelerators(path)
    assert mine["h100"].usd_per_chip_hour == 2.5
    assert mine["h100"].price_note == "from mine.toml"
    assert mine["h100"].sources == (*OWN["h100"].sources, str(path))
    assert mine["h100"].peak_flops == OWN["h100"].peak_flops
    assert mine["a100-40"].memory_bandwidth == 1500e9
    assert mine["a100-40"].price_note == OWN["a100-40"].price_note
    assert mine["b200"] == OWN["b200"]
    assert set(mine) == set(OWN)


def test_a_price_of_the_users_can_have_a_region_and_a_date(tmp_path):
    text = '[accelerators.v5e]\nusd_per_chip_hour = 0\nprice_basis = "grant"\nprice_date = "2027-01-02"\n'
    mine = load_accelerators(write(tmp_path, text))["v5e"]
    assert (mine.usd_per_chip_hour, mine.price_note) == (0, "grant, 2027-01-02")
    assert find_target("v5e:2x2", {"v5e": mine}).usd_per_hour == 0


def test_a_file_of_the_users_adds_an_accelerator(tmp_path):
    mine = load_accelerators(write(tmp_path, f'[accelerators.l40s]\n{GPU}\naliases = ["ada"]\n'))
    target = find_target("4xada", mine)
    assert (target.name, target.accelerator.title, target.usd_per_hour) == ("l40s:4", "NVIDIA L40S", None)
    assert target.accelerator.peak_flops["float32"] == 91.6e12
    assert "l40s" in targets_table(mine)
    assert [size for (size,) in target.accelerator.sizes][:5] == [1, 2, 4, 8, 16]


def test_a_file_of_the_users_can_sell_other_slices_and_describe_a_gpu_to_xla(tmp_path):
    text = '[accelerators.v5p]\nsizes = ["8x8x12"]\n[accelerators.l4.target_config]\n'
    text += "cuda_compute_capability = { major = 8, minor = 9 }\nclock_rate_ghz = 2.04\nfpus_per_core = 128\n"
    text += "threads_per_core_limit = 1536\nshared_memory_per_core = 102400\nshared_memory_per_block_optin = 101376\n"
    mine = load_accelerators(write(tmp_path, text + "l2_cache_size = 50331648\n"))
    assert find_target("v5p:8x8x12", mine).wraps == (True, True, True)
    assert "major: 8 minor: 9" in find_target("l4", mine).topology_request()["kwargs"]["target_config"]


def test_the_environment_names_a_file_and_an_argument_goes_first(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELNET_TARGETS", str(write(tmp_path, "[accelerators.h100]\nusd_per_chip_hour = 2.5\n")))
    assert find_target("h100").usd_per_hour == 2.5
    other = tmp_path / "other.toml"
    other.write_text("[accelerators.h100]\nusd_per_chip_hour = 3\n")
    assert load_accelerators(other)["h100"].usd_per_chip_hour == 3


def test_the_cpu_can_be_described_too(tmp_path):
    mine = load_accelerators(write(tmp_path, "[accelerators.cpu]\nmemory_gb_per_s = 40\nvector_fp32_tflops = 0.5\n"))
    target = this_machine(accelerators=mine)
    assert target.accelerator.memory_bandwidth == 40e9
    assert target.accelerator.peak_flops["float32"] == target.accelerator.peak_flops["bfloat16"] == 0.5e12


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[accelerators.h100\n", "expected TOML in UTF-8: "),
        ("", "holds nothing, expected [accelerators.NAME] tables alone"),
        ("[h100]\ncores = 1\n", "holds h100, expected [accelerators.NAME] tables alone"),
        ("accelerators = 3\n", "expected [accelerators.NAME] tables alone"),
        ("[accelerators]\nh100 = 3\n", "[accelerators] holds 'h100', expected tables"),
        ("[accelerators.H100]\n", "[accelerators] holds 'H100', expected tables, named in small letters"),
        ("[accelerators.h100]\nprice = 3\n", "[accelerators.h100] has 'price', expected one of title, "),
        ("[accelerators.h100]\ncores = 0\n", "[accelerators.h100] cores is 0, expected a whole number, at least 1"),
        ("[accelerators.h100]\ncores = true\n", "cores is True, expected a whole number"),
        ("[accelerators.h100]\nmemory_gb_per_s = '3'\n", "memory_gb_per_s is '3', expected a positive number"),
        ("[accelerators.h100]\nmemory_gb_per_s = nan\n", "memory_gb_per_s is nan, expected a positive number"),
        ("[accelerators.h100]\nusd_per_chip_hour = -1\n", "usd_per_chip_hour is -1, expected a number, at least 0"),
        ("[accelerators.h100]\nplatform = 'gpu'\n", "platform is 'gpu', expected one of tpu, cuda, cpu"),
        ("[accelerators.h100]\nprice_date = 2026-01-01\n", "price_date is datetime.date(2026, 1, 1), expected a text"),
        ("[accelerators.h100]\nsizes = ['2x2']\n", "[accelerators.h100] sizes is ['2x2'], expected a list of slices"),
        ("[accelerators.v5e]\nsizes = [4]\n", "[accelerators.v5e] sizes is [4], expected a list of slices"),
        ("[accelerators.v5e]\nsizes = []\n", "sizes is [], expected a list of slices"),
        ("[accelerators.v5e]\nsizes = ['2by2']\n", "sizes is ['2by2'], expected a list of slices"),
        ("[accelerators.v5e]\nmatrix_tile = [8, 8]\n", "matrix_tile is [8, 8], expected a list of 3 whole numbers"),
        ("[accelerators.l4.target_config]\nfpus_per_core = 8\n", "lacks target_config.cuda_compute_capability, "),
        ("[accelerators.new]\ntitle = 'New'\n", "[accelerators.new] lacks platform, vector_fp32_tflops, memory_gib"),
        (f"[accelerators.new]\n{GPU.replace('peak_bf16_tflops', 'peak_fp64_tflops')}", "lacks peak_bf16_tflops: give"),
        (f"[accelerators.new]\n{GPU.replace('cuda', 'tpu')}", "[accelerators.new] lacks sizes"),
        (f"[accelerators.new]\n{GPU}aliases = ['h100']\n", "'h100' names both h100 and new, expected one"),
    ],
)  # fmt: skip
def test_a_mistake_in_the_users_file_is_one_message_that_names_file_table_and_field(tmp_path, text, message):
    path = write(tmp_path, text)
    with pytest.raises(UserError) as caught:
        load_accelerators(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)


def test_a_file_that_is_missing_a_folder_or_no_text_is_a_mistake(tmp_path):
    for path in (tmp_path / "missing.toml", tmp_path):
        with pytest.raises(UserError, match="cannot be read as a file of targets"):
            load_accelerators(path)
    path = tmp_path / "binary.toml"
    for content in (b"\xff\xfe", b"a = " + b"[" * 100_000, b"a = " + b"9" * 100_000):
        path.write_bytes(content)
        with pytest.raises(UserError, match="expected TOML in UTF-8"):
            load_accelerators(str(path))
