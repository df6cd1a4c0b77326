import importlib.util
import json
import math
import os
import re
import subprocess
import sys
import tomllib
from importlib import resources
from types import SimpleNamespace

import pytest

from accelnet.errors import UserError
from accelnet.planning.listing import targets_table
from accelnet.planning.machine import cpu_facts, load_accelerators
from accelnet.planning.targets import (
    DEFAULT_TARGETS,
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


@pytest.fixture(autouse=True)
def no_file_of_the_users(monkeypatch):
    monkeypatch.delenv("ACCELNET_TARGETS", raising=False)


def write(folder, text):
    path = folder / "mine.toml"
    path.write_text(text)
    return path


# Names


@pytest.mark.parametrize(
    ("typed", "canonical"),
    [
        ("v5e", "v5e:1x1"),
        ("v5e:4x4", "v5e:4x4"),
        ("v5e:4x2", "v5e:2x4"),
        ("v5e:16", "v5e:4x4"),
        ("v5e-16", "v5e:4x4"),
        ("v5litepod-16", "v5e:4x4"),
        ("tpu-v5e:2x2", "v5e:2x2"),
        ("Cloud TPU v5e", "v5e:1x1"),
        ("TPU v5 lite", "v5e:1x1"),
        ("v6e-8", "v6e:2x4"),
        ("trillium:2x2", "v6e:2x2"),
        ("V5P-8", "v5p:2x2x1"),
        ("v5p:8", "v5p:2x2x2"),
        ("v5p:2x2", "v5p:2x2x1"),
        ("v4-8", "v4:2x2x1"),
        ("v3-32", "v3:4x4"),
        ("v2-8", "v2:2x2"),
        ("tpu7x:2x2x1", "tpu7x:2x2x1"),
        ("7x:2x2x1", "tpu7x:2x2x1"),
        ("7x : 2x2x1", "tpu7x:2x2x1"),
        ("tpu7x-8", "tpu7x:2x2x1"),
        ("ironwood", "tpu7x:2x2x1"),
        ("h100", "h100"),
        ("h100:1", "h100"),
        ("H100:8", "h100:8"),
        ("h100x8", "h100:8"),
        ("h100-8", "h100:8"),
        ("8xh100", "h100:8"),
        ("8 x H100", "h100:8"),
        ("8×NVIDIA H100", "h100:8"),
        ("H100_PCIe:2", "h100-pcie:2"),
        ("a100", "a100-40"),
        ("a100-40gb", "a100-40"),
        ("A100 80GB", "a100-80"),
        ("a100-80:4", "a100-80:4"),
        ("a10g x 2", "a10g:2"),
        ("RTX 4090", "rtx4090"),
        ("rtx4090x2", "rtx4090:2"),
        ("2x4090", "rtx4090:2"),
        ("RTX PRO 6000", "rtx-pro-6000"),
        ("gb200", "gb200:4"),
        ("gb200:72", "gb200:72"),
        ("CPU", "cpu"),
    ],
)
def test_a_name_is_understood_as_people_type_it(typed, canonical):
    target = find_target(typed, OWN)
    assert target.name == canonical
    assert find_target(canonical, OWN) == target


@pytest.mark.parametrize("accelerator", OWN.values(), ids=OWN)
def test_every_size_that_is_sold_is_found_by_its_name_and_in_order(accelerator):
    sold = slices(accelerator)
    assert [find_target(target.name, OWN) for target in sold] == sold
    chips = [target.num_chips for target in sold]
    assert chips == sorted(set(chips))
    if accelerator.name != "cpu":
        assert [find_target(f"{accelerator.name}:{number}", OWN) for number in chips] == sold


def test_every_accelerator_type_of_the_cloud_is_its_slice():
    # Number of the type, of chips: TensorCores are counted up to v5p and for 7x, chips for v5e and v6e.
    types = {"v2-8": 4, "v3-8": 4, "v4-8": 4, "v4-4096": 2048, "v5p-8": 4, "v5p-12288": 6144, "v5litepod-1": 1}
    types |= {"v5litepod-4": 4, "v5litepod-256": 256, "v6e-1": 1, "v6e-256": 256, "tpu7x-8": 4, "tpu7x-4096": 2048}
    assert {name: find_target(name, OWN).num_chips for name in types} == types


def test_the_default_targets_are_canonical_and_priced():
    targets = [find_target(name, OWN) for name in DEFAULT_TARGETS]
    assert tuple(target.name for target in targets) == DEFAULT_TARGETS
    assert all(target.usd_per_hour for target in targets)


@pytest.mark.parametrize(
    ("typed", "near"),
    [
        ("v5x:2x2", "v5e"),
        ("v5", "v5e"),
        ("h1000:8", "h100"),
        ("rtx5090", "rtx4090"),
        ("8xh200x", "h200"),
        ("2x v5e:4x4", "v5e"),
        ("v5litepod16", "v5e"),
    ],
)
def test_an_unknown_name_is_answered_with_names_that_are_near(typed, near):
    with pytest.raises(UserError) as caught:
        find_target(typed, OWN)
    assert str(caught.value).startswith(f"{typed!r} is no target that is known (did you mean ")
    assert near in re.split(r"[ ?]", str(caught.value).partition("did you mean ")[2])
    assert "the verb `targets` lists them" in str(caught.value)


@pytest.mark.parametrize("typed", ["", "zzzz", ":", "8", "x", "v5e:", "v5e:2x2x", "-"])
def test_a_name_that_resembles_nothing_gives_one_message(typed):
    with pytest.raises(UserError, match="is no target that is known"):
        find_target(typed, OWN)


@pytest.mark.parametrize(
    ("typed", "near"),
    [
        ("v5e:32x16", "v5e:16x16 (256 chips)"),
        ("v5e:3x3", "v5e:2x4 (8 chips) or v5e:4x4 (16 chips)"),
        ("v5e:1x16", "v5e:4x4 (16 chips) or v5e:4x8 (32 chips)"),
        ("v5e-3", "v5e:1x1 (1 chip) or v5e:2x2 (4 chips)"),
        ("v5p-6", "v5p:2x2x1 (4 chips)"),
        ("v5p-9", "v5p:2x2x1 (4 chips) or v5p:2x2x2 (8 chips)"),
        ("v5p:1x1x1", "v5p:2x2x1 (4 chips)"),
        ("h100:0", "h100 (1 chip)"),
        ("h100:3", "h100:2 (2 chips) or h100:4 (4 chips)"),
        ("h100:12", "h100:8 (8 chips) or h100:16 (16 chips)"),
        ("h100:80", "h100:72 (72 chips)"),
        ("h100:2x4", "h100:8 (8 chips) or h100:16 (16 chips)"),
        ("gb200:6", "gb200:4 (4 chips) or gb200:8 (8 chips)"),
        ("cpu:8", "cpu (1 chip)"),
    ],
)
def test_a_size_nobody_sells_is_answered_with_those_below_and_above(typed, near):
    with pytest.raises(UserError, match=re.escape(f"is sold in, expected such as {near}: `targets ")):
        find_target(typed, OWN)


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

    from accelnet.planning.machine import _accelerator

    text = (resources.files("accelnet.planning") / "accelerators.toml").read_text()
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


# Requests to compile


def test_a_tpu_is_requested_with_the_options_its_compiler_needs():
    requests = {
        "v5e:2x2": {},
        "v5e:1x1": {"chips_per_host_bounds": [1, 1, 1]},
        "v6e:2x4": {"chips_per_host_bounds": [2, 4, 1]},
        "v5e:4x4": {},
        "v4:2x2x1": {"chip_config_name": "megacore"},
        "tpu7x:4x4x4": {},
    }
    for name, kwargs in requests.items():
        assert find_target(name, OWN).topology_request() == {"platform": "tpu", "topology_name": name, "kwargs": kwargs}


def test_a_gpu_is_requested_by_its_description():
    request = find_target("h100:16", OWN).topology_request()
    assert (request["platform"], request["kwargs"]["topology"]) == ("cuda", "1x2x8")
    text = request["kwargs"]["target_config"]
    assert "cuda_compute_capability { major: 9 minor: 0 feature_extension: ACCELERATED_FEATURES }" in text
    assert "core_count: 132 memory_bandwidth: 3352000000000 " in text
    assert text.startswith("gpu_device_info { ") and text.endswith(' } platform_name: "CUDA"')


def test_what_cannot_be_compiled_for_says_so():
    for name in ("t4", "l4", "a10g", "v100", "rtx4090"):
        with pytest.raises(UserError, match="nothing can be compiled for it; plan without compiling"):
            find_target(name, OWN).topology_request()


def test_every_request_survives_json():
    targets = [target for known in OWN.values() if known.compile_options is not None for target in slices(known)]
    requests = [target.topology_request() for target in targets]
    assert json.loads(json.dumps(requests)) == requests


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
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="expected TOML in UTF-8"):
        load_accelerators(str(path))


# The machine at hand


def test_the_machine_at_hand_is_a_cpu_here():
    target = this_machine()
    assert (target.name, target.num_devices, target.num_hosts, target.usd_per_hour) == ("cpu", 1, 1, None)
    assert target.accelerator.cores <= (os.cpu_count() or 1)
    assert target.topology_request() == {"platform": "cpu", "topology_name": "", "kwargs": {}}


@pytest.mark.parametrize(("flags", "lanes"), [("fma avx2 avx512f", 16), ("fma avx2", 8), ("sse2", 4)])
def test_the_cpus_peak_is_cores_times_clock_times_lanes_times_four(flags, lanes):
    cpuinfo = "".join(
        f"processor : {number}\nmodel name : Made Up\ncpu MHz : {2000 + number}\nphysical id : 0\n"
        f"core id : {number // 2}\nflags : fpu {flags}\n\n"
        for number in range(8)
    )
    facts = cpu_facts(cpuinfo, 8, 2**34)
    assert facts["cores"] == 4  # of two threads each
    assert facts["vector_fp32_tflops"] == pytest.approx(4 * 2.007e9 * lanes * 4 / 1e12)
    assert facts["memory_gib_per_device"] == 16
    assert facts["memory_gb_per_s"] == 40
    assert cpu_facts(cpuinfo, 1, 2**34)["cores"] == 1


def test_a_cpu_that_tells_nothing_is_described_too():
    facts = cpu_facts("", 3, 2**33)
    assert (facts["cores"], facts["vector_fp32_tflops"]) == (3, 3 * 2.5 * 4 * 4 / 1e3)


def device(platform, kind, **more):
    return SimpleNamespace(platform=platform, device_kind=kind, **more)


def test_a_tpu_slice_at_hand_is_recognised():
    chips = [device("tpu", "TPU v5 lite", coords=(x, y, 0)) for y in range(4) for x in range(2)]
    assert this_machine(chips, OWN) == find_target("v5e:2x4", OWN)
    cores = [device("tpu", "TPU7x", coords=(x, y, 0), slice_index=s) for s in (0, 1) for y in (0, 1) for x in (0, 1)]
    assert this_machine([core for core in cores for _ in range(2)], OWN) == find_target("tpu7x:2x2x1", OWN)


def test_gpus_at_hand_are_recognised_in_any_number():
    gpus = [device("gpu", "NVIDIA H100 80GB HBM3")] * 3
    target = this_machine(gpus, OWN)
    assert (target.name, target.num_devices, target.num_hosts) == ("h100:3", 3, 1)
    assert this_machine(gpus[:1], OWN) == find_target("h100", OWN)


def test_a_device_that_is_not_known_is_one_message():
    with pytest.raises(UserError, match=r"the devices at hand are 'Quantum 1', expected a kind that is known"):
        this_machine([device("gpu", "Quantum 1")], OWN)


def test_every_accelerator_is_recognised_by_its_kinds_alone():
    kinds = [kind.lower() for known in SOLD for kind in known.device_kinds]
    assert all(known.device_kinds for known in SOLD)
    assert len(set(kinds)) == len(kinds)


# The table


@pytest.mark.parametrize("family", [None, "tpu", "GPU", "v5", "h100", "cpu"])
def test_the_table_is_at_most_100_columns_wide_and_names_its_family(family):
    lines = targets_table(OWN, family).splitlines()
    assert max(map(len, lines)) <= 100
    names = {line.split(" ")[0] for line in lines[2:-1]} - {""}
    families = {
        None: set(OWN),
        "tpu": {known.name for known in SOLD if known.platform == "tpu"},
        "GPU": {known.name for known in SOLD if known.platform == "cuda"},
        "v5": {"v5e", "v5p"},
        "h100": {"h100", "h100-pcie"},
        "cpu": {"cpu"},
    }
    assert names == families[family]


def test_the_table_shows_memory_peak_bandwidth_price_and_its_date():
    [line] = [line for line in targets_table(OWN).splitlines() if line.startswith("v5e ")]
    assert line.split() == ["v5e", "1x1,", "2x2", "…", "16x16", "15.75", "197.0", "819", "1.20", "2026-09-17"]
    assert "4x4x20" in targets_table(OWN, "v5p")


def test_a_family_that_does_not_exist_is_one_message():
    with pytest.raises(UserError, match="'w' begins no name of an accelerator, expected tpu, gpu or one of v2, v3"):
        targets_table(OWN, "w")


# With XLA's compilers

ASK = """
import json, sys
from jax.experimental import topologies
for request in json.load(sys.stdin):
    described = topologies.get_topology_desc(request["topology_name"], request["platform"], **request["kwargs"])
    devices = described.devices
    print("counted", len(devices), len({device.process_index for device in devices}), devices[0].device_kind)
"""


def has_cuda_compiler():
    return any(importlib.util.find_spec(f"jax_plugins.xla_cuda{line}") for line in (12, 13))


@pytest.mark.plan
@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_the_compiler_knows_every_size_that_is_sold_with_as_many_devices_and_hosts(platform):
    if platform == "tpu" and importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu is not installed: pip install accelnet[plan-tpu]")
    if platform == "cuda" and not has_cuda_compiler():
        pytest.skip("XLA's CUDA compiler is not installed: pip install accelnet[plan-cuda]")
    targets = [
        target for known in OWN.values() if known.platform == platform and known.compile_options
        for target in slices(known)
    ]  # fmt: skip
    assert targets
    environment = {
        "JAX_PLATFORMS": "cpu",
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", ASK],
        env=os.environ | environment,
        input=json.dumps([target.topology_request() for target in targets]),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    counted = [line.split(" ", 3)[1:] for line in done.stdout.splitlines() if line.startswith("counted")]
    assert [(int(devices), int(hosts)) for devices, hosts, _ in counted] == [
        (target.num_devices, target.num_hosts) for target in targets
    ]
    if platform == "tpu":  # a GPU that is not here has no kind
        assert all(
            kind in target.accelerator.device_kinds for (_, _, kind), target in zip(counted, targets, strict=True)
        )
