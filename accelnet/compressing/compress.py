"""Compress: how small and how fast a network can be for at most so much loss, and how sure that is."""

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax

from accelnet import runtime
from accelnet.arguments import flags, instance, integer, number, path, word
from accelnet.arguments import names as names_of
from accelnet.compressing.answer import Compressions, Wanted, choose
from accelnet.compressing.drop import Drop, mean_metric, resolution, tail_of, usual_metric
from accelnet.compressing.kept import check_free, evaluated, keep
from accelnet.compressing.ladder import LADDER
from accelnet.compressing.measured import Measured, PairedExamples, Say, measure
from accelnet.compressing.proposals import BITS, ways_of
from accelnet.compressing.search import Goal, Search
from accelnet.compressing.store import SearchStore
from accelnet.compressing.telling import told
from accelnet.compressing.ways import Ways
from accelnet.errors import UserError
from accelnet.evaluating.latency import make_answer, measure_in_turns
from accelnet.experiment import Experiment
from accelnet.models.compressed import made_by
from accelnet.terminal import StatusLine
from accelnet.training.record import write_report
from accelnet.training.run import Run

METHODS = ("widths", "ranks", "bits", "teacher")
USUAL_METHODS = ("widths", "ranks", "bits")
DIRECTORY = "compress"  # in the directory of the answer
_USUAL_DROP = 0.005
_ROOM = 1.25  # of what the split resolves, where nobody says how large a drop may be
_SECONDS = 0.3
_FEW_CALLS = 0.1  # seconds for a latency that decides what is trained


def compress(
    run: Run,
    *,
    max_drop: float | None = None,
    latency: float | None = None,
    batch: int = 1,
    methods: Sequence[str] = USUAL_METHODS,
    budget: int = 6,
    metric: str | None = None,
    targets: str | None = None,
    out: str | Path | None = None,
    progress: bool = True,
    ways: Ways | None = None,
) -> Compressions:
    """Look for smaller and faster networks in the place of a trained one, and recommend one by measurement.

    Networks with smaller widths and with layers of low rank are computed from the weights, and the promising ones are
    trained by the run's own recipe; each third training is one of a small network from new weights, for as many epochs
    in all. What is best gets fewer bits. All are compared with the original on the same validation examples.
    Recommended is the cheapest of which a bound says that it loses at most `max_drop`; the bounds of all networks hold
    at once with 95 %. The test split is used once, for that one.

    Args:
        run: Run of `fit`, or of `evaluate`.
        max_drop: Largest drop of the metric: of shares such as the accuracy the difference (0.005 is half a point of
            a hundred), of other metrics a share of the original's value. None: 0.005, or what the validation split can
            show if that is more; any, where a latency is given.
        latency: Longest time of an answer on this machine, seconds. None: any.
        batch: Batch size of that time.
        methods: Some of "widths", "ranks", "bits" and "teacher" (fine-tuning by the original's outputs too).
        budget: Number of trainings, each as long as the run's own; those from new weights are twice as long.
        metric: Metric that is compared, a mean over examples. None: a share such as the accuracy, or the experiment's
            `best_metric`.
        targets: Hardware for which predictions are added, as of `accelnet.plan`. None: none.
        out: Directory for the recommended run; in "compress" there are compress.json, report.html and the trainings,
            none of which is done again. None: nothing is kept.
        progress: Show on standard error what is being done.
        ways: How networks are made smaller. None: by the methods.

    Returns:
        The `Compressions`: `table`, `recommended` (its `run` is a run like any other), `nearest` where none keeps to
        what was asked for.

    Raises:
        UserError: if there are no validation rows, the model is an instance, the methods find nothing to make smaller,
            `max_drop` is less than the split can show, or `out` holds another run.

    Example:
        >>> import numpy as np, accelnet as an
        >>> x = np.random.default_rng(0).normal(size=(600, 4)).astype(np.float32)
        >>> data = an.data.from_arrays(x, (x[:, 0] > 0).astype(int), num_classes=2, validation=0.5)
        >>> run = an.fit(
        ...     an.Experiment(
        ...         data=data,
        ...         model=lambda rngs: an.models.MLP(4, (32,), 2, rngs=rngs),
        ...         batch_size=32,
        ...         steps=60,
        ...         optimizer=an.optim.adam(1e-2),
        ...         objective=an.objectives.softmax_cross_entropy(),
        ...     ),
        ...     progress=False,
        ... )
        >>> small = compress(run, max_drop=0.1, methods=["bits"], budget=0, progress=False)
        >>> small.measured[0].name, small.metric["name"]
        ('original', 'accuracy')
    """
    started = time.monotonic()
    instance("run", run, Run, "a Run, as of an.fit(...) or an.evaluate(...)")
    flags(progress=progress)
    methods = [word("a method", one, METHODS) for one in names_of("methods", methods)]
    integer("budget", budget, 0)
    integer("batch", batch, 1)
    for name, value in {"max_drop": max_drop, "latency": latency}.items():
        if value is not None:
            number(name, value, above=0)
    runtime.prepare()
    if jax.process_count() > 1:
        raise UserError("smaller networks are looked for in one process, on its devices: start one")
    name = (
        usual_metric(run.experiment.objective, run.experiment.best_metric) if metric is None else word("metric", metric)
    )
    most = _most_compared(methods, budget)
    max_drop = _checked(run.experiment, name, max_drop, latency, most)
    out = None if out is None else path("out", out).absolute()
    if out is not None:
        check_free(out)
    store = SearchStore(None if out is None else out / DIRECTORY)
    store.claim(run)
    say = StatusLine(progress)
    comparison = PairedExamples(run, name, "validation", say)
    sizes = sorted({1, batch, max(run.experiment.resolved_eval_batch_size, 2)})
    if ways is None:
        ways = ways_of(run, methods, sizes, say)
    wanted = Wanted(max_drop, latency, batch)
    fits = None if latency is None else partial(_is_fast, run, wanted)
    goal = Goal(max_drop, fits, most)
    search = Search(run, ways, comparison, goal, budget=budget, store=store, say=say)
    candidates = search.candidates()
    measured = measure(candidates, comparison, sizes, seconds=_SECONDS, targets=targets, say=say)
    recommended, nearest = choose(measured, wanted)
    test: dict[str, Any] = {}
    if recommended is not None:
        recommended, test = _finished(recommended, run, name, out, say)
        measured = [recommended if one.name == recommended.name else one for one in measured]
    found = Compressions(
        experiment=run.experiment.name,
        measured=measured,
        recommended=recommended,
        nearest=nearest,
        words=told(measured, recommended, nearest, wanted, comparison, test),
        wanted=wanted,
        metric={
            "name": name,
            "lower_is_better": comparison.metric.lower_is_better,
            "is_share": comparison.metric.is_share,
        },
        split=("validation", comparison.examples),
        test=test,
        sensitivity=ways.sensitivity,
        notes=search.notes,
        seconds=time.monotonic() - started,
    )
    if store.directory is not None:
        write_report(store.directory, "compress", found.to_dict(), found.page())
    say.close()
    return found


def _checked(
    experiment: Experiment, metric: str, max_drop: float | None, latency: float | None, most: int
) -> float | None:
    """Return the largest drop, or say why nothing can be found out about it."""
    examples, known = experiment.data.num_examples("validation"), mean_metric(experiment.objective, metric)
    if not examples:
        raise UserError(
            f"data {experiment.data.name!r} has no validation rows, on which smaller networks are compared with the "
            "original: keep some when the data is made, as validation=0.1, and train again"
        )
    made_by(experiment.model)  # refuses a model that is an instance
    least = resolution(known, examples, most)
    if max_drop is None:
        return None if latency is not None else max(_USUAL_DROP, _ROOM * least)
    if max_drop < least:
        same = Drop(0.0, 0.0, 0.0, least, 0.0, examples, tail_of(most), (0.0, 0.0))
        raise UserError(
            f"max_drop is {max_drop:g}, and {examples:,} validation examples cannot show a drop of less than "
            f"{least:.2g}, even if a network answered all of them as the original does: give at least that, keep "
            f"{same.examples_needed(max_drop):,} rows for validation, or take a smaller budget, since fewer networks "
            "are told apart more easily"
        )
    return max_drop


def _most_compared(methods: Sequence[str], budget: int) -> int:
    """Return the largest number of networks that a search compares."""
    structures = bool({"widths", "ranks"} & set(methods))
    trained = budget if structures and budget else len(LADDER) if structures else 0
    bits = len(BITS) + (2 * (len(BITS) - 1) if structures else 0)
    return max(1, trained + (bits if "bits" in methods else 0))


def _is_fast(original: Run, wanted: Wanted, one: Run) -> bool:
    answers = {"original": make_answer(original, wanted.batch_size), "it": make_answer(one, wanted.batch_size)}
    return measure_in_turns(answers, _FEW_CALLS)["it"]["p50"] <= (wanted.latency or 0.0)


def _finished(one: Measured, original: Run, metric: str, out: Path | None, say: Say) -> tuple[Measured, dict[str, Any]]:
    """Evaluate the recommended network on the test split too, and keep it."""
    say(f"{one.name}: all splits")
    run, test = evaluated(one.run), {}
    if run.experiment.data.num_examples("test"):
        compared = PairedExamples(original, metric, "test", say)
        values = {"value": compared.value(run), "original": compared.value(original)}
        test = {**values, "drop": compared.drop(run, 1).to_dict()}
    if out is not None:
        say(f"{one.name}: writing {out}")
        run = keep(run, one.name, out)
    return replace(one, candidate=replace(one.candidate, run=run)), test
