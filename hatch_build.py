"""Builds wheels that carry the CPU kernels, where ACCELNET_WHEEL names their platform: `bash scripts/wheels.sh`."""

import importlib.util
import os
import re
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

KERNELS = Path(__file__).parent / "accelnet" / "ops" / "kernels"


class KernelsHook(BuildHookInterface):
    """Compile the kernels for each kind of processor that a platform has, with the compiler of the package ziglang.

    It compiles for other architectures too, and for the C library of the platform's name.
    """

    PLUGIN_NAME = "custom"

    def dependencies(self) -> list[str]:
        """Return what a build needs beside hatchling: headers of the oldest jax, which newer ones accept."""
        return ["jax>=0.10,<0.11", "ziglang>=0.13"] if os.environ.get("ACCELNET_WHEEL") else []

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and put the libraries and the platform into the wheel."""
        tag = os.environ.get("ACCELNET_WHEEL")
        if not tag or version == "editable":
            return
        found = re.fullmatch(r"manylinux_(2)_(\d+)_(x86_64|aarch64)", tag)
        if found is None:
            raise ValueError(f"ACCELNET_WHEEL is {tag!r}, expected a platform such as manylinux_2_28_x86_64")
        major, minor, machine = found.groups()
        compiler, shipped = _part("compiler"), _part("shipped")
        import jax.ffi

        self._directory = tempfile.TemporaryDirectory(prefix="accelnet-wheel-")
        command = compiler.packaged_compiler()
        if command is None:
            raise ValueError("a wheel with kernels is compiled by the package ziglang, which is not installed")
        command = (*command, "-target", f"{machine}-linux-gnu.{major}.{minor}")
        for name, kind in shipped.KINDS.items():
            if kind.machine == machine:
                self.app.display_info(f"compiling the kernels for {name}")
                output = Path(self._directory.name) / f"{name}.so"
                compiler.compile_library(command, jax.ffi.include_dir(), kind.march, output)
                build_data["force_include"][str(output)] = f"accelnet/ops/kernels/shipped/{name}.so"
        build_data["pure_python"], build_data["tag"] = False, f"py3-none-{tag}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove what was compiled."""
        if hasattr(self, "_directory"):
            self._directory.cleanup()


def _part(name: str) -> ModuleType:
    """Import a file of the kernels alone: accelnet itself needs packages that no build has."""
    spec = importlib.util.spec_from_file_location(name, KERNELS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
