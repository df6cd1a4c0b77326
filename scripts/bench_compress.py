"""What compression reaches, model by model: without training, fine-tuned beside new weights, and with fewer bits.

python scripts/bench_compress.py                                     all of it, within an hour on two idle cores
python scripts/bench_compress.py --models fashion_mlp --parts untrained bits
python scripts/bench_compress.py --models digits_cnn --parts search  the whole search with its defaults, timed
python scripts/bench_compress.py --rows 2000 --epochs 1 --seeds 1 --out /tmp/rough.json    whether all parts run

Results go to benchmarks/compress.json row by row, and what is in there already is not done again, but with --again: it
can be stopped at any time, and done in pieces. The trained networks are kept in --runs. At the end a table says how
long each part took. Trainings are shorter than those of the scripts (see `MODELS`), so that all fit into the hour.

"untrained": the metric at 2, 4 and 8 times fewer FLOPs, by units chosen by backward elimination, by activation times
weight and by magnitude, on the test split. "trained": the paired drop after fine-tuning at 4 times fewer FLOPs, and
that of the same network from new weights for as many epochs in all, by seed. "bits": bytes, paired drop and latency in
turns with float32 of int8 and int4. "peers": onnxruntime's dynamic quantization of the exported model, and of dense and
recurrent networks PyTorch's, torchao's and Keras's, those that are installed (pip install '.[bench]'). "search":
`compress` of digits_cnn with its defaults. Drops are of the metric of the validation split: shares of 1 for accuracies,
shares of the original's value for losses.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

import jax
import numpy as np
from flax.traverse_util import flatten_dict

import accelnet as an
from accelnet.compressing.bits import quantize
from accelnet.compressing.candidate import cost_of
from accelnet.compressing.compress import compress
from accelnet.compressing.drop import usual_metric
from accelnet.compressing.elimination import prune
from accelnet.compressing.finetune import Start, find_rate, of_length, train, untrained_run, without_test
from accelnet.compressing.measured import PairedExamples, weight_bytes
from accelnet.compressing.proposals import WidthLadder
from accelnet.compressing.widths import find_widths
from accelnet.disk import write_atomically
from accelnet.evaluating.latency import inference, make_answer, measure_in_turns
from accelnet.exporting.onnx.export import to_onnx
from accelnet.json_file import plain_value
from accelnet.training.progress import Progress
from bench_systems import layers as describe
from bench_systems.compressible import DESCRIBED, MODELS, PRUNABLE
from bench_systems.pruners import is_installed, pruned
from bench_systems.quantizers import peers_of

FACTORS, BATCHES = (2.0, 4.0, 8.0), (1, 16, 256)
METHODS = ("elimination", "activation", "magnitude")
BITS = {"int8": 8, "int4": 4}
MOST_SCORED = 2000  # rows on which others' networks are scored: outputs of all steps of a text are many
Result = dict[str, Any]
Rows = Iterator[tuple[str, Result]]  # names of rows that were not there yet, and what they hold


def compared(run: an.Run, split: str = "validation") -> PairedExamples:
    """Return the examples on which networks are compared with a run."""
    metric = usual_metric(run.experiment.objective, run.experiment.best_metric)
    return PairedExamples(run, metric, split, lambda _: None)


def untrained(run: an.Run, _: Any, known: Result) -> Rows:
    """Measure pruned networks without training, on the test split, which no method has seen."""
    widths, examples = find_widths(run.experiment), compared(run, "test")
    ladder = WidthLadder(run, widths, lambda _: None)
    if "original" not in known:
        yield "original", {"value": examples.value(run), "left_alone": widths.left}
    for factor in FACTORS:
        values = ladder.values(factor)
        if values is None or f"{factor:g}x" in known:
            continue
        row: Result = {"widths": values, "flops": ladder.costs(values)[1].flops}
        for method in METHODS:
            began = time.perf_counter()
            weights = prune(run.experiment, run.params, run.model_state, values, method=method, found=widths)  # type: ignore[arg-type]
            row[f"{method}_seconds"] = time.perf_counter() - began
            row[method] = examples.value(untrained_run(*weights))
        say(f"  {factor:g}x: " + ", ".join(f"{method} {row[method]:.4f}" for method in METHODS))
        yield f"{factor:g}x", row


def trained(run: an.Run, options: Any, known: Result) -> Rows:
    """Measure fine-tuned networks beside the same ones from new weights, for as many epochs in all."""
    left = [factor for factor in options.factors if f"{factor:g}x" not in known]
    if not left:
        return
    widths, examples = find_widths(run.experiment), compared(run)
    ladder = WidthLadder(run, widths, lambda _: None)
    for factor in left:
        values = ladder.values(factor)
        if values is None:
            continue
        experiment, params, model_state = prune(run.experiment, run.params, run.model_state, values, found=widths)
        experiment, start = without_test(experiment), Start(params, model_state)
        rate = find_rate(experiment, start, Progress())
        tuned = train(experiment, start, rate["factor"], None, Progress())
        scratch = train(of_length(experiment, 2.0), None, 1.0, None, Progress())
        beside = PairedExamples(scratch, examples.name, "validation", lambda _: None)
        row = {
            "widths": values,
            "rate": rate,
            "fine_tuned": examples.drop(tuned, 6).to_dict(),
            "from_scratch": examples.drop(scratch, 6).to_dict(),
            # Below 0 where fine-tuning is better.
            "fine_tuned_beside_scratch": beside.drop(tuned, 3).to_dict(),
        }
        say(f"  {factor:g}x: drop fine-tuned {row['fine_tuned']['value']:+.4f}, from new weights "
            f"{row['from_scratch']['value']:+.4f}")  # fmt: skip
        yield f"{factor:g}x", row


def bits(run: an.Run, _: Any, known: Result) -> Rows:
    """Measure int8 and int4 beside float32."""
    if set(BITS) <= set(known):
        return
    examples, whole = compared(run), weight_bytes(run)
    runs = {"float32": run, **rounded(run)}
    rows: dict[str, Result] = {"float32": {"bytes": whole, "value": examples.value(run)}}
    for name in BITS:
        size = weight_bytes(runs[name])
        rows[name] = {"bytes": size, "share": size / whole, "drop": examples.drop(runs[name], 2).to_dict()}
    for size in BATCHES:
        answers = {name: make_answer(one, size) for name, one in runs.items()}
        for name, times in measure_in_turns(answers, 1.0).items():
            rows[name][f"batch {size}"] = times
    for name in BITS:
        one, speeds = rows[name], [1 / rows[name][f"batch {size}"]["ratio"] for size in BATCHES]
        say(f"  {name}: {100 * one['share']:.1f} % of the bytes, drop {one['drop']['value']:+.4f}, at most "
            f"{one['drop']['bound']:.4f}, times as fast: {', '.join(f'{x:.2f}' for x in speeds)}")  # fmt: skip
    yield from rows.items()


def rounded(run: an.Run) -> dict[str, an.Run]:
    """Return a run with weights of 8 and of 4 bits."""
    weights = run.experiment, run.params, run.model_state
    return {name: untrained_run(*quantize(*weights, number)) for name, number in BITS.items()}


def peers(run: an.Run, options: Any, known: Result) -> Rows:
    """Measure others' quantization of the same network: bytes, scores on the same rows, latency of each alone.

    Threads of one system may spin for a while when it is done, so they are not timed in turns.
    """
    layers = DESCRIBED.get(options.model)
    inputs, targets = prepared_rows(run, "validation", layers, MOST_SCORED)

    def measured(answer: Callable[[np.ndarray], Any], num_bytes: int) -> Result:
        row: Result = {"bytes": num_bytes, **scores(answer(inputs), targets)}
        for size in BATCHES:
            some = inputs[np.arange(size) % len(inputs)]
            row[f"batch {size}"] = measure_in_turns({"it": lambda some=some: answer(some)}, 1.0)["it"]["p50"]
        return row

    for name, one in {"float32": run, **rounded(run)}.items():
        if f"accelnet {name}" not in known:
            yield f"accelnet {name}", measured(outputs_of(one), weight_bytes(one))
    weights = {name: np.asarray(value) for name, value in flatten_dict(run.params, sep="/").items()}
    for peer in peers_of(exported(run, inputs), layers, weights, inputs[:1]):
        if peer.name not in known:
            row = measured(peer.answer, peer.num_bytes)
            say(f"  {peer.name}: {peer.num_bytes:,} bytes, {1e6 * row['batch 1']:.0f} us, {row['accuracy']:.4f} right")
            yield peer.name, row


def pruners(run: an.Run, options: Any, known: Result) -> Rows:
    """Measure others' pruning to the FLOPs of `untrained`, without training, on the test split."""
    layers = PRUNABLE.get(options.model)
    if layers is None or not is_installed():
        return
    ladder = WidthLadder(run, find_widths(run.experiment), lambda _: None)
    whole = cost_of(run.experiment).flops
    weights = {name: np.asarray(value) for name, value in flatten_dict(run.params, sep="/").items()}
    weights |= {name: np.asarray(value) for name, value in flatten_dict(run.model_state, sep="/").items()}
    inputs, targets = prepared_rows(run, "test", layers)
    some = prepared_rows(run, "train", layers, MOST_SCORED)
    for factor in FACTORS:
        values = ladder.values(factor)
        if values is None or any(name.startswith(f"{factor:g}x ") for name in known):
            continue
        reached = whole / ladder.costs(values)[1].flops
        for one in pruned(layers, weights, *some, reached):
            row = {"share": one.share, "accuracy": scores(one.answer(inputs), targets)["accuracy"]}
            say(f"  {factor:g}x: {one.name} {row['accuracy']:.4f} at {100 * one.share:.0f} % of the products")
            yield f"{factor:g}x {one.name}", row


def prepared_rows(
    run: an.Run, split: str, layers: tuple[Any, ...] | None, most: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return inputs, as others' first layer reads them, and targets of a split, or of the first rows of it."""
    rows, data = np.array(run.experiment.data.splits[split][:most]), run.experiment.data
    batch = data.prepare({**data.take(rows), "mask": np.ones(len(rows), bool)})
    inputs, targets = np.array(batch["inputs"]), np.array(batch["targets"])  # PyTorch wants to own its rows
    first = None if layers is None else layers[0]
    if isinstance(first, describe.Dense):
        inputs = inputs.reshape(len(rows), -1)
    elif isinstance(first, describe.Recurrent) and inputs.ndim == 4:  # images, as so many lines
        inputs = inputs.reshape(len(rows), inputs.shape[1], -1)
    return inputs, targets


def outputs_of(run: an.Run) -> Callable[[np.ndarray], np.ndarray]:
    """Return the compiled model of a run, from prepared inputs of the host to outputs there."""
    apply = run.experiment.pure_model.apply

    def outputs(weights: Any, inputs: Any) -> Any:
        params, model_state = weights
        return apply(params, model_state, inputs, key=jax.random.key(0), train=False)[0]

    function = inference(outputs, (run.params, run.model_state))
    return lambda inputs: np.asarray(function(inputs))


def exported(run: an.Run, inputs: np.ndarray) -> bytes:
    """Return a run's model as an ONNX file with a free batch size."""
    apply, (batch,) = run.experiment.pure_model.apply, jax.export.symbolic_shape("batch")

    def outputs(inputs: Any) -> Any:
        return apply(run.params, run.model_state, inputs, key=jax.random.key(0), train=False)[0]

    return to_onnx(outputs, jax.ShapeDtypeStruct((batch, *inputs.shape[1:]), inputs.dtype))


def scores(logits: Any, targets: np.ndarray) -> Result:
    """Return the share of right answers, and the mean negative log-likelihood."""
    logits = np.asarray(logits, np.float64)
    largest = logits.max(-1, keepdims=True)
    likelihood = logits - largest - np.log(np.exp(logits - largest).sum(-1, keepdims=True))
    own = np.take_along_axis(likelihood, targets[..., None].astype(np.int64), -1)
    return {"accuracy": float((logits.argmax(-1) == targets).mean()), "cross_entropy": float(-own.mean())}


def search(run: an.Run, options: Any, known: Result) -> Rows:
    """Time the whole search with its defaults."""
    if "defaults" in known:
        return
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as directory:
        found = compress(run, out=Path(directory) / "small", progress=not options.quiet)
    say(f"  {found.words}")
    kept = {name: found.to_dict()[name] for name in ("recommended", "nearest", "words", "test", "wanted")}
    yield "defaults", {"search_seconds": time.perf_counter() - began, **kept}


PARTS: dict[str, Callable[[an.Run, Any, Result], Rows]] = {
    "untrained": untrained, "trained": trained, "bits": bits, "peers": peers, "pruners": pruners,
    "search": search,
}  # fmt: skip


def say(text: str) -> None:
    """Print a line at once."""
    print(text, flush=True)


def wanted(options: Any) -> Iterator[tuple[str, int, list[str]]]:
    """Return models and seeds with the parts that are measured of them."""
    for name in options.models:
        for seed in range(options.seeds if "trained" in options.parts else 1):
            once = [part for part in options.parts if part != "search" or name == "digits_cnn"]
            yield name, seed, once if seed == 0 else ["trained"]


def done(record: Result, path: Path, settings: Result, rows: Rows, part: str) -> float:
    """Measure the rows of a part that are not there yet, keep each at once, and return the seconds that they took."""
    machine = {"processor": platform.processor() or platform.machine(), "cpus": os.cpu_count(), "jax": jax.__version__}
    whole, began = 0.0, time.perf_counter()
    held = record[settings["model"]][f"seed {settings['seed']}"][part]
    for name, row in rows:
        seconds = time.perf_counter() - began
        when = datetime.now(UTC).isoformat(timespec="seconds")
        held["rows"][name] = {**row, "seconds": seconds, "machine": machine, "when": when}
        write_atomically(path, json.dumps(plain_value(record), indent=1) + "\n")
        whole, began = whole + seconds, time.perf_counter()
    held["finished"] = True
    write_atomically(path, json.dumps(plain_value(record), indent=1) + "\n")
    return whole + time.perf_counter() - began


def main() -> None:
    """Measure what is asked for, and keep each row as soon as it is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--factors", nargs="+", type=float, default=[4.0], help="FLOPs of the part trained")
    parser.add_argument("--rows", type=int, help="at most so many training rows")
    parser.add_argument("--epochs", type=float, help="passes over them, for every model")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each model, for the part trained")
    parser.add_argument("--again", action="store_true", help="measure what is recorded anew")
    parser.add_argument("--quiet", action="store_true", help="show no progress of a search")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "bench_compress", help="where networks are kept")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "compress.json")
    options = parser.parse_args()
    record: Result = json.loads(options.out.read_text()) if options.out.exists() else {}
    took: list[tuple[str, float]] = []
    for name, seed, parts in wanted(options):
        settings: Result = {"model": name, "seed": seed, "rows": options.rows, "epochs": options.epochs}
        known, left = record.setdefault(name, {}).setdefault(f"seed {seed}", {}), []
        for part in parts:
            own = settings | ({"factors": options.factors} if part == "trained" else {})
            if options.again or known.get(part, {}).get("settings") != own:
                known[part] = {"settings": own, "rows": {}}
            left += [] if known[part].get("finished") else [part]
        if not left:
            continue
        began, options.model = time.perf_counter(), name
        folder = options.runs / "-".join(f"{key}={value}" for key, value in settings.items())
        run = an.fit(MODELS[name](seed, options), workdir=folder, resume=True, progress=False)
        took.append((f"{name}, seed {seed}: training", time.perf_counter() - began))
        say(f"{name}, seed {seed}: trained in {took[-1][1]:.0f} s")
        for part in left:
            rows = PARTS[part](run, options, known[part]["rows"])
            took.append((f"{name}, seed {seed}: {part}", done(record, options.out, settings, rows, part)))
            say(f"{took[-1][0]}: {took[-1][1]:.0f} s")
    for what, seconds in took:
        say(f"{seconds:8.0f} s  {what}")
    say(f"{sum(seconds for _, seconds in took):8.0f} s  in all")


if __name__ == "__main__":
    main()
