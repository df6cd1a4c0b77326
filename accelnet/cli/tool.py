"""The command `accelnet`, which needs no script: `accelnet predict model.accelnet new.csv -o predictions.csv`."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from accelnet.cli.doctor import doctor
from accelnet.cli.entry import guarded, path_rules
from accelnet.cli.export import ExportOptions, write_image
from accelnet.cli.new import new
from accelnet.cli.output import Output, finish
from accelnet.cli.predict import ResultOptions, write_predictions
from accelnet.cli.replay import StoredRunOptions, replay_stored
from accelnet.cli.serve import ServerOptions, limits_of, serve_model
from accelnet.cli.slips import corrected, flags_of
from accelnet.cli.track import track
from accelnet.terminal import show


@dataclass(frozen=True)
class ModelOptions:
    """Model that is used."""

    model: tyro.conf.Positional[Path]
    """File that `run.save` wrote, or the work directory of a run."""
    best: bool = False
    """Take, of a work directory, the weights with the best validation metric."""


@dataclass(frozen=True)
class RefreshOptions:
    """Model that is refreshed."""

    model: tyro.conf.Positional[Path]
    """File that `run.save` wrote."""
    out: Path | None = None
    """File to write. None: that of the model."""


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


VERBS = (new, doctor, predict, export, serve, refresh, track, replay)


def tool(args: Sequence[str] | None = None) -> None:
    """Run the command line of accelnet itself.

    Args:
        args: Command line arguments; None for those of the process.

    Raises:
        SystemExit: with the exit codes of `accelnet.main`.
    """
    guarded(lambda: _run(list(sys.argv[1:] if args is None else args)), lambda: "nothing was written")


def _run(args: list[str]) -> None:
    import tyro.extras

    flags = {verb.__name__: flags_of(verb, {}) for verb in VERBS}
    with path_rules():
        call = tyro.extras.subcommand_cli_from_dict(
            {verb.__name__: _parser(verb) for verb in VERBS},
            args=corrected(args, flags, "accelnet"),
            prog="accelnet",
            config=(tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes, tyro.conf.FlagCreatePairsOff),
        )
    call()


def _parser(verb: Callable[..., None]) -> Callable[..., Callable[[], None]]:
    """Return a function with the verb's parameters, whose result calls it: errors of tyro's own stay outside."""
    import inspect

    def parsed(**arguments: Any) -> Callable[[], None]:
        return lambda: verb(**arguments)

    parsed.__signature__ = inspect.signature(verb)  # type: ignore[attr-defined]
    parsed.__annotations__ = dict(verb.__annotations__)
    parsed.__doc__ = verb.__doc__
    return parsed
