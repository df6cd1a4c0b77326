"""Measure accelnet against PyTorch, torch.compile, Keras 3 on JAX and on PyTorch, and plain Flax, on a CPU.

python scripts/bench.py [--cases fashion_cnn char_lstm] [--systems torch flax] [--rounds 5] [--out DIR]
python scripts/bench.py --inference      six networks that are run, not trained, 1, 16 and 256 rows at a time

Prints a table of milliseconds per step and writes bench.json and bench.png (with --inference, inference.json and
inference.png), to benchmarks/ for a whole run and to runs/bench/ for a part of it. The peers are installed into an
environment of the benchmark's own, .venv-bench; on Linux, PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu in
front of the command gets PyTorch for CPUs (200 MB), where PyPI's comes with CUDA (several GB).

Where networks are only run, onnxruntime and OpenVINO are peers too, on the ONNX file that accelnet writes of them.

All systems start from the same weights and see the same batches. Those whose losses of the first 20 steps are not
accelnet's, to rounding, do other work: they are not timed, and the exit status is 1. Then systems take turns of half a
second, and ratios are medians over the rounds of the best peer's time over accelnet's. Every peer is run as it comes
and with glibc's allocator tuned, and the better counts; accelnet runs as it comes. "limit" is the time of the case's
dense products alone. Leave the machine alone meanwhile: threads of PyTorch that wait for a core for a moment take ten
times as long.
"""

import argparse
import os
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "scripts")]

_VENV = ".venv-bench"
_STARTED = "ACCELNET_BENCH_STARTED"


def has_peers() -> bool:
    """Whether this interpreter has the peers in the versions that pyproject.toml names."""
    pins = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["bench"]
    for package, version in (pin.split("==") for pin in pins):
        try:
            if metadata.version(package).split("+")[0] != version:
                return False
        except metadata.PackageNotFoundError:
            return False
    return True


def start_in_own_environment() -> None:
    """Make the benchmark's environment, or bring it up to date, and start again in it."""
    if _STARTED in os.environ:
        raise SystemExit(f"{sys.prefix} lacks the packages of the extra `bench`: remove it and start again")
    script = 'source "$1"; make_venv bench'
    command = ["bash", "-c", script, str(ROOT / "scripts" / "bench.py"), str(ROOT / "scripts" / "venv.sh")]
    made = subprocess.run(command, env=os.environ | {"VENV": _VENV}, check=False)
    if made.returncode:
        raise SystemExit(made.returncode)
    os.environ[_STARTED] = "1"
    python = str(ROOT / _VENV / "bin" / "python")
    os.execv(python, [python, str(Path(__file__).resolve()), *sys.argv[1:]])  # noqa: S606


def chosen(kind: str, names: Sequence[str] | None, known: Sequence[str]) -> list[str]:
    """Return the names in the order in which they are known, all where none are given.

    Raises:
        SystemExit: with status 2, if one is unknown.
    """
    unknown = [name for name in names or () if name not in known]
    if unknown:
        print(f"unknown {kind}: {', '.join(unknown)}; known are {', '.join(known)}", file=sys.stderr)
        raise SystemExit(2)
    return [name for name in known if not names or name in names]


def run(
    cases: Sequence[str],
    systems: Sequence[str],
    rounds: int,
    out: Path,
    turn_seconds: float = 0.5,
    name: str = "bench",
) -> int:
    """Measure cases, writing what there is after each.

    Args:
        cases: names.
        systems: names.
        rounds: turns of each system.
        out: folder of the record and the picture.
        turn_seconds: how long a turn takes, about.
        name: name of both files.

    Returns:
        The exit status: 1 if a system was refused, or accelnet failed.
    """
    from bench_systems import report
    from bench_systems.cases import CASES
    from bench_systems.rounds import measure

    systems = ["accelnet", *(name for name in systems if name != "accelnet")]
    rows = []
    for number, case in enumerate(cases, 1):
        place = f"[{number}/{len(cases)}]"
        rows.append(
            measure(
                CASES[case],
                systems,
                rounds=rounds,
                turn_seconds=turn_seconds,
                say=lambda text, place=place: print(place, text, file=sys.stderr, flush=True),
            )
        )
        report.write(rows, systems, out, name)
    print(report.table(rows, systems))
    print(f"{out / name}.json\n{out / name}.png")
    refused = any(cell["status"] == "refused" for row in rows for cell in row["systems"].values())
    return int(refused or any(row["systems"]["accelnet"]["status"] == "failed" for row in rows))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], epilog=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="+", help="the usual ones if left out")
    parser.add_argument("--inference", action="store_true", help="networks that are run, not trained")
    parser.add_argument("--systems", nargs="+", help="all if left out; accelnet is always among them")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each system")
    parser.add_argument("--out", type=Path, help="folder of the results")
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        parser.error(f"--rounds is {options.rounds}, expected at least 1")
    if not has_peers():
        start_in_own_environment()
    from bench_systems.cases import CASES, INFERENCE, USUAL
    from bench_systems.rounds import SYSTEMS

    every = INFERENCE if options.inference else USUAL
    cases = chosen("cases", options.cases, list(CASES)) if options.cases else list(every)
    systems = chosen("systems", options.systems, SYSTEMS)
    whole = len(cases) == len(every) and {*systems} == {*SYSTEMS}
    out = options.out or ROOT / ("benchmarks" if whole else "runs/bench")
    return run(cases, systems, options.rounds, out, name="inference" if options.inference else "bench")


if __name__ == "__main__":
    sys.exit(main())
