"""Devices at hand are recognised as targets."""

import os
from types import SimpleNamespace

import pytest

from accelnet.errors import UserError
from accelnet.planning.targets.cpu import cpu_facts
from accelnet.planning.targets.target import find_target, this_machine
from tests.planning.targets.test_target import OWN, SOLD


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
