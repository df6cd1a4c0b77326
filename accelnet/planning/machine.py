"""Facts of machines: what accelerators can do, from accelerators.toml and a file of the user's, and of this CPU."""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from accelnet.errors import UserError
from accelnet.planning.facts import FIELDS, REQUIRED, read_tables, replaced

ENVIRONMENT_VARIABLE = "ACCELNET_TARGETS"
_MOST_GPUS = 72
# A stated guess: what programs see of it varies with the number of channels by more than a factor of four.
_CPU_GB_PER_S_PER_CORE = 10.0
# What XLA's GpuTargetConfigProto needs: what is the same on every GPU since Pascal, and what a table has to say.
_CUDA_LIMITS = {
    "threads_per_block_limit": 1024,
    "threads_per_warp": 32,
    "shared_memory_per_block": 49152,
    "block_dim_limit_x": 2147483647,
    "block_dim_limit_y": 65535,
    "block_dim_limit_z": 65535,
    "registers_per_core_limit": 65536,
    "registers_per_block_limit": 65536,
}
_CUDA_FIELDS = (
    "cuda_compute_capability",
    "clock_rate_ghz",
    "fpus_per_core",
    "threads_per_core_limit",
    "shared_memory_per_core",
    "shared_memory_per_block_optin",
    "l2_cache_size",
)


@dataclass(frozen=True, kw_only=True)
class Accelerator:
    """Hold what one kind of accelerator can do. Conventions and sources are in accelerators.toml.

    Attributes:
        name: As typed: "v5e", "h100", "cpu".
        title: As sold: "Cloud TPU v5e".
        platform: "tpu", "cuda" or "cpu".
        aliases: Other names that people type.
        device_kinds: `jax.Device.device_kind` of such a device.
        devices_per_chip: JAX devices that a chip is.
        peak_flops: FLOP/s of a device by the operands' dtype, at JAX's default matmul precision: float32 is one
            bfloat16 pass on a TPU and tf32 on GPUs that have it. On V100 and T4, which emulate it, bfloat16 is the fp32
            peak. On TPUs float16 is taken to run as bfloat16. A dtype whose peak no source states is left out.
        vector_flops: FLOP/s of a device in elementwise float32 arithmetic. GPU: its fp32 peak. TPU: a model, 8 x 128
            lanes of 2 ALUs up to v4 and 4 from v5e on, at the clock that the matrix units' peak implies.
        memory_bytes: Of a device: on TPUs what the compiler gives a program, on GPUs all of it.
        memory_bandwidth: Bytes/s of a device.
        matrix_tile: (m, k, n), multiples that a product [m, k] x [k, n] is padded to.
        cores: That work side by side on the tiles of one product: a GPU's multiprocessors.
        link_bandwidth: Bytes/s of a device in one direction, all ICI links or NVLinks together; PCIe where there is no
            NVLink.
        num_links: ICI links of a chip: 4 in a 2D torus, 6 in a 3D one.
        link_domain: The most chips that the links join; 1 if none.
        network_bandwidth: Bytes/s of a device in one direction between hosts or slices.
        chips_per_host: The most chips of one host.
        usd_per_chip_hour: Price.
        price_note: Basis, region and date of the price.
        sources: Where the facts are from.
        compile_options: What `Target.topology_request` is made of: "topology_prefix" and "kwargs" of a TPU,
            "target_config" of a GPU, nothing for the CPU. None: nothing can be compiled for it.
        sizes: That are sold, ascending: slices of a TPU, numbers of GPUs.
        clock_hz: That the compiler's estimates in cycles count; None if it gives none.
        type_number_per_chip: What the number in an accelerator type counts per chip: 2 in v5p-8, which is 4 chips.

    Example:
        >>> v5e = load_accelerators()["v5e"]
        >>> v5e.peak_flops["bfloat16"], v5e.memory_bytes / 2**30, v5e.usd_per_chip_hour
        (197000000000000.0, 15.75, 1.2)
    """

    name: str
    title: str
    platform: str
    aliases: tuple[str, ...]
    device_kinds: tuple[str, ...]
    devices_per_chip: int
    peak_flops: Mapping[str, float] = field(hash=False)
    vector_flops: float
    memory_bytes: int
    memory_bandwidth: float
    matrix_tile: tuple[int, int, int]
    cores: int
    link_bandwidth: float | None
    num_links: int
    link_domain: int
    network_bandwidth: float | None
    chips_per_host: int
    usd_per_chip_hour: float | None
    price_note: str
    sources: tuple[str, ...]
    compile_options: Mapping[str, Any] | None = field(hash=False)
    sizes: tuple[tuple[int, ...], ...] = ((1,),)
    type_number_per_chip: int = 1
    clock_hz: float | None = None

    @property
    def usable_bytes(self) -> int:
        """Of a device's memory what a program can use: of a GPU's the share that JAX takes."""
        return int(self.memory_bytes * _memory_fraction()) if self.platform == "cuda" else self.memory_bytes


def _memory_fraction() -> float:
    """Read the share of a GPU's memory that JAX takes, 75 % unless the user says otherwise; both names are JAX's."""
    names = ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION")
    name, text = next(((name, text) for name in names if (text := os.environ.get(name))), ("", "0.75"))
    try:
        fraction = float(text)
    except ValueError:
        fraction = 0.0
    if not 0 < fraction <= 1:
        raise UserError(f"${name} is {text!r}, expected the share of a GPU's memory that JAX takes, such as 0.9")
    return fraction


def load_accelerators(extra: str | Path | None = None) -> dict[str, Accelerator]:
    """Read the accelerators that can be planned for: those of accelerators.toml, this machine's CPU, and the user's.

    A file of the user's has the layout of accelerators.toml. A table of a known accelerator replaces the fields it
    gives, `[accelerators.h100]` with `usd_per_chip_hour = 2.5`, and a new name adds one.

    Args:
        extra: the user's file. None: the one $ACCELNET_TARGETS names, if it is set. "": none.

    Returns:
        Accelerators by name.

    Raises:
        UserError: if the file cannot be read, or a field is unknown, missing or of the wrong kind.

    Example:
        >>> list(load_accelerators())[:4]
        ['v2', 'v3', 'v4', 'v5e']
    """
    own = resources.files("accelnet.planning") / "accelerators.toml"
    tables = read_tables(own.read_bytes(), own.name)
    tables["cpu"] = cpu_facts(*_read_machine())
    where = dict.fromkeys(tables, own.name)
    path = os.environ.get(ENVIRONMENT_VARIABLE) if extra is None else extra
    if path:
        canonical = {alias: name for name, facts in tables.items() for alias in facts.get("aliases", ())}
        try:
            content = Path(path).read_bytes()
        except OSError as error:
            raise UserError(f"{path}: cannot be read as a file of targets: {error.strerror}") from error
        for given_name, given in read_tables(content, str(path)).items():
            name = canonical.get(given_name, given_name)
            tables[name] = replaced(tables.get(name, {}), given, str(path))
            where[name] = str(path)
    accelerators = {name: _accelerator(name, facts, where[name]) for name, facts in tables.items()}
    taken: dict[str, str] = {}
    for name, accelerator in accelerators.items():
        for alias in (name, *accelerator.aliases):
            if taken.setdefault(alias, name) != name:
                raise UserError(f"{path}: {alias!r} names both {taken[alias]} and {name}, expected one: rename it")
    return accelerators


def cpu_facts(cpuinfo: str, num_cpus: int, memory_bytes: int) -> dict[str, Any]:
    r"""Estimate what a CPU can do, as a table of accelerators.toml.

    The peak is a model, cores x clock x lanes x 4: two fused multiply-adds a cycle on vectors of 16 float32 numbers
    with AVX-512, of 8 with AVX2, else of 4. The bandwidth is a guess, 10 GB/s a core.

    Args:
        cpuinfo: text of /proc/cpuinfo; "" where there is none, which gives 2.5 GHz and vectors of 4.
        num_cpus: that the process may use, hyperthreads among them.
        memory_bytes: of the machine.

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
        "memory_gb_per_s": cores * _CPU_GB_PER_S_PER_CORE,
        "cores": cores,
        "chips_per_host": 1,
        "sizes": [1],
        "sources": [f"a model: {cores} cores x {ghz:.2f} GHz x {lanes} lanes x 4; a guess: 10 GB/s a core"],
    }


def _read_machine() -> tuple[str, int, int]:
    cpuinfo = Path("/proc/cpuinfo")
    num_cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return cpuinfo.read_text(errors="replace") if cpuinfo.exists() else "", num_cpus, memory_bytes


def _accelerator(name: str, facts: dict[str, Any], path: str) -> Accelerator:
    missing = [key for key in REQUIRED if key not in facts]
    tpu, cpu = facts.get("platform") == "tpu", facts.get("platform") == "cpu"
    missing += ["sizes"] if tpu and "sizes" not in facts else []
    if not cpu and "peak_bf16_tflops" not in facts and (tpu or "peak_fp16_tflops" not in facts):
        missing.append("peak_bf16_tflops")
    if "target_config" in facts:
        missing += [f"target_config.{key}" for key in _CUDA_FIELDS if key not in facts["target_config"]]
    if missing:
        raise UserError(f"{path}: [accelerators.{name}] lacks {', '.join(missing)}: give what is missing")
    sizes = facts.get("sizes", [size for size in (1, 2, 4, 8) if size <= facts["chips_per_host"]])
    if isinstance(sizes[0], str) != tpu:
        raise UserError(f"{path}: [accelerators.{name}] sizes is {sizes}, expected {FIELDS['sizes'][0]}")
    if not tpu and not cpu:
        sizes = sizes + list(range(facts["chips_per_host"], _MOST_GPUS + 1, facts["chips_per_host"]))
    dims = {tuple(map(int, size.split("x"))) if isinstance(size, str) else (size,) for size in sizes}
    per_chip = facts.get("devices_per_chip", 1)
    links = facts.get("num_links", 1)
    link, network = facts.get("link_gb_per_s"), facts.get("network_gbit_per_s_per_host", None if cpu else 200.0)
    price = ("price_basis", "price_region", "price_date")
    return Accelerator(
        name=name,
        title=facts["title"],
        platform=facts["platform"],
        aliases=tuple(facts.get("aliases", ())),
        device_kinds=tuple(facts.get("device_kinds", ())),
        devices_per_chip=per_chip,
        peak_flops={dtype: peak * 1e12 / per_chip for dtype, peak in _peaks(facts, tpu).items() if peak is not None},
        vector_flops=facts["vector_fp32_tflops"] * 1e12 / per_chip,
        memory_bytes=int(facts["memory_gib_per_device"] * 2**30),
        memory_bandwidth=facts["memory_gb_per_s"] * 1e9 / per_chip,
        matrix_tile=tuple(facts.get("matrix_tile", (8, 128, 128) if tpu else (1, 1, 1) if cpu else (64, 32, 64))),
        cores=facts.get("cores", 1),
        link_bandwidth=None if link is None else link * 1e9 * links / per_chip,
        num_links=links,
        link_domain=facts.get("link_domain", 1),
        network_bandwidth=None if network is None else network * 1e9 / 8 / facts["chips_per_host"] / per_chip,
        chips_per_host=facts["chips_per_host"],
        usd_per_chip_hour=facts.get("usd_per_chip_hour"),
        price_note=", ".join(facts[key] for key in price if key in facts),
        sources=tuple(facts["sources"]),
        compile_options=_compile_options(facts),
        sizes=tuple(sorted(dims, key=lambda size: (math.prod(size), size))),
        type_number_per_chip=facts.get("type_number_per_chip", 1),
        clock_hz=facts["clock_ghz"] * 1e9 if "clock_ghz" in facts else None,
    )


def _peaks(facts: dict[str, Any], tpu: bool) -> dict[str, float | None]:
    vector, bf16 = facts["vector_fp32_tflops"], facts.get("peak_bf16_tflops")
    return {
        "bfloat16": bf16 or vector,
        "float16": facts.get("peak_fp16_tflops", bf16 or vector),
        "float32": bf16 if tpu else facts.get("peak_tf32_tflops", vector),
        "float64": facts.get("peak_fp64_tflops"),
        "int8": facts.get("peak_int8_tops"),
        "float8_e4m3fn": facts.get("peak_fp8_tflops"),
    }


def _compile_options(facts: dict[str, Any]) -> dict[str, Any] | None:
    if facts["platform"] == "cpu":
        return {}
    if "topology_prefix" in facts:
        return {"topology_prefix": facts["topology_prefix"], "kwargs": facts.get("topology_options", {})}
    if "target_config" not in facts:
        return None
    device = {
        "core_count": facts.get("cores", 1),
        "memory_bandwidth": int(facts["memory_gb_per_s"] * 1e9),
        "device_memory_size": int(facts["memory_gib_per_device"] * 2**30),
    }
    return {"target_config": {**_CUDA_LIMITS, **device, **facts["target_config"]}}
