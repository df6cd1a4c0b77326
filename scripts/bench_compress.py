"""What compression reaches, model by model: without training, fine-tuned beside new weights, and with fewer bits.

python scripts/bench_compress.py                                     all models, hours on two cores
python scripts/bench_compress.py --models fashion_mlp --parts untrained bits
python scripts/bench_compress.py --models digits_cnn --parts search  the whole search with its defaults, timed
python scripts/bench_compress.py --rows 6000 --epochs 2 --seeds 1    a rough answer

Results go to benchmarks/compress.json after each part of a model; what is in there already is not done again, but with
--again. "untrained": accuracy at 2, 4 and 8 times fewer FLOPs, by units chosen by backward elimination, by activation
times weight and by magnitude. "trained": the paired drop after fine-tuning, and that of the same network from new
weights for as many epochs in all, by seed. "bits": bytes, paired drop and latency in turns with float32 of int8 and
int4; beside them onnxruntime's dynamic quantization of the exported model, where onnx and onnxruntime are installed.
Drops are of the metric of the validation split: in points of a hundred for accuracies, per cent for losses.
"""

import argparse
import dataclasses
import importlib
import importlib.util
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import jax
import numpy as np

import accelnet as an
from accelnet.compressing.bits import quantize
from accelnet.compressing.compress import compress
from accelnet.compressing.drop import usual_metric
from accelnet.compressing.elimination import prune
from accelnet.compressing.finetune import Start, find_rate, of_length, train, untrained_run, without_test
from accelnet.compressing.measured import Comparison, weight_bytes
from accelnet.compressing.proposals import WidthLadder
from accelnet.compressing.widths import find_widths
from accelnet.data.dataset import Data
from accelnet.disk import write_atomically
from accelnet.evaluating.latency import make_answer, measure_in_turns
from accelnet.json_file import plain_value
from accelnet.training.progress import Progress

FACTORS, BATCHES = (2.0, 4.0, 8.0), (1, 16, 256)
METHODS = ("elimination", "activation", "magnitude")
PARTS = ("untrained", "trained", "bits", "search")
Result = dict[str, Any]


def fewer(data: Data, rows: int | None) -> Data:
    """Return data with at most so many training rows."""
    train_rows = data.splits["train"]
    if rows is None or rows >= len(train_rows):
        return data
    return dataclasses.replace(data, splits={**data.splits, "train": train_rows[:rows]})


def fashion(model: Callable[..., Any], epochs: float) -> Callable[[int, Any], an.Experiment]:
    """Return the maker of an experiment on Fashion-MNIST."""

    def make(seed: int, options: Any) -> an.Experiment:
        length = epochs if options.epochs is None else options.epochs
        return an.Experiment(
            data=fewer(an.data.fashion_mnist(), options.rows),
            model=model,
            optimizer=an.optim.adamw(2e-3, weight_decay=0.01, schedule=an.optim.schedules.warmup_cosine()),
            objective=an.objectives.softmax_cross_entropy(),
            batch_size=128,
            epochs=length,
            seed=seed,
        )

    return make


def of_script(name: str, **settings: Any) -> Callable[[int, Any], an.Experiment]:
    """Return the maker of the experiment of a script."""

    def make(seed: int, options: Any) -> an.Experiment:
        module: Any = importlib.import_module(f"experiments.{name}")
        length = {} if options.epochs is None else {"epochs": options.epochs}
        made = module.experiment(module.Config(seed=seed, **settings, **length))
        return made.replace(data=fewer(made.data, options.rows))

    return make


MODELS: dict[str, Callable[[int, Any], an.Experiment]] = {
    "fashion_mlp": fashion(lambda rngs: an.models.MLP(784, (300, 300), 10, rngs=rngs), 8),
    "fashion_cnn": fashion(lambda rngs: an.models.CNN((28, 28, 1), (16, 32), 10, norm="batch", rngs=rngs), 4),
    "resnet8": fashion(lambda rngs: an.models.ResNet((28, 28, 1), (16, 32, 64), 10, rngs=rngs), 4),
    "fashion_rnn": of_script("fashion_rnn", epochs=6),
    "char_rnn": of_script("char_rnn", epochs=1),
    "digits_cnn": of_script("digits_cnn"),
}


def compared(run: an.Run, split: str = "validation") -> Comparison:
    """Return the examples on which networks are compared with a run."""
    metric = usual_metric(run.experiment.objective, run.experiment.best_metric)
    return Comparison(run, metric, split, lambda _: None)


def untrained(run: an.Run, _: Any) -> Result:
    """Measure pruned networks without training, on the test split, which no method has seen."""
    widths, examples = find_widths(run.experiment), compared(run, "test")
    ladder = WidthLadder(run, widths, lambda _: None)
    found: Result = {"original": examples.value(run), "left_alone": widths.left}
    for factor in FACTORS:
        values = ladder.values(factor)
        if values is None:
            continue
        _, cost = ladder.costs(values)
        row: Result = {"widths": values, "flops": cost.flops}
        for method in METHODS:
            began = time.perf_counter()
            weights = prune(run.experiment, run.params, run.model_state, values, method=method, found=widths)  # type: ignore[arg-type]
            row[method] = examples.value(untrained_run(*weights))
            row[f"{method}_seconds"] = time.perf_counter() - began
        found[f"{factor:g}x"] = row
        say(f"  {factor:g}x: " + ", ".join(f"{method} {row[method]:.4f}" for method in METHODS))
    return found


def trained(run: an.Run, _: Any) -> Result:
    """Measure fine-tuned networks beside the same ones from new weights, for as many epochs in all."""
    widths, examples, found = find_widths(run.experiment), compared(run), {}
    ladder = WidthLadder(run, widths, lambda _: None)
    for factor in FACTORS:
        values = ladder.values(factor)
        if values is None:
            continue
        experiment, params, model_state = prune(run.experiment, run.params, run.model_state, values, found=widths)
        experiment, start = without_test(experiment), Start(params, model_state)
        rate = find_rate(experiment, start, Progress())
        tuned = train(experiment, start, rate["factor"], None, Progress())
        scratch = train(of_length(experiment, 2.0), None, 1.0, None, Progress())
        beside = Comparison(scratch, examples.name, "validation", lambda _: None)
        found[f"{factor:g}x"] = {
            "widths": values,
            "rate": rate,
            "fine_tuned": examples.drop(tuned, 6).to_dict(),
            "from_scratch": examples.drop(scratch, 6).to_dict(),
            # Below 0 where fine-tuning is better.
            "fine_tuned_beside_scratch": beside.drop(tuned, 3).to_dict(),
        }
        say(f"  {factor:g}x: fine-tuned {found[f'{factor:g}x']['fine_tuned']['value']:+.4f}, from new weights "
            f"{found[f'{factor:g}x']['from_scratch']['value']:+.4f}")  # fmt: skip
    return found


def bits(run: an.Run, _: Any) -> Result:
    """Measure int8 and int4 beside float32, and beside onnxruntime's own."""
    examples, whole = compared(run), weight_bytes(run)
    found: Result = {"float32": {"bytes": whole, "value": examples.value(run)}}
    runs = {"float32": run}
    for name, number in {"int8": 8, "int4": 4}.items():
        runs[name] = untrained_run(*quantize(run.experiment, run.params, run.model_state, number))
        size = weight_bytes(runs[name])
        found[name] = {"bytes": size, "share": size / whole, "drop": examples.drop(runs[name], 2).to_dict()}
    peers = onnxruntime_answers(run)
    for size in BATCHES:
        answers: dict[str, Callable[[], Any]] = {name: make_answer(one, size) for name, one in runs.items()}
        answers |= {name: answer(size) for name, (answer, _) in peers.items()}
        for name, times in measure_in_turns(answers, 1.0).items():
            found.setdefault(name, {})[f"batch {size}"] = times
    for name, (_, more) in peers.items():
        found[name] |= more
    for name in ("int8", "int4"):
        one, latency = found[name], [1 / found[name][f"batch {size}"]["ratio"] for size in BATCHES]
        say(f"  {name}: {100 * one['share']:.1f} % of the bytes, drop {one['drop']['value']:+.4f}, at most "
            f"{one['drop']['bound']:.4f}, times as fast: {', '.join(f'{x:.2f}' for x in latency)}")  # fmt: skip
    return found


def onnxruntime_answers(run: an.Run) -> dict[str, tuple[Callable[[int], Callable[[], Any]], Result]]:
    """Return onnxruntime's float32 model and its dynamically quantized one: what answers a batch, and what is known."""
    if not all(importlib.util.find_spec(name) for name in ("onnx", "onnxruntime")):
        return {}
    import onnxruntime
    from onnxruntime.quantization import quantize_dynamic

    from accelnet.exporting.onnx.export import to_onnx

    data, apply = run.experiment.data, run.experiment.pure_model.apply
    rows = data.splits["validation"]
    prepared = data.prepare({**data.take(np.array(rows)), "mask": np.ones(len(rows), bool)})
    inputs = prepared["inputs"]
    if not hasattr(inputs, "shape"):  # several arrays: the exported models differ too much in form
        return {}
    (batch,) = jax.export.symbolic_shape("batch")
    params, model_state = run.params, run.model_state

    def outputs(inputs: Any) -> Any:
        return apply(params, model_state, inputs, key=jax.random.key(0), train=False)[0]

    shape = jax.ShapeDtypeStruct((batch, *inputs.shape[1:]), inputs.dtype)
    made: dict[str, tuple[Callable[[int], Callable[[], Any]], Result]] = {}
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "model.onnx"
        path.write_bytes(to_onnx(outputs, shape))
        smaller = path.with_name("int8.onnx")
        quantize_dynamic(path, smaller)
        for name, file in {"onnxruntime float32": path, "onnxruntime int8": smaller}.items():
            settings = onnxruntime.SessionOptions()
            settings.intra_op_num_threads = os.cpu_count() or 1
            session = onnxruntime.InferenceSession(file.read_bytes(), settings, providers=["CPUExecutionProvider"])
            given, every = session.get_inputs()[0].name, np.asarray(inputs)
            logits = session.run(None, {given: every})[0]
            targets = np.asarray(prepared["targets"])
            known: Result = {"bytes": file.stat().st_size}
            if run.experiment.objective.task == "classes" and targets.ndim == 1:
                known["value"] = float((np.argmax(logits, -1) == targets).mean())

            def answer(size: int, session: Any = session, given: str = given, every: Any = every) -> Callable[[], Any]:
                some = every[np.arange(size) % len(every)]
                return lambda: session.run(None, {given: some})

            made[name] = answer, known
    return made


def search(run: an.Run, options: Any) -> Result:
    """Time the whole search with its defaults."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as directory:
        found = compress(run, out=Path(directory) / "small", progress=not options.quiet)
    say(f"  {found.words}")
    kept = {name: found.to_dict()[name] for name in ("recommended", "nearest", "words", "test", "wanted")}
    return {"seconds": time.perf_counter() - began, **kept}


def say(text: str) -> None:
    """Print a line at once."""
    print(text, flush=True)


def main() -> None:
    """Measure what is asked for, and keep each part as soon as it is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS[:3]))
    parser.add_argument("--rows", type=int, help="at most so many training rows")
    parser.add_argument("--epochs", type=float, help="passes over them, for every model")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each model, for the part trained")
    parser.add_argument("--again", action="store_true", help="measure what is recorded anew")
    parser.add_argument("--quiet", action="store_true", help="show no progress of a search")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "compress.json")
    options = parser.parse_args()
    record: Result = json.loads(options.out.read_text()) if options.out.exists() else {}
    machine = {"processor": platform.processor() or platform.machine(), "cpus": os.cpu_count(), "jax": jax.__version__}
    for name in options.models:
        for seed in range(options.seeds if "trained" in options.parts else 1):
            settings = {"rows": options.rows, "epochs": options.epochs, "seed": seed}
            wanted = [part for part in options.parts if part == "trained" or seed == 0]
            known = record.setdefault(name, {}).setdefault(f"seed {seed}", {})
            left = [part for part in wanted if options.again or known.get(part, {}).get("settings") != settings]
            if not left:
                continue
            say(f"{name}, seed {seed}")
            run = an.fit(MODELS[name](seed, options), progress=False)
            measured = {"untrained": untrained, "trained": trained, "bits": bits, "search": search}
            for part in left:
                began = time.perf_counter()
                found = measured[part](run, options)
                when = datetime.now(UTC).isoformat(timespec="seconds")
                told = {"settings": settings, "machine": machine, "when": when}
                known[part] = {**found, **told, "part_seconds": time.perf_counter() - began}
                write_atomically(options.out, json.dumps(plain_value(record), indent=1) + "\n")


if __name__ == "__main__":
    main()
