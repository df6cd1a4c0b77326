"""The verb `compress`."""

import re
from dataclasses import dataclass
from pathlib import Path

from accelnet.cli.devices import start_platform
from accelnet.cli.next_command import command
from accelnet.cli.output import Output, finish
from accelnet.cli.script import Script
from accelnet.errors import UserError

_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0}


@dataclass(frozen=True)
class CompressOptions:
    """What is wanted of a smaller network, and how much is done to find it."""

    workdir: Path
    """Directory of the run."""
    max_drop: str | None = None
    """Largest loss of quality, such as 0.5%: percentage points of a share such as the accuracy, else a share of the
    original's value. None: 0.5%, or what the validation rows can show."""
    latency: str | None = None
    """Longest time of an answer on this machine, such as 0.05ms: take the best network that is as fast."""
    batch: int = 1
    """Batch size of that time."""
    methods: str = "widths,ranks,bits"
    """Some of widths, ranks, bits and teacher, separated by commas."""
    budget: int = 6
    """Number of trainings, each as long as the run's own; those from new weights are twice as long."""
    metric: str | None = None
    """Metric that is compared. None: a share such as the accuracy, or the experiment's best_metric."""
    targets: str | None = None
    """Hardware for which predictions are added, such as v5e:2x2,h100; `targets` lists them."""
    best: bool = False
    """Begin with the checkpoint with the best validation metric instead of the newest."""
    out: Path | None = None
    """Directory for the smaller network, a run like any other; in its `compress` there are compress.json, report.html
    and all trainings, and the same command continues there. None: the run's with -small behind its name."""


def compress(script: Script, options: CompressOptions, output: Output) -> None:
    """Find a smaller and faster network to replace a trained one, by measurement."""
    max_drop = None if options.max_drop is None else share(options.max_drop)
    latency = None if options.latency is None else seconds(options.latency)
    methods = [name.strip() for name in options.methods.split(",") if name.strip()]
    known = script.of_run(options.workdir)
    if known is None:
        raise UserError(f"{options.workdir} holds no run: `train --workdir {options.workdir}` makes one")
    start_platform()
    from accelnet.compressing.compress import DIRECTORY, compress
    from accelnet.training.evaluate import evaluate

    script, config = known
    out = options.workdir.with_name(f"{options.workdir.name}-small") if options.out is None else options.out.absolute()
    run = evaluate(script.experiment(config), options.workdir, best=options.best, splits=[])
    found = compress(
        run,
        max_drop=max_drop,
        latency=latency,
        batch=options.batch,
        methods=methods,
        budget=options.budget,
        metric=options.metric,
        targets=options.targets,
        out=out,
        progress=not output.quiet,
    )
    text = f"{found.table}\n\n{found.words}"
    evaluate = None if found.recommended is None else command("evaluate", "--workdir", _shown(out))
    finish(output, text, found.to_dict(), out / DIRECTORY, "compress.json", "report.html", next_command=evaluate)
    if found.recommended is None:
        raise UserError(f"no smaller network is recommended. {found.words}")


def share(text: str) -> float:
    """Read a share, with or without a percent sign.

    Raises:
        UserError: if it is none above 0.

    Example:
        >>> share("0.5%"), share("0.005")
        (0.005, 0.005)
    """
    number = _number(text.strip().removesuffix("%"))
    value = None if number is None else number / 100 if text.strip().endswith("%") else number
    if value is None or not 0 < value <= 1:
        raise UserError(f"--max-drop is {text!r}, expected a share above 0, such as 0.5% or 0.005")
    return value


def seconds(text: str) -> float:
    """Read a time.

    Raises:
        UserError: if it is none above 0.

    Example:
        >>> seconds("0.05ms"), seconds("20 us"), seconds("1e-3")
        (5e-05, 2e-05, 0.001)
    """
    found = re.fullmatch(r"([0-9.eE+-]+?)\s*(ns|us|µs|ms|s)?", text.strip())
    number = None if found is None else _number(found[1])
    if found is None or number is None or not number > 0:
        raise UserError(f"--latency is {text!r}, expected a time above 0, such as 0.05ms or 20us")
    return float(f"{number * _UNITS[found[2] or 's']:.12g}")


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _shown(path: Path) -> Path:
    """Return a path from the current directory, if it lies there."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
