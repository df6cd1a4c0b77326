"""`accelnet doctor`: each fault is named with a remedy."""

import json
from dataclasses import replace

import pytest

from accelnet.cli.doctor import examined, table, this_machine
from accelnet.cli.tool import tool


@pytest.fixture(scope="module")
def machine():
    return this_machine()


def found(machine, name):
    return [check for check in examined(machine) if check.name == name]


def test_this_machine_is_well(machine, capsys):
    problems = [
        check for check in examined(machine) if check.state == "problem" and check.name not in ("disk", "kernels")
    ]
    assert problems == []
    tool(["doctor", "--json"])
    names = {check["name"] for check in json.loads(capsys.readouterr().out.splitlines()[-1])["checks"]}
    assert {"python", "jax", "device", "cores", "memory", "kernels", "cache", "disk", "clock"} <= names


def test_an_accelerator_that_is_not_used_is_named(machine, tmp_path):
    (tmp_path / "nvidia0").touch()
    versions = {"jax": "0.10.2", "jaxlib": "0.10.2"}
    gpu = replace(machine, devices=tmp_path, platform="cpu", version=versions.get, environment={})
    (check,) = found(gpu, "accelerator")
    assert check.state == "problem" and check.remedy == 'pip install "accelnet[cuda13]"'
    (check,) = found(replace(gpu, environment={"JAX_PLATFORMS": "cpu"}), "accelerator")
    assert check.state == "note" and "unset it" in check.remedy
    old = replace(gpu, version=(versions | {"jax-cuda13-plugin": "0.9.0"}).get)
    assert found(old, "CUDA plugin")[0].remedy == 'pip install "jax[cuda13]==0.10.2"'
    assert "PROBLEM" in table(examined(old)) and "to mend" in table(examined(old))


def test_packages_that_do_not_fit_and_a_platform_that_cannot_start_are_named(machine):
    apart = replace(machine, version={"jax": "0.10.2", "jaxlib": "0.10.1"}.get)
    assert found(apart, "jax")[0].remedy.startswith("their versions differ: pip install")
    (check,) = found(replace(machine, platform=None, error="jax finds no device"), "device")
    assert (check.state, check.found) == ("problem", "jax finds no device")
