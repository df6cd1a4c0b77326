"""On which accelerator: hardware by whether it fits, its time and its cost, each with what that rests on."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accelnet.errors import UserError
from accelnet.evaluating.latency import measure_step
from accelnet.experiment import Experiment
from accelnet.planning.plan import plan
from accelnet.planning.run_time import RunTime, num_evaluation_batches
from accelnet.planning.targets import DEFAULT_TARGETS, this_machine
from accelnet.report.progress import Progress
from accelnet.terminal import rendered
from accelnet.training.record import plain_value, write_report
from accelnet.training.run import Run


def choose_accelerator(
    experiment: Experiment,
    targets: Sequence[str] | None = None,
    *,
    budget_usd: float | None = None,
    deadline_hours: float | None = None,
    compile: bool = True,  # noqa: A002, as of `plan`
    targets_file: str | Path | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Put hardware side by side for a whole run of an experiment: this machine is measured, the rest is predicted.

    Args:
        experiment: with the batch size, precision and number of steps that are to be run.
        targets: as of `plan`. None: a spread of them.
        budget_usd: most dollars of the run.
        deadline_hours: most hours of the run.
        compile: as of `plan`.
        targets_file: as of `plan`.
        progress: show what is done on standard error.

    Returns:
        JSON values: "experiment", "steps", "batch_size", "budget_usd", "deadline_hours", "choice" (as of plan.json) and
        "rows", fastest first, each with "name", "title", "how" ("measured" or "predicted"), "assumption", "fits",
        "reason", "memory_bytes", "step_seconds", "run_seconds", "usd" and "within" the limits.

    Raises:
        UserError: if no target could be answered.

    Source: original.
    """
    say = Progress(progress)
    say("a step on this machine")
    run, seconds = measure_step(experiment)
    say.close()
    made = plan(
        experiment,
        DEFAULT_TARGETS if targets is None else targets,
        budget_usd=budget_usd,
        deadline_hours=deadline_hours,
        compile=compile,
        remedies=False,
        targets_file=targets_file,
        progress=progress,
    ).to_dict()
    rows = [_measured(experiment, run, seconds), *(_predicted(target) for target in made["targets"])]
    for row in rows:
        row["within"] = _within(row, budget_usd, deadline_hours)
    rows.sort(key=lambda row: (not row["fits"], row["run_seconds"] is None, row["run_seconds"]))
    described = {name: made[name] for name in ("experiment", "steps", "batch_size", "choice")}
    limits = {"budget_usd": budget_usd, "deadline_hours": deadline_hours}
    return plain_value({**described, **limits, "rows": rows})


def _measured(experiment: Experiment, sample: Run, seconds: float) -> dict[str, Any]:
    """Return this machine's row, from a short run and the seconds of one of its steps."""
    machine = this_machine()
    usd = machine.usd_per_hour
    timing, train = sample.result["timing"], seconds * experiment.total_steps

    def batches(of: Experiment) -> int:
        return num_evaluation_batches(of, experiment.resolved_eval_batch_size, train)

    evaluation = timing["eval_seconds"] * batches(experiment) / batches(sample.experiment)
    run = RunTime(timing["compile_seconds"], train, evaluation, timing["input_seconds"]).total
    return {
        "name": "here",
        "title": machine.accelerator.title,
        "how": "measured",
        "assumption": "every step and evaluation takes as long as those that were timed; no rent",
        "fits": True,
        "reason": "",
        "memory_bytes": None,
        "step_seconds": seconds,
        "run_seconds": run,
        "usd": None if usd is None else usd * run / 3600,
    }


def _predicted(target: Mapping[str, Any]) -> dict[str, Any]:
    memory, seconds = target["memory"], target["step_seconds"]
    told = ""
    if seconds is not None:
        kernels, _, rates = seconds["source"].partition(", ")
        told = f"{kernels} kernels at {'measured' if rates == 'measured' else 'stated'} rates"
        told += f", {target['mesh']}" + (f"; price {target['price']}" if target["price"] else "; no price is known")
    return {
        "name": target["name"],
        "title": target["title"],
        "how": "predicted",
        "assumption": told,
        "fits": bool(target["fits"]),
        "reason": target["reason"],
        "memory_bytes": None if memory is None else memory["total_bytes"],
        "step_seconds": None if seconds is None else seconds["expected"],
        "run_seconds": target["run_seconds"],
        "usd": target["usd_per_run"],
    }


def _within(row: Mapping[str, Any], budget_usd: float | None, deadline_hours: float | None) -> bool:
    """Say whether a row is within the limits; what has no price is not within a budget, this machine aside."""
    if not row["fits"] or row["run_seconds"] is None:
        return False
    cheap = budget_usd is None or (row["how"] == "measured" if row["usd"] is None else row["usd"] <= budget_usd)
    return cheap and (deadline_hours is None or row["run_seconds"] <= 3600 * deadline_hours)


def tuned_settings(directory: str | Path) -> dict[str, Any]:
    """Return the settings that tuning has recommended, or those of the winner of a comparison.

    Args:
        directory: with the tune.json of `tune`, or the compare.json of `compare`.

    Returns:
        Values by field of the Config.

    Raises:
        UserError: if there is neither, or it cannot be understood.
    """
    found = [path for name in ("tune.json", "compare.json") if (path := Path(directory) / name).is_file()]
    if not found:
        raise UserError(f"{directory} holds neither tune.json nor compare.json: `tune --workdir {directory}` makes one")
    try:
        content = json.loads(found[0].read_text())
        if found[0].name == "tune.json":
            return dict(content["recommended"])
        rates = {one["name"]: one["learning_rate"] for one in content["candidates"]}
        return {"learning_rate": float(rates[content["winner"]])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{found[0]} cannot be understood ({error}): give another directory") from error


def accelerator_table(values: Mapping[str, Any]) -> str:
    """Return hardware side by side as text, at most 100 columns wide."""
    import rich.box
    import rich.table

    from accelnet.report.numbers import duration, number

    table = rich.table.Table(box=rich.box.SIMPLE, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for place, name in enumerate(("hardware", "fits", "step", "run", "USD", "", "how", "assumption")):
        table.add_column(name, justify="right" if 2 <= place <= 4 else "left")
    for row in values["rows"]:
        times = ["" if row[key] is None else duration(row[key]) for key in ("step_seconds", "run_seconds")]
        limit = "✓" if row["within"] else ""
        fits = "yes" if row["fits"] else "no"
        table.add_row(
            row["name"], fits, *times, number(row["usd"]), limit, row["how"], row["assumption"] or row["reason"]
        )
    lines = rendered(table).splitlines()
    size = f"{values['steps']:,} steps of {values['batch_size']:,} examples"
    head = f"{values['experiment']}: {size}{limits_in_words(values)}"
    choice = [f"To rent: {values['choice']['reason']}."] if values["choice"] else []
    told = "run, USD: compiling, steps, evaluation and input, typical times and list prices. ✓: within the limits."
    return "\n".join([head, "", *lines, "", told, *choice])


def limits_in_words(values: Mapping[str, Any]) -> str:
    """Return the limits, with a comma before each."""
    budget, deadline = values["budget_usd"], values["deadline_hours"]
    told = "" if budget is None else f", at most {budget:g} USD"
    return told + ("" if deadline is None else f", within {deadline:g} hours")


def write_accelerators(values: Mapping[str, Any], workdir: str | Path) -> Path:
    """Write accelerator.json and report.html, each whole or not at all; return the page's path.

    Raises:
        UserError: if they cannot be written.
    """
    from accelnet.choosing.accelerator_page import accelerator_page

    return write_report(workdir, "accelerator", values, accelerator_page(values))
