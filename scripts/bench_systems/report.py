"""What a run leaves: a table, bench.json and a plot."""

import datetime as dt
import importlib.metadata
import json
import os
import platform
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench_systems import comparison

_PACKAGES = (
    "accelnet", "jax", "jaxlib", "flax", "optax", "keras", "torch", "numpy", "onnxruntime", "openvino",
)  # fmt: skip
# Those that decide which products a program uses.
_FLAGS = ("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "asimd", "bf16", "sve")
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "XLA_FLAGS")


def result(cases: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return what bench.json holds."""
    return {
        "cases": list(cases),
        **comparison.summary(cases),
        "machine": machine(),
        "versions": versions(),
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
    }


def machine() -> dict[str, Any]:
    """Return what the processor is, what it can, and what of it the systems may use."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    said = dict(reversed([[part.strip() for part in line.split(":", 1)] for line in lines if ":" in line]))
    flags = {*said.get("flags", said.get("Features", "")).split()}
    return {
        "cpu": said.get("model name") or platform.processor() or platform.machine(),
        "flags": [flag for flag in _FLAGS if flag in flags],
        "num_cores": os.cpu_count(),
        # Which of them this process, and so its systems' threads, may use.
        "num_usable_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "environment": {name: os.environ[name] for name in _THREADS if name in os.environ},
        "system": platform.platform(),
    }


def versions() -> dict[str, str]:
    """Return the versions of Python and of the systems that are installed."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def table(cases: Sequence[dict[str, Any]], systems: Sequence[str]) -> str:
    """Return milliseconds per step; * marks the tuned allocator, and in brackets are multiples of the limit."""
    rows = [["case", *systems, "limit", "best peer", "ratio"]]
    for case in cases:
        cells = [_cell(case["systems"].get(system)) for system in systems]
        limit = "-" if case["limit_seconds"] is None else _milliseconds(case["limit_seconds"])
        ratio = "-" if case["ratio"] is None else f"{case['ratio']:.2f}"
        rows.append([case["case"], *cells, limit, case["best_peer"] or "-", ratio])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    total = comparison.summary(cases)
    if total["min_ratio"] is not None:
        lines.append(
            f"smallest ratio {total['min_ratio']:.2f}, geometric mean {total['geomean_ratio']:.2f}, without the "
            f"largest {total['geomean_but_largest']:.2f}"
        )
    return "\n".join(["milliseconds per step (times the limit), * with the tuned allocator", *lines])


def _cell(cell: dict[str, Any] | None) -> str:
    if cell is None:
        return ""
    if cell["step_seconds"] is None:
        return cell["status"]
    mark = "*" if cell["allocator"] == "tuned" else ""
    over = f" ({cell['over_limit']:.1f})" if cell["over_limit"] else ""
    return f"{_milliseconds(cell['step_seconds'])}{mark}{over}"


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.4g}"


def plot(cases: Sequence[dict[str, Any]], systems: Sequence[str], path: Path) -> None:
    """Draw how many times as long as accelnet's each peer's step takes."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib import ticker

    peers = [system for system in systems if system != "accelnet"]
    figure, axes = plt.subplots(figsize=(max(6.0, 1.1 * len(cases) + 2), 4.5), layout="constrained")
    width = 0.8 / max(1, len(peers))
    for index, system in enumerate(peers):
        places, heights = [], []
        for place, case in enumerate(cases):
            ours, theirs = (case["systems"].get(name, {}).get("step_seconds") for name in ("accelnet", system))
            if ours and theirs:
                places.append(place + (index - (len(peers) - 1) / 2) * width)
                heights.append(theirs / ours)
        # From 1 on, so that a bar points down where accelnet is slower.
        axes.bar(places, [height - 1 for height in heights], width, bottom=1, label=system)
    axes.axhline(1, color="black", linewidth=1, label="accelnet")
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(ticker.NullFormatter())
    axes.set_ylabel("time of a step / accelnet's")
    axes.set_xticks(range(len(cases)), [case["case"] for case in cases], rotation=40, ha="right")
    figure.legend(loc="outside upper center", ncols=3, fontsize="small")
    figure.savefig(path, dpi=150, format="png")
    plt.close(figure)


def write(cases: Sequence[dict[str, Any]], systems: Sequence[str], folder: Path, name: str = "bench") -> None:
    """Write the record and the picture, each complete or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(result(cases), indent=2) + "\n"
    replace(folder / f"{name}.json", lambda path: path.write_text(text))
    replace(folder / f"{name}.png", lambda path: plot(cases, systems, path))


def replace(path: Path, write: Callable[[Path], Any]) -> None:
    """Let a function write a file under another name, and give it its own when it is whole."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=f".partial{path.suffix}")
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        # mkstemp's files are the user's alone; results are for all.
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
