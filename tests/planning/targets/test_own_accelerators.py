"""Accelerators that users describe in files of their own."""

import pytest

from accelnet.errors import UserError
from accelnet.planning.targets.accelerators import load_accelerators
from accelnet.planning.targets.listing import targets_table
from accelnet.planning.targets.target import find_target, this_machine
from tests.planning.targets.test_accelerators import GPU, OWN, write


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
