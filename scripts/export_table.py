"""Export the experiments and ten modules of other kinds, check each file in its own runtime, and write the table.

    python scripts/export_table.py [--only NAME ...] [--out docs/guide/exported_models.md]

Each is trained for one step. An experiment whose data is not installed is left out, and the page says so. With --only
the page is not written.
"""

import argparse
import dataclasses
import importlib.util
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import jax

import accelnet as an
from accelnet.exporting.export import export_source
from accelnet.exporting.source import source_of_run
from accelnet.terminal import StatusLine
from scripts.export_models import MODELS

FORMATS = {
    "artifact": "artifact",
    "onnx": "ONNX in onnxruntime",
    "stablehlo": "StableHLO in a fresh process",
    "safetensors": "safetensors",
}
MOST = 1e-5
PAGE = """# Exported models

Largest difference of any output, as a share of the largest number in it, between a model and its exports, each in its
own runtime: on up to 2,048 rows of the validation split in batches, on one row alone, and where the model has steps on
half of them. Made by `python scripts/export_table.py`, which trains each model for one step, with
{versions}.
Every file takes any number of rows{limits}. An artifact computes by what the model computes by, accelnet's kernels
where they are, and StableHLO by XLA alone.

{table}

{notes}"""


def experiments() -> dict[str, Callable[[], an.Experiment]]:
    """Return the experiments of the scripts, by name."""

    def maker(path: Path) -> Callable[[], an.Experiment]:
        def make() -> an.Experiment:
            spec = importlib.util.spec_from_file_location(f"exported_{path.stem}", path)
            assert spec is not None
            assert spec.loader is not None
            module: Any = importlib.util.module_from_spec(spec)
            sys.modules[spec.name] = module
            spec.loader.exec_module(module)
            return module.experiment(module.Config())

        return make

    return {path.name: maker(path) for path in sorted((ROOT / "experiments").glob("*.py"))}


def exported(make: Callable[[], an.Experiment]) -> dict[str, Any]:
    """Train a model for one step and export it; return the content of export.json, or "error"."""
    try:
        experiment = make()
        steps = dataclasses.replace(experiment, epochs=None, steps=1, final_evaluation=(), events=())
        run = an.fit(steps, progress=False)
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            model = an.load(run.save(folder / "model.accelnet"))
            source = dataclasses.replace(source_of_run(run, model), timed=False)  # the page tells no latency
            return export_source(source, tuple(FORMATS), folder / "out", StatusLine(False)).values
    except an.UserError as error:
        return {"error": str(error)}


def cells(found: dict[str, Any]) -> list[str]:
    """Return the cells of a row."""
    if "error" in found:
        return ["-"] * len(FORMATS)
    forms = [found["formats"][name] for name in FORMATS]
    return [f"{form['largest']:.1e}" + ("" if form["largest"] <= MOST else " (above 1e-5)") for form in forms]


def page(rows: list[str], notes: list[str], fixed: list[str]) -> str:
    """Return the page of rows, of what could not be measured, and of the models that take one number of rows alone."""
    import onnx
    import onnxruntime

    head = f"| model | {' | '.join(FORMATS.values())} |\n|---|{'---|' * len(FORMATS)}\n"
    versions = f"jax {jax.__version__}, onnx {onnx.__version__} and onnxruntime {onnxruntime.__version__}"
    limits = f", but for {', '.join(fixed)}" if fixed else ""
    told = "\n".join(["Not measured:", "", *notes]) if notes else ""
    return PAGE.format(versions=versions, limits=limits, table=head + "\n".join(rows), notes=told).rstrip() + "\n"


def main() -> None:
    """Make the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], help="names, or parts of names")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "guide" / "exported_models.md")
    args = parser.parse_args()
    rows, notes, fixed = [], [], []
    for name, make in {**experiments(), **MODELS}.items():
        if args.only and not any(part in name for part in args.only):
            continue
        found = exported(make)
        rows.append(f"| {name} | {' | '.join(cells(found))} |")
        print(rows[-1], flush=True)
        if "error" in found:
            notes.append(f"- {name}: {found['error']}")
        elif any(form["batch"] != "any" for form in found["formats"].values()):
            fixed.append(name)
    if args.only:
        print("\n".join(notes))
    else:
        args.out.write_text(page(rows, notes, fixed))


if __name__ == "__main__":
    main()
