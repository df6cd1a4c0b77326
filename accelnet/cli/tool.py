"""The command `accelnet`, which needs no script: `accelnet predict model.accelnet new.csv -o predictions.csv`."""

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import tyro

from accelnet.cli.compare_runs import compare_runs
from accelnet.cli.doctor import doctor
from accelnet.cli.entry import guarded
from accelnet.cli.export import ExportOptions, write_image
from accelnet.cli.launch import check_script, launch
from accelnet.cli.new import new
from accelnet.cli.output import Output, finish
from accelnet.cli.parsing import parsed
from accelnet.cli.plan import targets
from accelnet.cli.predict import ResultOptions, write_predictions
from accelnet.cli.replay import StoredRunOptions, replay_stored
from accelnet.cli.script import Script
from accelnet.cli.serve import ServerOptions, limits_of, serve_model
from accelnet.cli.slips import flags_of
from accelnet.cli.track import track
from accelnet.terminal import show


@dataclass(frozen=True)
class ModelOptions:
    """Model that is used."""

    model: tyro.conf.Positional[Path]
    """File that `run.save` wrote, or the work directory of a run."""
    best: bool = False
    """Take the weights with the best validation metric from a work directory."""


@dataclass(frozen=True)
class RefreshOptions:
    """Model that is refreshed."""

    model: tyro.conf.Positional[Path]
    """File that `run.save` wrote."""
    out: Path | None = None
    """File to write. None: that of the model."""


@dataclass(frozen=True)
class PlanScriptOptions:
    """Script whose run is planned."""

    script: tyro.conf.Positional[tuple[str, ...]] = ()
    """Experiment script, and flags of its verb `plan`, such as train.py --targets v5e:2x2."""


@dataclass(frozen=True)
class CompletionOptions:
    """Shell that completes."""

    shell: tyro.conf.Positional[Literal["bash", "zsh", "fish"]]
    """`eval "$(accelnet completion bash)"` in ~/.bashrc, for instance."""


def predict(model: ModelOptions, options: ResultOptions, output: Output) -> None:
    """Predict from new inputs by a model in a file."""
    from accelnet.artifact.load import load
    from accelnet.artifact.prediction import check_format
    from accelnet.cli.devices import start_platform

    check_format(options.out)
    start_platform()
    write_predictions(load(model.model, best=model.best), options, output)


def export(model: ModelOptions, options: ExportOptions, output: Output) -> None:
    """Write a model in formats of other runtimes, and check each file there before it is kept."""
    from accelnet.artifact.load import load
    from accelnet.cli.devices import start_cpu
    from accelnet.exporting.export import check_folder, check_formats, export

    check_formats(options.to)
    check_folder(options.out)
    start_cpu()
    loaded = load(model.model, best=model.best)
    found = export(loaded, to=options.to, out=options.out, progress=not output.quiet)
    write_image(loaded, options)
    finish(output, found, found.values, None)


def serve(model: ModelOptions, options: ServerOptions) -> None:
    """Answer requests over HTTP by a model in a file."""
    from accelnet.artifact.load import load
    from accelnet.cli.devices import start_platform

    limits_of(options)
    start_platform()
    serve_model(load(model.model, best=model.best), options)


def refresh(options: RefreshOptions) -> None:
    """Make a model's program anew with this version of jax, which reads those of the last six months."""
    from accelnet.artifact.load import refresh

    made_of = refresh(options.model, options.out)
    show(f"{options.out or options.model} has a new program, from {made_of}")


def replay(options: StoredRunOptions) -> None:
    """Repeat the step in which a run diverged, by the script that made it, and find what made the NaN."""
    replay_stored(options)


def plan(options: PlanScriptOptions) -> None:
    """Predict whether the run of a script fits on other hardware, how fast it can be, and what it costs."""
    check_script(options.script, "plan")
    path, *arguments = options.script
    # As if `python SCRIPT plan ...` had been typed.
    os.execv(sys.executable, [sys.executable, path, "plan", *arguments])  # noqa: S606, no shell is wanted


def completion(options: CompletionOptions) -> None:
    """Print what a shell needs to complete verbs and flags of accelnet."""
    parsed(_parsers(), ["--tyro-print-completion", options.shell], "accelnet")


VERBS = (
    new, plan, launch, doctor, targets, compare_runs, predict, export, serve, refresh, track, replay, completion,
)  # fmt: skip
_IMPORTED_FIRST = {predict: "accelnet.artifact.load", export: "accelnet.artifact.load", serve: "accelnet.artifact.load"}


def tool(args: Sequence[str] | None = None) -> None:
    """Run the command line of accelnet itself.

    Args:
        args: Command line arguments; None for those of the process.

    Raises:
        SystemExit: with the exit codes of `accelnet.main`.
    """
    guarded(_prepared, args, lambda: "nothing was written")


def _prepared(args: list[str]) -> Callable[[], None]:
    verbs = _parsers()
    if args and args[0] in ("launch", "plan"):
        args = _script_set_apart(args, flags_of(verbs[args[0]], {}))
    verb, arguments = parsed(verbs, args, "accelnet")
    if verb in _IMPORTED_FIRST:
        importlib.import_module(_IMPORTED_FIRST[verb])
    return lambda: verb(**arguments)


def _script_set_apart(args: list[str], flags: Mapping[str, Any]) -> list[str]:
    """Put "--" before the first argument that is no flag of accelnet's, nor its value: the rest is the script's."""
    place = 1
    while place < len(args) and args[place].startswith("-") and args[place] != "--":
        takes_value = args[place] in flags or args[place] == "-n"
        place += 1 + takes_value
    return [*args[:place], "--", *args[place:]] if "--" not in args[: place + 1] else args


def _parsers() -> dict[str, Callable[..., Any]]:
    return {verb.__name__.replace("_", "-"): _parser(verb) for verb in VERBS}


def _parser(verb: Callable[..., None]) -> Callable[..., Any]:
    """Return a function with the verb's parameters for tyro to fill in: errors of tyro's own stay outside the verb."""
    signature = inspect.signature(verb)
    parameters = [one for one in signature.parameters.values() if one.annotation is not Script]
    run = verb if len(parameters) == len(signature.parameters) else partial(verb, None)  # runs of any script

    def parsed(**arguments: Any) -> tuple[Callable[..., None], dict[str, Any]]:
        return run, arguments

    parsed.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    parsed.__annotations__ = {one.name: one.annotation for one in parameters}
    parsed.__doc__ = verb.__doc__
    return parsed
