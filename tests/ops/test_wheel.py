"""Wheels that carry the kernels: for which processors, and that they serve where there is no compiler."""

import os
import platform
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from accelnet import cache
from accelnet.ops import kernels
from accelnet.ops.kernels.shipped import KINDS, processor_flags, shipped_kinds

pytestmark = pytest.mark.cpu

ROOT = Path(__file__).resolve().parents[2]
AVX512 = KINDS["avx512_vnni"].needs


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the kinds are of x86-64")
@pytest.mark.parametrize(
    ("flags", "kinds"),
    [
        (KINDS["avx512_bf16"].needs, ["avx512_bf16", "avx512_vnni", "avx2"]),
        (AVX512, ["avx512_vnni", "avx2"]),
        (AVX512 - {"avx512_vnni"}, ["avx2"]),
        ({"avx2"}, []),
        ({"asimd"}, []),
    ],
)
def test_a_processor_takes_the_best_library_that_it_can_run(tmp_path, flags, kinds):
    for name in KINDS:
        (tmp_path / f"{name}.so").write_bytes(b"")
    assert shipped_kinds(tmp_path, flags) == kinds
    (tmp_path / "avx2.so").unlink()
    assert shipped_kinds(tmp_path, flags) == [kind for kind in kinds if kind != "avx2"]


# Takes no time: its library is the one that this machine's own compiler made.
ZIGLANG = """
import shutil, sys
assert sys.argv[1] == "c++" and "-target" in sys.argv
assert sys.argv[sys.argv.index("-target") + 1] == "x86_64-linux-gnu.2.28"
shutil.copy({content!r}, sys.argv[sys.argv.index("-o") + 1])
"""
USES = """
import accelnet
from accelnet.ops.kernels import library
print(accelnet.__file__)
print(library.load(), library.origin())
"""


@pytest.fixture(scope="module")
def content():
    if not kernels.load():
        pytest.skip("no C++ compiler here, so there are no kernels")
    directory = cache.private_directory("kernels")
    assert directory is not None
    return max(directory.glob("*-*.so"), key=lambda path: path.stat().st_mtime)


def build(tmp_path, content, tag):
    (tmp_path / "packages" / "ziglang").mkdir(parents=True)
    (tmp_path / "packages" / "ziglang" / "__main__.py").write_text(ZIGLANG.format(content=str(content)))
    code = f"from hatchling.build import build_wheel; print(build_wheel({str(tmp_path)!r}))"
    env = os.environ | {"PYTHONPATH": str(tmp_path / "packages"), "ACCELNET_WHEEL": tag}
    return subprocess.run([sys.executable, "-c", code], env=env, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.skipif(
    platform.machine() != "x86_64" or not KINDS["avx2"].needs <= set(processor_flags()),
    reason="needs a processor with AVX2",
)
def test_a_wheel_with_kernels_needs_no_compiler(tmp_path, content):
    done = build(tmp_path, content, "manylinux_2_28_x86_64")
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.endswith("-py3-none-manylinux_2_28_x86_64.whl")
    with zipfile.ZipFile(wheel) as archive:
        carried = {Path(name).stem for name in archive.namelist() if name.endswith(".so")}
        archive.extractall(tmp_path / "installed")
    assert carried == {"avx512_bf16", "avx512_vnni", "avx2"}
    env = {name: value for name, value in os.environ.items() if name not in ("CXX", "ACCELNET_KERNELS")}
    env |= {"PYTHONPATH": str(tmp_path / "installed"), "PATH": "/nowhere", "XDG_CACHE_HOME": str(tmp_path / "cache")}
    used = subprocess.run([sys.executable, "-c", USES], env=env, cwd=tmp_path, capture_output=True, text=True)
    best = shipped_kinds(tmp_path / "installed" / "accelnet" / "ops" / "kernels" / "shipped")[0]
    where, found = used.stdout.splitlines()
    assert where.startswith(str(tmp_path)) and found == f"True the wheel's kernels for {best}", used.stderr
    assert not (tmp_path / "cache" / "accelnet" / "kernels").exists() and not used.stderr


def test_a_platform_that_is_none_is_refused(tmp_path, content):
    done = build(tmp_path, content, "linux")
    assert done.returncode and "ACCELNET_WHEEL is 'linux', expected a platform such as" in done.stderr
