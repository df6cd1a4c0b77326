"""Controls: outcomes and ends that are wrong, which the harness must notice, and right ones, which it must accept."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

from scripts.faultstorm.faults import Fault
from scripts.faultstorm.judge import misnamed, misnamed_resume
from scripts.faultstorm.outcome import differences
from scripts.faultstorm.processes import Ended
from scripts.faultstorm.storm import Ground


def controls(ground: Ground) -> dict[str, bool]:
    """Return by name of a control that must fail whether the harness noticed it."""
    outcome, step = ground.reference.outcome, max(ground.reference.outcome.checkpoints)
    arrays = dict(outcome.checkpoints[step] or {})
    name = min(arrays)
    arrays[name] = (*arrays[name][:2], arrays[name][2] ^ 1)
    tag = min(outcome.scalars)
    metrics = {**outcome.result["metrics"], "test": {**outcome.result["metrics"]["test"], "loss": 0.0}}
    changed = {
        "a metric of result.json": replace(outcome, result={**outcome.result, "metrics": metrics}),
        "no result.json": replace(outcome, result=None),
        "a row twice": replace(outcome, rows=(*outcome.rows, outcome.rows[-1])),
        "a row's loss": replace(outcome, rows=(*outcome.rows[:-1], {**outcome.rows[-1], "loss": 0.0})),
        "a scalar missing": replace(outcome, scalars={**outcome.scalars, tag: outcome.scalars[tag][:-1]}),
        "one bit of an array": replace(outcome, checkpoints={**outcome.checkpoints, step: arrays}),
        "a damaged checkpoint": replace(outcome, checkpoints={**outcome.checkpoints, step: None}),
        "a temporary file": replace(outcome, left=(".config.json.tmp",)),
    }
    caught = {name: bool(differences(one, ground.reference)) for name, one in changed.items()}
    told = Ended((4,), ("preempted: told to end (SIGTERM) at step 5: saved, go on with --resume\n",), "hit", 1.0, ())
    fault = Fault(0, "SIGTERM", ground.kind)
    starts = {
        "no message": replace(told, said=("",)),
        "a traceback": replace(told, said=(f"Traceback (most recent call last):\n{told.said[0]}",)),
        "another code": replace(told, codes=(1,)),
        "two lines": replace(told, said=(f"a line\n{told.said[0]}",)),
        "another cause": replace(told, said=("preempted: nobody knows why\n",)),
        "a hang": replace(told, codes=("hang",), said=("",)),
    }
    caught |= {name: bool(misnamed(fault, ended)) for name, ended in starts.items()}
    caught["a resume that fails"] = bool(misnamed_resume(replace(told, codes=(2,), said=("error: no\n",))))
    # And what is right must pass.
    caught["nothing wrong"] = not differences(outcome, ground.reference) and not misnamed(fault, told)
    return caught


def files_control(ground: Ground, workdir: Path) -> bool:
    """Say whether a finished run's result.json, altered on the disk, is noticed."""
    shutil.copytree(ground.folder / "whole", workdir)
    path = workdir / "result.json"
    result = json.loads(path.read_text())
    result["metrics"]["test"]["loss"] *= 1 + 2**-52
    path.write_text(json.dumps(result))
    return bool(differences(ground.read(workdir), ground.reference))
