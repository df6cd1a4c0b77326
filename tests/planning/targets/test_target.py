"""Targets: names as people type them, sizes that are sold, requests to compilers, the table of them."""

import json
import re
import subprocess
import sys

import pytest

from accelnet.errors import UserError
from accelnet.planning.compiled.process import compiler_environment
from accelnet.planning.targets.accelerators import load_accelerators
from accelnet.planning.targets.listing import targets_table
from accelnet.planning.targets.target import (
    DEFAULT_TARGETS,
    find_target,
    slices,
)
from tests.planning.conftest import needs

OWN = load_accelerators("")
SOLD = [accelerator for accelerator in OWN.values() if accelerator.name != "cpu"]


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


# The machine at hand


# The table


@pytest.mark.parametrize("family", [None, "tpu", "GPU", "v5", "h100", "cpu"])
def test_the_table_is_at_most_100_columns_wide_and_names_its_family(family):
    lines = targets_table(OWN, family).splitlines()
    assert max(map(len, lines)) <= 100
    names = {line.split(" ")[0] for line in lines[2:-1] if not line.startswith("sizes of")} - {""}
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


@pytest.mark.plan
@pytest.mark.parametrize("platform", [pytest.param(name, marks=needs(name)) for name in ("tpu", "cuda")])
def test_the_compiler_knows_every_size_that_is_sold_with_as_many_devices_and_hosts(platform):
    targets = [
        target for known in OWN.values() if known.platform == platform and known.compile_options
        for target in slices(known)
    ]  # fmt: skip
    assert targets
    done = subprocess.run(
        [sys.executable, "-c", ASK],
        env=compiler_environment(platform, 1),
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
