"""The verb `tune`."""

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from accelnet.cli.devices import start_platform
from accelnet.cli.next_command import command, flags
from accelnet.cli.output import Output, finish
from accelnet.cli.script import Config, Script
from accelnet.errors import UserError
from accelnet.terminal import folded


@dataclass(frozen=True)
class TuneOptions:
    """Fields that are tuned, and the effort."""

    fields: tyro.conf.Positional[tuple[str, ...]]
    """One or two numbers of the Config, such as learning_rate, or learning_rate weight_decay."""
    range: tuple[str, ...] = ()
    """Lowest and highest value for each field, such as 1e-4:1. None: from a hundredth of the field's value to a
    hundred times it."""
    points: int | None = None
    """Values tried per field. None: 16 for one field, 8 for two."""
    seeds: int = 3
    """Short trainings per value, with the seeds from --seed on."""
    budget: float | None = None
    """Length of a short training as a share of a whole one. None: a twentieth, or ten steps if that is more."""
    metric: str = "loss"
    """Metric of the validation split that decides."""
    workdir: Path | None = None
    """Directory for tune.json, tune.png, report.html and the populations; the same command continues there. None keeps
    nothing."""
    cpu_devices: int | None = None
    """Distribute the members over this many CPU devices. None: all accelerators, else a device per core."""


def tune(script: Script, config: Config, options: TuneOptions, output: Output) -> None:
    """Find a good learning rate, or other number, by training many at once."""
    fields = [name.replace("-", "_") for name in options.fields]
    if not fields:
        raise UserError("tune what? Give one or two fields, such as: tune learning_rate")
    if len(set(fields)) != len(fields) or len(options.range) not in (0, len(fields)):
        raise UserError(
            f"the fields are {' '.join(fields)} and there are {len(options.range)} ranges: give each field once, and a "
            "--range for each or none"
        )
    spans = [_span(text) for text in options.range] or [None] * len(fields)
    start_platform(options.cpu_devices, population=True)
    from accelnet.choosing.tune import tune

    tuning = tune(
        script.experiment,
        config,
        dict(zip(fields, spans, strict=True)),
        points=options.points,
        num_seeds=options.seeds,
        budget=options.budget,
        metric=options.metric,
        workdir=options.workdir,
        progress=not output.quiet,
    )
    cost = f"{tuning.cost:.3g} trainings' worth of steps in {tuning.seconds:.0f} s"
    kept = "" if options.workdir else "; nothing was kept: --workdir names a place"
    take, _, why = tuning.reason.partition(". ")
    text = f"{take}.\n\n{tuning.table()}\n\n{folded(why)}\n{cost}{kept}"
    given: Any = config  # stands in the signature for the script's own
    best = dataclasses.replace(given, **tuning.recommended)
    then = command("train", *flags(best, script.default_config(), fields), "--workdir", f"runs/{script.name}-tuned")
    files = ("tune.json", "tune.png", "report.html")
    finish(output, text, tuning.to_dict(), options.workdir, *files, next_command=then)


def _span(text: str) -> tuple[float, float]:
    found = re.fullmatch(r"\s*(\S+)\s*:\s*(\S+)\s*", text)
    try:
        assert found is not None
        return float(found[1]), float(found[2])
    except (AssertionError, ValueError):
        raise UserError(f"--range is {text!r}, expected the lowest and the highest number, such as 1e-4:1") from None
