"""How long a good network takes: processes from their start to their end, compilation included.

python scripts/speedrun.py                                      Fashion-MNIST to 94 % and digits to 98.5 %
python scripts/speedrun.py --tasks kjv --text kjv.txt           the King James Bible to 1.70 bits per character
python scripts/speedrun.py --tasks fashion --systems accelnet --seeds 3

"accelnet" is the script of `TASKS`, as it stands; "pytorch" is the same recipe in PyTorch, compiled and, "eager", not;
"keras tutorial" and "pytorch tutorial" are what tutorials train. Systems take turns, seed by seed: --seeds of accelnet,
--peer-seeds of the others. The first seed of each system is cold, with no cache but accelnet's CPU kernels; later ones
find what it compiled. Peers get the rows ready for the network, so that they read nothing, and glibc's allocator tuned.

The table says what the mean score is, and how probable one so good would be if the recipe's true mean were the goal (a
one-sided t-test over the seeds). Results go to benchmarks/speedrun.json (and .png) after each process, and what is in
there is not run again, but with --again. Recipes are chosen on the validation rows; the test rows are looked at here.
"""

import argparse
import dataclasses
import importlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

import bench

Row = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """What a network has to reach.

    Attributes:
        script: Module in experiments/.
        metric: Name of the score, of the test split.
        goal: Least mean score; where `lower`, the largest.
        lower: Whether lower scores are better.
        settings: What the script's Config does not say, and PyTorch's recipe has to know.
        changes: Values of the Config other than the script's own.
        tutorials: Whether tutorials train on such rows.
    """

    script: str
    metric: str
    goal: float
    lower: bool
    settings: Row
    changes: Row = dataclasses.field(default_factory=dict)
    tutorials: bool = False

    @property
    def systems(self) -> list[str]:
        """Who is measured."""
        return ["accelnet", "pytorch", "eager", *(["keras tutorial", "pytorch tutorial"] if self.tutorials else [])]


_IMAGES = {"images": True, "flip": False, "mirrored": False}
_TEXT = {"images": False, "mirrored": False, "clip": 1.0}
TASKS = {
    "fashion": Task(
        "fashion_fast", "accuracy", 0.94, False, {**_IMAGES, "flip": True, "mirrored": True}, tutorials=True
    ),
    "digits": Task("digits_cnn", "accuracy", 0.985, False, {**_IMAGES, "crop": 1}),
    "kjv": Task("char_rnn", "bits_per_character", 1.70, True, _TEXT, {"hidden_features": 384, "epochs": 6.0}),
}  # fmt: skip


def prepare(task: Task, changes: Row, folder: Path) -> Row:
    """Write the rows and the recipe that the peers take, and return the recipe."""
    import numpy as np

    module: Any = importlib.import_module(f"experiments.{task.script}")
    config = module.Config(**changes)
    data = module.experiment(config).data
    arrays = {}
    for split in ("train", "test"):
        rows = data.splits[split]
        batch = data.prepare({**data.take(np.array(rows)), "mask": np.ones(len(rows), bool)})
        inputs, targets = np.asarray(batch["inputs"]), np.asarray(batch["targets"]).astype(np.int64)
        arrays |= {f"{split}_inputs": inputs if task.settings["images"] else inputs.astype(np.int64)}
        arrays |= {f"{split}_targets": targets}
    recipe = {**task.settings, **dataclasses.asdict(config), "num_symbols": len(data.info.get("vocabulary", ()))}
    recipe = json.loads(json.dumps({name: value for name, value in recipe.items() if name != "seed"}, default=str))
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "rows.npz", **arrays)
    (folder / "task.json").write_text(json.dumps(recipe))
    return recipe


def command_of(task: Task, changes: Row, system: str, seed: int, folder: Path) -> list[str]:
    """Return the command of one training."""
    if system == "accelnet":
        command = [str(ROOT / "experiments" / f"{task.script}.py"), "train", "--workdir", str(folder / "run")]
        for name, value in {**changes, "seed": seed}.items():
            command += [f"--{name.replace('_', '-')}", *map(str, value if isinstance(value, tuple) else [value])]
        return command
    part = "tutorials" if "tutorial" in system else "pytorch"
    kind = {"pytorch": "compiled", "eager": "eager"}.get(system, system.split(maxsplit=1)[0])
    return [str(ROOT / "scripts" / "speedrun" / f"{part}.py"), str(folder), str(seed), kind]


def run(task: Task, changes: Row, system: str, seed: int, folder: Path) -> Row:
    """Train once, in a process of its own, and return its score and its seconds."""
    from accelnet.ops import kernels
    from bench_systems.processes import TUNED_ALLOCATOR, has_glibc

    cache = folder / f"cache-{system}".replace(" ", "-")  # a compiler of PyTorch's takes no spaces
    if seed == 0:
        shutil.rmtree(cache, ignore_errors=True)
    cold = not cache.exists()  # as of a machine where this is gone on with, too
    if cold:
        kernels.share(cache)
    shutil.rmtree(folder / "run", ignore_errors=True)
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "KERAS_BACKEND": "jax",
        "PYTHONPATH": str(ROOT),
        "XDG_CACHE_HOME": str(cache),
        "TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor"),
    }
    if system != "accelnet" and has_glibc():
        environment["GLIBC_TUNABLES"] = TUNED_ALLOCATOR
    began = time.perf_counter()
    with (folder / "said.txt").open("w") as said:
        done = subprocess.run(
            [sys.executable, *command_of(task, changes, system, seed, folder)],
            env=environment, stdout=subprocess.PIPE, stderr=said, text=True, check=False,
        )  # fmt: skip
    seconds = time.perf_counter() - began
    if done.returncode:
        raise SystemExit(f"{system} ended with {done.returncode}; see {folder / 'said.txt'}")
    if system == "accelnet":
        score = json.loads((folder / "run" / "result.json").read_text())["metrics"]["test"][task.metric]
    else:
        score = json.loads(done.stdout.splitlines()[-1])["score"]
    return {"score": score, "seconds": round(seconds, 2), "cold": cold}


def summary(task: Task, rows: dict[str, Row]) -> Row:
    """Return what the seeds of a system say together."""
    from scipy import stats

    scores = [row["score"] for row in rows.values()]
    warm = [row["seconds"] for row in rows.values() if not row["cold"]]
    found: Row = {
        "seeds": len(scores),
        "mean": statistics.fmean(scores),
        "cold_seconds": next((row["seconds"] for row in rows.values() if row["cold"]), None),
        "warm_seconds": statistics.median(warm) if warm else None,
        "spread": [min(warm), max(warm)] if warm else None,
    }
    if len(set(scores)) > 1:
        better = "less" if task.lower else "greater"
        found["standard_error"] = statistics.stdev(scores) / len(scores) ** 0.5
        _, p_value = stats.ttest_1samp(scores, task.goal, alternative=better)
        found["p_value"] = float(p_value)
    return found


def table(record: Row) -> str:
    """Return the summaries as text."""
    lines = [["task", "system", "seeds", "cold s", "warm s", "times accelnet's", "mean score", "p-value"]]
    for name, entry in record["tasks"].items():
        ours = entry["summary"].get("accelnet", {}).get("warm_seconds")
        for system, found in entry["summary"].items():
            warm, cold, error = found["warm_seconds"], found["cold_seconds"], found.get("standard_error")
            lines.append([
                f"{name} {TASKS[name].metric} {TASKS[name].goal}",
                system,
                str(found["seeds"]),
                "-" if cold is None else f"{cold:.1f}",
                "-" if warm is None else f"{warm:.1f} ({found['spread'][0]:.1f} to {found['spread'][1]:.1f})",
                f"{warm / ours:.2f}" if warm and ours else "-",
                f"{found['mean']:.4f}" + ("" if error is None else f" +- {error:.4f}"),
                f"{found['p_value']:.2g}" if "p_value" in found else "-",
            ])  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


def plot(record: Row, path: Path) -> None:
    """Draw each training's score over its seconds."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib import ticker

    tasks = record["tasks"]
    figure, panels = plt.subplots(1, len(tasks), figsize=(5.5 * len(tasks), 4), squeeze=False, layout="constrained")
    for axes, (name, entry) in zip(panels[0], tasks.items(), strict=True):
        for index, (system, rows) in enumerate(entry["rows"].items()):
            for cold, marker in ((False, "o"), (True, "x")):
                points = [(row["seconds"], row["score"]) for row in rows.values() if row["cold"] is cold]
                label = system if not cold else None
                axes.plot(*zip(*points, strict=True) if points else ((), ()), marker, color=f"C{index}", label=label)
        axes.axhline(TASKS[name].goal, color="black", linewidth=1)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(ticker.MaxNLocator(6))
        axes.xaxis.set_major_formatter(ticker.ScalarFormatter())
        axes.xaxis.set_minor_locator(ticker.NullLocator())
        axes.set_xlabel("seconds, from the start of the process to its end")
        axes.set_ylabel(f"test {TASKS[name].metric.replace('_', ' ')}")
        axes.set_title(f"{name} (crosses: nothing compiled before)", fontsize="medium")
        axes.legend(fontsize="small")
    figure.savefig(path, dpi=150, format="png")
    plt.close(figure)


def write(record: Row, path: Path) -> None:
    """Write the record and its picture, each complete or not at all."""
    from bench_systems import report

    report.replace(path, lambda to: to.write_text(json.dumps(record, indent=1) + "\n"))
    report.replace(path.with_suffix(".png"), lambda to: plot(record, to))


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=["fashion", "digits"])
    parser.add_argument("--systems", nargs="+", choices=TASKS["fashion"].systems, default=TASKS["fashion"].systems)
    parser.add_argument("--seeds", type=int, default=10, help="trainings of accelnet")
    parser.add_argument("--peer-seeds", type=int, default=3, help="trainings of each other system")
    parser.add_argument("--text", type=Path, help="file of the task kjv; experiments/char_rnn.py says how to make it")
    parser.add_argument("--again", action="store_true", help="run what is recorded anew")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "speedrun", help="rows, caches and runs")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "speedrun.json")
    options = parser.parse_args()
    if "kjv" in options.tasks and (options.text is None or not options.text.is_file()):
        parser.error(
            f"--text is {options.text}: expected the King James Bible; experiments/char_rnn.py says how to get it"
        )
    return options


def main() -> None:
    """Run what is asked for and not there yet."""
    options = parse()
    if not bench.has_peers() and set(options.systems) != {"accelnet"}:
        bench.start_in_own_environment()
    from bench_systems import report

    record: Row = json.loads(options.out.read_text()) if options.out.exists() else {"tasks": {}}
    for name in options.tasks:
        task, folder = TASKS[name], options.folder / name
        changes = task.changes | ({"data": options.text.resolve()} if name == "kjv" else {})
        recipe = prepare(task, changes, folder)
        entry = record["tasks"].get(name)
        if entry is None or options.again or entry["recipe"] != recipe:
            entry = record["tasks"][name] = {"recipe": recipe, "rows": {}, "summary": {}}
        for seed in range(options.seeds):
            for system in [one for one in task.systems if one in options.systems]:
                rows = entry["rows"].setdefault(system, {})
                if str(seed) in rows or (system != "accelnet" and seed >= options.peer_seeds):
                    continue
                rows[str(seed)] = row = run(task, changes, system, seed, folder)
                print(f"{name}, {system}, seed {seed}: {row['score']:.4f} in {row['seconds']:.1f} s", flush=True)
                entry["summary"] = {system: summary(task, of) for system, of in entry["rows"].items() if of}
                record |= {"machine": report.machine(), "versions": report.versions()}
                record["date"] = datetime.now(UTC).date().isoformat()
                write(record, options.out)
    print(table(record))


if __name__ == "__main__":
    main()
