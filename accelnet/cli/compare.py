"""The verb `compare`."""

import dataclasses
import importlib.util
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import tyro

from accelnet.cli.devices import start_platform
from accelnet.cli.next_command import command, flags
from accelnet.cli.output import Output, finish
from accelnet.cli.script import Config, ExperimentFunction, Script
from accelnet.errors import UserCodeError, UserError, user_code
from accelnet.terminal import folded, rendered

if TYPE_CHECKING:
    from accelnet.choosing.candidates import Contender


@dataclass(frozen=True)
class CompareOptions:
    """Candidates and the precision of the comparison. A single candidate is compared with the script as it is."""

    optimizers: str | None = None
    """Algorithms that replace the script's own, separated by commas, such as sgd,momentum,adam,muon."""
    variants: tuple[Path, ...] = ()
    """Scripts, each with its own function `experiment`."""
    set: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """field=value, or several separated by spaces, once for each candidate."""
    seeds: int | None = None
    """Trainings of each candidate. None: as many as can show a difference, at least 12."""
    metric: str | None = None
    """Metric that decides. None: the experiment's best_metric."""
    target: float | None = None
    """Value of the metric, for the time to reach it. None: what every candidate reaches in half of its trainings."""
    rates: tuple[float, ...] | None = None
    """Learning rates that are tried for each candidate. None: 16 from 1e-4 to 3."""
    tuning_seeds: int = 2
    """Trainings of each of these rates."""
    alpha: float = 0.02
    """Chance of claiming a difference where there is none, over all comparisons."""
    workdir: Path | None = None
    """Directory for compare.json, report.html and the trained candidates. The same command continues there."""


def compare(script: Script, config: Config, options: CompareOptions, output: Output) -> None:
    """Compare optimizers, variants or settings, and test the differences."""
    if options.target is not None and not math.isfinite(options.target):
        raise UserError(f"--target is {options.target}, expected a number of the metric")
    start_platform()
    from accelnet.choosing.candidates import Contender, optimizer_candidates
    from accelnet.choosing.compare import RATES, compare

    candidates = [Contender(text, script.experiment, changed(config, text)) for text in options.set]
    candidates += _variants(script, config, options.variants)
    if options.optimizers is not None:
        names = [name.strip() for name in options.optimizers.split(",") if name.strip()]
        candidates += optimizer_candidates(script.experiment, config, names)
    if not candidates:
        raise UserError(
            "nothing to compare: give --optimizers sgd,adam, or --variants a.py b.py, or --set field=value, once for "
            "each candidate"
        )
    if len(candidates) == 1:
        candidates.insert(0, Contender("as it is", script.experiment, config))
    values = compare(
        candidates,
        seeds=options.seeds,
        metric=options.metric,
        target=options.target,
        rates=RATES if options.rates is None else options.rates,
        tuning_seeds=options.tuning_seeds,
        alpha=options.alpha,
        workdir=options.workdir,
        progress=not output.quiet,
    )
    then = _next(script, config, options, values)
    finish(output, _answer(values), values, options.workdir, "compare.json", "report.html", next_command=then)


def changed(config: Any, text: str) -> Any:
    """Return a Config with other values.

    Args:
        config: A dataclass.
        text: field=value, several separated by spaces; the values of a tuple are separated by commas.

    Raises:
        UserError: if there is no such field.
    """
    names, args = [field.name for field in dataclasses.fields(config)], []
    if not text.strip():
        raise UserError(f"--set is empty, expected field=value of: {', '.join(names)}")
    for setting in text.split():
        name, equals, value = setting.partition("=")
        name = name.replace("-", "_")
        if not equals or name not in names:
            raise UserError(f"--set {text!r} says {setting!r}, expected field=value of: {', '.join(names)}")
        if name == "learning_rate":
            raise UserError(f"--set {text!r}: learning_rate is tuned for every candidate, set other fields")
        args += [f"--{name}", *(value.split(",") if isinstance(getattr(config, name), tuple) else [value])]
    # Its messages name the flag and what was expected of it; the exit code is 2.
    return tyro.cli(type(config), args=args, default=config)


def _variants(script: Script, config: Any, paths: Sequence[Path]) -> list["Contender"]:
    """Load scripts, and give their Configs the values that were set for this script, where they have such fields."""
    from accelnet.choosing.candidates import Contender

    default = script.default_config()
    given = {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(config)
        if getattr(config, field.name) != getattr(default, field.name)
    }
    found = []
    for number, path in enumerate(paths):
        variant = _load(path, f"accelnet_variant_{number}")
        known = {field.name for field in dataclasses.fields(variant.config_type)}
        settings = {name: value for name, value in given.items() if name in known}
        name = path.stem if [other.stem for other in paths].count(path.stem) == 1 else str(path)
        config_of_variant = dataclasses.replace(variant.default_config(), **settings)
        found.append(Contender(name, variant.experiment, config_of_variant))
    return found


def _load(path: Path, name: str) -> Script:
    spec = importlib.util.spec_from_file_location(name, path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise UserError(f"the variant {path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where annotations and dataclasses look their module up
    try:
        with user_code(f"the variant {path}"):
            spec.loader.exec_module(module)
    except UserCodeError as error:
        if isinstance(error.error, ImportError | SyntaxError):
            raise UserError(f"the variant {path} cannot be loaded: {error.error}") from error
        raise
    except SystemExit as error:
        raise UserError(
            f'the variant {path} ended the process when it was loaded: put `if __name__ == "__main__":` before what '
            "it does as a script"
        ) from error
    function = getattr(module, "experiment", None)
    if not callable(function):
        raise UserError(f"the variant {path} has no function `experiment`, from its Config to an Experiment")
    script = Script(cast(ExperimentFunction, function))
    try:
        _ = script.config_type
    except UserError as error:
        raise UserError(f"the variant {path}: {error}") from error
    return script


def _answer(values: dict[str, Any]) -> str:
    """Return the recommendation, a line for each candidate, and what was shown between them."""
    from rich.table import Table

    from accelnet.report.numbers import interval, number

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    name = f"{values['split']} {values['metric']}"
    for header in ("", "candidate", name, "95 %", "learning rate", f"steps to {number(values['target'])}"):
        table.add_column(header, justify="left" if header in ("", "candidate") else "right")
    for one in values["candidates"]:
        final, steps = one["final"], one["steps_to_target"]["median"]
        table.add_row(
            "→" if one["name"] == values["winner"] else " ",
            one["name"],
            number(final["mean"]),
            interval(final),
            number(one["learning_rate"]),
            "not reached" if steps is None else f"{steps:,.0f}",
        )
    shown = [
        f"{one['first']} minus {one['second']}: {number(one['difference'])}, {interval(one)}, corrected p "
        f"{number(one['corrected'])}: {one['words']}"
        for one in values["comparisons"]
    ]
    shown += [f"test {name}: {number(found['mean'])}, {interval(found)}" for name, found in values["test"].items()]
    head = f"{values['words']}.\n{name}, mean over {values['seeds']} seeds with 95 % intervals"
    return "\n".join([folded(head), "", rendered(table), "", *map(folded, shown)])


def _next(script: Script, config: Any, options: CompareOptions, values: dict[str, Any]) -> str:
    """Return how the winner is trained."""
    winner = values["winner"]
    (rate,) = (one["learning_rate"] for one in values["candidates"] if one["name"] == winner)
    default, workdir = script.default_config(), ("--workdir", f"runs/{script.name}-best")
    for path in options.variants:
        if winner in (path.stem, str(path)):
            return command("train", "--learning-rate", f"{rate:.6g}", *workdir, script=path)
    if winner in options.set:
        config = changed(config, winner)
    best = dataclasses.replace(config, learning_rate=rate)
    told = command("train", *flags(best, default, ["learning_rate"]), *workdir)
    by_flags = winner in options.set or winner == "as it is"
    return told if by_flags else f"optimizer=an.optim.{winner}(...) in {sys.argv[0]}, then {told}"
