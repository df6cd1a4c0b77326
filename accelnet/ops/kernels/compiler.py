"""The compiler of the kernels: from kernels.cc to a library, for this processor or for one of a kind.

The hook that builds wheels (hatch_build.py) takes this file by itself, where nothing but Python is there.
"""

import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SOURCES = Path(__file__).parent
# Without -ffp-contract, products and sums stay apart; the warnings are those of XLA's own header.
FLAGS = ("-std=c++17", "-ffp-contract=fast", "-fPIC", "-w")
# Of kernels.cc: convolutions take 7 % less time at -O3, all else as much as at -O2, which compiles faster.
PARTS = {"1": "-O3", "2": "-O2"}


def find_compiler() -> tuple[str, ...] | None:
    """Return the command of the C++ compiler: $CXX, or one of the usual names, or that of the package ziglang; or None.

    Example:
        >>> command = find_compiler()
    """
    if os.environ.get("CXX"):
        return tuple(shlex.split(os.environ["CXX"]))
    found = next((path for name in ("c++", "g++", "clang++") if (path := shutil.which(name))), None)
    return (found,) if found else packaged_compiler()


def packaged_compiler() -> tuple[str, ...] | None:
    """Return the command of the C++ compiler that the package ziglang brings, or None.

    Example:
        >>> command = packaged_compiler()
    """
    return (sys.executable, "-m", "ziglang", "c++") if importlib.util.find_spec("ziglang") else None


def compile_library(compiler: Sequence[str], include_directory: str, march: str, output: Path) -> None:
    """Compile the kernels into a library, two parts side by side.

    Args:
        compiler: Command of the compiler.
        include_directory: Directory of XLA's headers, `jax.ffi.include_dir()`.
        march: Processor that the library is for, as the compiler's -march names it; empty: the architecture's least.
        output: File to write.

    Raises:
        OSError: if the command cannot be started.
        subprocess.SubprocessError: if it fails, with the end of what it says.

    Example:
        >>> compile_library(("true",), "/nowhere", "native", Path("kernels.so"))
    """
    with tempfile.TemporaryDirectory(prefix="parts-", dir=output.parent) as directory:
        processor = [f"-march={march}"] if march else []
        source = [*compiler, *FLAGS, *processor, f"-I{include_directory}", "-c", str(SOURCES / "kernels.cc")]
        objects = [f"{directory}/{part}.o" for part in PARTS]
        commands = [
            [*source, level, f"-DACCELNET_PART={part}", "-o", to]
            for (part, level), to in zip(PARTS.items(), objects, strict=True)
        ]
        with ThreadPoolExecutor(len(PARTS)) as side_by_side:
            list(side_by_side.map(output_of, commands))
        # The processor is not named again: ziglang would compile its C++ library for each.
        output_of([*compiler, "-shared", "-s", *objects, "-o", str(output)])


def output_of(command: Sequence[str]) -> str:
    """Run the compiler, which the user or the PATH names, and return what it prints.

    Raises:
        OSError: if the command cannot be started.
        subprocess.SubprocessError: if it fails, with the end of what it says.

    Example:
        >>> output_of(("true",))
        ''
    """
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)  # noqa: S603
    if done.returncode:
        raise subprocess.SubprocessError(f"{shlex.join(command)} ended with {done.returncode}\n{done.stderr[-2000:]}")
    return done.stdout
