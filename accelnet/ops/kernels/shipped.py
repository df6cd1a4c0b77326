"""Kernels that a wheel carries, compiled for kinds of processors; one from the sources carries none.

The hook that builds wheels (hatch_build.py) takes this file by itself, where nothing but Python is there.
"""

import platform
import re
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

DIRECTORY = Path(__file__).parent / "shipped"


class Kind(NamedTuple):
    """Processors that a shipped library is for.

    Attributes:
        machine: Architecture, as `platform.machine()` names it.
        march: What compilers call processors that have just this; empty: all of the architecture.
        needs: Names in /proc/cpuinfo of what the library may use.
    """

    machine: str
    march: str
    needs: frozenset[str]


_AVX2 = frozenset(("avx2", "fma", "f16c", "bmi1", "bmi2", "abm", "movbe"))
_AVX512 = _AVX2 | {"avx512f", "avx512cd", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni"}
# The best that a processor can run comes first.
KINDS = {
    "avx512_bf16": Kind("x86_64", "cooperlake", _AVX512 | {"avx512_bf16"}),
    "avx512_vnni": Kind("x86_64", "cascadelake", _AVX512),
    "avx2": Kind("x86_64", "haswell", _AVX2),
    "neon": Kind("aarch64", "", frozenset({"asimd"})),
}


def shipped_kinds(directory: Path = DIRECTORY, flags: Collection[str] | None = None) -> list[str]:
    """Return the kinds of libraries of a wheel that a processor can run, the best one first.

    Args:
        directory: Directory of the libraries, KIND.so each.
        flags: What the processor has. None: this machine's.

    Example:
        >>> shipped_kinds(Path("nowhere"))
        []
    """
    has = set(processor_flags() if flags is None else flags)
    return [
        name for name, kind in KINDS.items()
        if kind.machine == platform.machine() and kind.needs <= has and (directory / f"{name}.so").exists()
    ]  # fmt: skip


def processor_flags() -> list[str]:
    """Return what the processor of this machine has, as /proc/cpuinfo names it; nothing where there is no such file.

    Example:
        >>> len(processor_flags()) != 1
        True
    """
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return []
    found = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    return found[1].split() if found else []
