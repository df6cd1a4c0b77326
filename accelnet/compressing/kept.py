"""The answer as a run like any other: evaluated, and in a work directory of its own."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

from accelnet.disk import write_atomically
from accelnet.errors import UserError
from accelnet.json_file import read_json
from accelnet.parallel.memory import exhaustion_explained
from accelnet.terminal import say
from accelnet.training.checkpoint import DIRECTORY, Checkpoints
from accelnet.training.evaluator import Evaluator
from accelnet.training.hosts import HANG_SECONDS, supervised
from accelnet.training.program import prepare
from accelnet.training.result import make_result
from accelnet.training.run import Run
from accelnet.training.state import abstract_state
from accelnet.training.stored import CONFIG
from accelnet.training.timing import Timing
from accelnet.training.workdir import DiskWorkdir

_KEPT = "kept.json"


def evaluated(run: Run) -> Run:
    """Return a run with the metrics of all its splits, the test split among them.

    Args:
        run: The run.
    """
    experiment = run.experiment.replace(initial=None, final_evaluation=None)
    state = run.state.replace(metrics=experiment.objective.empty())
    with supervised(None, HANG_SECONDS) as hosts, exhaustion_explained():
        feed, programs = prepare(experiment)
        try:
            evaluator = Evaluator(experiment, feed, programs, hosts)
            wanted = experiment.final_splits
            metrics = {
                split: evaluator.evaluate(state, split) if split in wanted else {}
                for split in ("train", *experiment.data.splits)
            }
        finally:
            feed.close()
        rows = [row for row in run.rows if row["step"] <= run.step]
        made = replace(run, experiment=experiment, state=state, metrics=metrics, rows=rows)
        return replace(made, result=make_result(experiment, state, metrics, Timing(), {}, None))


def check_free(out: Path) -> None:
    """Refuse a directory for the answer that holds another run, or one that was trained on.

    Raises:
        UserError: if it does.
    """
    before = _kept(out)
    steps = Checkpoints(out).steps()
    if not steps and not (out / CONFIG).exists():
        return
    if before is None:
        raise UserError(f"{out} holds a run already: give another --out")
    if steps != [before["step"]]:
        raise UserError(f"the smaller network in {out} was trained on since it was made: give another --out")


def keep(run: Run, name: str, out: Path) -> Run:
    """Write a run into a work directory, from which training, evaluation and predictions go on; return it.

    Args:
        run: Run with its metrics, as of `evaluated`.
        name: Name of the candidate that it is.
        out: Directory, as of `check_free`: an earlier answer in it is replaced.

    Raises:
        UserError: if it cannot be written.
    """
    if _kept(out) is not None:
        _clear(out)
    with supervised(None, HANG_SECONDS) as hosts:
        work = DiskWorkdir(out, run.experiment, hosts, resume=False, allow_change=False, note=say)
        try:
            work.open(abstract_state(run.experiment))
            for row in run.rows:
                work.log(row)
            work.save(run.state, Timing().seconds | {"total": 0.0}, None)
            work.wait()
            result = {**run.result, "workdir": str(out)}
            work.finish(result)
        finally:
            work.close()
    write_atomically(out / _KEPT, json.dumps({"name": name, "step": run.step}) + "\n")
    return replace(run, result=result)


def _kept(out: Path) -> dict[str, object] | None:
    return read_json(out / _KEPT, "what a search has kept", {"name": str, "step": int}, "give another --out")


def _clear(out: Path) -> None:
    """Remove the earlier answer, and nothing else."""
    for name in (DIRECTORY, "tensorboard"):
        shutil.rmtree(out / name, ignore_errors=True)
    names = (CONFIG, "metrics.jsonl", "result.json", "curves.png", "model.accelnet", "best.accelnet", _KEPT)
    for path in (out / name for name in names):
        path.unlink(missing_ok=True)
