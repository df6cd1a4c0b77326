"""Facts of accelerators: those of accelerators.toml, of a file of the user's, and of this machine's CPU."""

import math
import os
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from accelnet import arguments
from accelnet.errors import UserError
from accelnet.planning.targets.cpu import this_cpu

ENVIRONMENT_VARIABLE = "ACCELNET_TARGETS"
_MOST_GPUS = 72
# What XLA's GpuTargetConfigProto needs: what is the same on every GPU since Pascal, and what a table has to say.
_CUDA_LIMITS = {
    "threads_per_block_limit": 1024, "threads_per_warp": 32, "shared_memory_per_block": 49152,
    "block_dim_limit_x": 2147483647, "block_dim_limit_y": 65535, "block_dim_limit_z": 65535,
    "registers_per_core_limit": 65536, "registers_per_block_limit": 65536,
}  # fmt: skip
_CUDA_FIELDS = (
    "cuda_compute_capability", "clock_rate_ghz", "fpus_per_core", "threads_per_core_limit", "shared_memory_per_core",
    "shared_memory_per_block_optin", "l2_cache_size",
)  # fmt: skip
_PLATFORMS = ("tpu", "cuda", "cpu")
_REQUIRED = ("title", "platform", "vector_fp32_tflops", "memory_gib_per_device", "memory_gb_per_s", "chips_per_host")
_NUMBERS = (
    "peak_bf16_tflops", "peak_fp16_tflops", "peak_tf32_tflops", "peak_fp64_tflops", "peak_fp8_tflops", "peak_int8_tops",
    "vector_fp32_tflops", "memory_gib_per_device", "memory_gb_per_s", "clock_ghz", "link_gb_per_s",
    "network_gbit_per_s_per_host",
)  # fmt: skip
_COUNTS = ("devices_per_chip", "cores", "num_links", "link_domain", "chips_per_host", "type_number_per_chip")


def _is_number(value: Any) -> bool:
    return type(value) in {int, float} and 0 < value < math.inf


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 1


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_slice(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[1-9]\d*(x[1-9]\d*){1,2}", value) is not None


def _are(fits: Callable[[Any], bool], value: Any) -> bool:
    return isinstance(value, list) and all(map(fits, value))


_SIZES = 'a list of slices such as "2x4" of a TPU, or of numbers of GPUs of one host'
# The fields of a table: what is expected, and the check.
_FIELDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    **dict.fromkeys(("title", "topology_prefix", "price_basis", "price_region", "price_date"), ("a text", _is_text)),
    **dict.fromkeys(("aliases", "device_kinds", "sources"), ("a list of texts", lambda value: _are(_is_text, value))),
    **dict.fromkeys(_NUMBERS, ("a positive number", _is_number)),
    **dict.fromkeys(_COUNTS, ("a whole number, at least 1", _is_count)),
    **dict.fromkeys(("topology_options", "target_config"), ("a table", lambda value: isinstance(value, dict))),
    "platform": (f"one of {', '.join(_PLATFORMS)}", lambda value: value in _PLATFORMS),
    "matrix_tile": ("a list of 3 whole numbers", lambda value: _are(_is_count, value) and len(value) == 3),
    "sizes": (_SIZES, lambda value: bool(value) and (_are(_is_count, value) or _are(_is_slice, value))),
    "usd_per_chip_hour": ("a number, at least 0", lambda value: value == 0 or _is_number(value)),
}


@dataclass(frozen=True, kw_only=True)
class Accelerator:
    """What one kind of accelerator can do. Conventions and sources are in accelerators.toml.

    Attributes:
        name: As typed: "v5e", "h100", "cpu".
        title: As sold: "Cloud TPU v5e".
        platform: "tpu", "cuda" or "cpu".
        device_kinds: `jax.Device.device_kind` of such a device.
        devices_per_chip: JAX devices that a chip is.
        peak_flops: FLOP/s of a device by the operands' dtype, at JAX's default matmul precision: float32 is one
            bfloat16 pass on a TPU and tf32 on GPUs that have it. On V100 and T4, which emulate it, bfloat16 is the fp32
            peak. On TPUs float16 is taken to run as bfloat16. A dtype whose peak no source states is left out.
        vector_flops: FLOP/s of a device in elementwise float32 arithmetic. GPU: its fp32 peak. TPU: a model, 8 x 128
            lanes of 2 ALUs up to v4 and 4 from v5e on, at the clock that the matrix units' peak implies.
        memory_bytes: Memory of a device: on TPUs what the compiler gives a program, on GPUs all of it.
        matrix_tile: Multiples (m, k, n) that a product [m, k] x [k, n] is padded to.
        cores: Cores that work side by side on the tiles of one product: a GPU's multiprocessors.
        link_bandwidth: Bytes/s of a device in one direction, over all ICI links or NVLinks, or over PCIe without them.
        num_links: ICI links of a chip: 4 in a 2D torus, 6 in a 3D one.
        link_domain: The most chips that the links join; 1 if none.
        network_bandwidth: Bytes/s of a device in one direction between hosts or slices.
        chips_per_host: The most chips of one host.
        usd_per_chip_hour: Price, None if it is not known.
        price_note: Basis, region and date of the price.
        compile_options: What `Target.topology_request` is made of: "topology_prefix" and "kwargs" of a TPU,
            "target_config" of a GPU, nothing for the CPU. None: nothing can be compiled for it.
        sizes: Sizes that are sold, ascending: slices of a TPU, numbers of GPUs.
        type_number_per_chip: What the number in an accelerator type counts per chip: 2 in v5p-8, which is 4 chips.
        clock_hz: Clock that the compiler's estimates in cycles count; None if it gives none.

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
    sizes: tuple[tuple[int, ...], ...]
    type_number_per_chip: int
    clock_hz: float | None

    @property
    def usable_bytes(self) -> int:
        """Memory of a device that a program can use: of a GPU's the share that JAX takes."""
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
        extra: File of the user's. None: the one that $ACCELNET_TARGETS names, if it is set. "": none.

    Returns:
        Accelerators by name.

    Raises:
        UserError: if the file cannot be read, or a field is unknown, missing or of the wrong kind.

    Example:
        >>> list(load_accelerators())[:4]
        ['v2', 'v3', 'v4', 'v5e']
    """
    own = resources.files("accelnet.planning.targets") / "accelerators.toml"
    tables = _read_tables(own.read_bytes(), own.name)
    tables["cpu"] = this_cpu()
    where: dict[str, str] = {}
    path = os.environ.get(ENVIRONMENT_VARIABLE) if extra is None else extra
    if extra is not None and extra != "":
        path = arguments.path("targets_file", extra)
    if path:
        canonical = {alias: name for name, facts in tables.items() for alias in facts.get("aliases", ())}
        try:
            content = Path(path).read_bytes()
        except OSError as error:
            raise UserError(f"{path}: cannot be read as a file of targets: {error.strerror}") from error
        for given_name, given in _read_tables(content, str(path)).items():
            name = canonical.get(given_name, given_name)
            tables[name] = _replaced(tables.get(name, {}), given, str(path))
            where[name] = str(path)
    accelerators = {name: _accelerator(name, facts, where.get(name, own.name)) for name, facts in tables.items()}
    taken: dict[str, str] = {}
    for name, accelerator in accelerators.items():
        for alias in (name, *accelerator.aliases):
            if taken.setdefault(alias, name) != name:
                raise UserError(f"{path}: {alias!r} names both {taken[alias]} and {name}, expected one: rename it")
    return accelerators


def _read_tables(content: bytes, path: str) -> dict[str, dict[str, Any]]:
    try:
        document = tomllib.loads(content.decode())
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets without end
        raise UserError(f"{path}: expected TOML in UTF-8: {error}") from error
    tables = document.get("accelerators")
    if set(document) != {"accelerators"} or not isinstance(tables, dict):
        raise UserError(f"{path}: holds {', '.join(document) or 'nothing'}, expected [accelerators.NAME] tables alone")
    for name, facts in tables.items():
        if not isinstance(facts, dict) or not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", name):
            raise UserError(
                f"{path}: [accelerators] holds {name!r}, expected tables, named in small letters, digits and dashes"
            )
        for key, value in facts.items():
            if key not in _FIELDS:
                raise UserError(f"{path}: [accelerators.{name}] has {key!r}, expected one of {', '.join(_FIELDS)}")
            expected, fits = _FIELDS[key]
            if not fits(value):
                raise UserError(f"{path}: [accelerators.{name}] {key} is {value!r}, expected {expected}")
    return tables


def _replaced(facts: dict[str, Any], given: dict[str, Any], path: str) -> dict[str, Any]:
    if "usd_per_chip_hour" in given:  # the old price's basis, region and date say nothing of it
        facts = {key: value for key, value in facts.items() if not key.startswith("price_")}
        facts["price_basis"] = f"from {Path(path).name}"
    nested = {
        key: {**facts.get(key, {}), **given[key]} for key in ("topology_options", "target_config") if key in given
    }
    return {**facts, "sources": [*facts.get("sources", []), path], **given, **nested}


def _accelerator(name: str, facts: dict[str, Any], path: str) -> Accelerator:
    missing = [key for key in _REQUIRED if key not in facts]
    tpu, cpu = facts.get("platform") == "tpu", facts.get("platform") == "cpu"
    missing += ["sizes"] if tpu and "sizes" not in facts else []
    if not cpu and "peak_bf16_tflops" not in facts and (tpu or "peak_fp16_tflops" not in facts):
        missing.append("peak_bf16_tflops")
    if "target_config" in facts:
        missing += [f"target_config.{key}" for key in _CUDA_FIELDS if key not in facts["target_config"]]
    if missing:
        raise UserError(f"{path}: [accelerators.{name}] lacks {', '.join(missing)}: give what is missing")
    hosts = facts["chips_per_host"]
    sizes = facts.get("sizes", [size for size in (1, 2, 4, 8) if size <= hosts])
    if isinstance(sizes[0], str) != tpu:
        raise UserError(f"{path}: [accelerators.{name}] sizes is {sizes}, expected {_SIZES}")
    sizes = [*sizes, *(() if tpu or cpu else range(hosts, _MOST_GPUS + 1, hosts))]
    dims = {tuple(map(int, size.split("x"))) if isinstance(size, str) else (size,) for size in sizes}
    per_chip, links = facts.get("devices_per_chip", 1), facts.get("num_links", 1)
    vector, bf16 = facts["vector_fp32_tflops"], facts.get("peak_bf16_tflops")
    peaks = {
        "bfloat16": bf16 or vector,
        "float16": facts.get("peak_fp16_tflops", bf16 or vector),
        "float32": bf16 if tpu else facts.get("peak_tf32_tflops", vector),
        "float64": facts.get("peak_fp64_tflops"),
        "int8": facts.get("peak_int8_tops"),
        "float8_e4m3fn": facts.get("peak_fp8_tflops"),
    }
    link, network = facts.get("link_gb_per_s"), facts.get("network_gbit_per_s_per_host", None if cpu else 200.0)
    price = [facts[key] for key in ("price_basis", "price_region", "price_date") if key in facts]
    return Accelerator(
        name=name,
        title=facts["title"],
        platform=facts["platform"],
        aliases=tuple(facts.get("aliases", ())),
        device_kinds=tuple(facts.get("device_kinds", ())),
        devices_per_chip=per_chip,
        peak_flops={dtype: peak * 1e12 / per_chip for dtype, peak in peaks.items() if peak is not None},
        vector_flops=vector * 1e12 / per_chip,
        memory_bytes=int(facts["memory_gib_per_device"] * 2**30),
        memory_bandwidth=facts["memory_gb_per_s"] * 1e9 / per_chip,
        matrix_tile=tuple(facts.get("matrix_tile", (8, 128, 128) if tpu else (1, 1, 1) if cpu else (64, 32, 64))),
        cores=facts.get("cores", 1),
        link_bandwidth=None if link is None else link * 1e9 * links / per_chip,
        num_links=links,
        link_domain=facts.get("link_domain", 1),
        network_bandwidth=None if network is None else network * 1e9 / 8 / hosts / per_chip,
        chips_per_host=hosts,
        usd_per_chip_hour=facts.get("usd_per_chip_hour"),
        price_note=", ".join(price),
        sources=tuple(facts["sources"]),
        compile_options=_compile_options(facts),
        sizes=tuple(sorted(dims, key=lambda size: (math.prod(size), size))),
        type_number_per_chip=facts.get("type_number_per_chip", 1),
        clock_hz=facts["clock_ghz"] * 1e9 if "clock_ghz" in facts else None,
    )


def _compile_options(facts: dict[str, Any]) -> dict[str, Any] | None:
    if facts["platform"] == "cpu":
        return {}
    if "topology_prefix" in facts:
        return {"topology_prefix": facts["topology_prefix"], "kwargs": facts.get("topology_options", {})}
    if "target_config" not in facts:
        return None
    config = _CUDA_LIMITS | {
        "core_count": facts.get("cores", 1),
        "memory_bandwidth": int(facts["memory_gb_per_s"] * 1e9),
        "device_memory_size": int(facts["memory_gib_per_device"] * 2**30),
    }
    return {"target_config": config | facts["target_config"]}
