"""What the CPU of this machine can do, estimated from what the system says of it."""

import os
from pathlib import Path
from typing import Any

# A stated guess: what programs see of it varies with the number of channels by more than a factor of four.
_GB_PER_S_PER_CORE = 10.0


def this_cpu() -> dict[str, Any]:
    """Describe this machine's CPU as a table of accelerators.toml."""
    cpuinfo = Path("/proc/cpuinfo")
    num_cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return cpu_facts(cpuinfo.read_text(errors="replace") if cpuinfo.exists() else "", num_cpus, memory_bytes)


def cpu_facts(cpuinfo: str, num_cpus: int, memory_bytes: int) -> dict[str, Any]:
    r"""Estimate what a CPU can do, as a table of accelerators.toml.

    The peak is a model, cores x clock x lanes x 4: two fused multiply-adds a cycle on vectors of 16 float32 numbers
    with AVX-512, of 8 with AVX2, else of 4. The bandwidth is a guess, 10 GB/s a core.

    Args:
        cpuinfo: Text of /proc/cpuinfo; "" where there is none, which gives 2.5 GHz and vectors of 4.
        num_cpus: Number of CPUs that the process may use, hyperthreads among them.
        memory_bytes: Memory of the machine.

    Example:
        >>> cpu_facts("cpu MHz : 3000\nflags : fma avx2", 2, 2**30)["vector_fp32_tflops"]
        0.192
    """
    fields: dict[str, list[str]] = {}
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), []).append(value.strip())
    physical = set(zip(fields.get("physical id", []), fields.get("core id", []), strict=False))
    cores = min(num_cpus, len(physical) or num_cpus)
    ghz = max(map(float, fields.get("cpu MHz", ["2500"]))) / 1e3
    flags = set(fields.get("flags", [""])[0].split())
    lanes = 16 if "avx512f" in flags else 8 if "avx2" in flags else 4
    tflops = round(cores * ghz * lanes * 4 / 1e3, 6)
    return {
        "title": f"this machine's CPU, {fields.get('model name', ['of no known model'])[0]}",
        "platform": "cpu",
        "vector_fp32_tflops": tflops,
        "peak_fp64_tflops": tflops / 2,
        "memory_gib_per_device": memory_bytes / 2**30,
        "memory_gb_per_s": cores * _GB_PER_S_PER_CORE,
        "cores": cores,
        "chips_per_host": 1,
        "sizes": [1],
        "sources": [f"a model: {cores} cores x {ghz:.2f} GHz x {lanes} lanes x 4; a guess: 10 GB/s a core"],
    }
