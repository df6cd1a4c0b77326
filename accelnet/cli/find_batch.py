"""The verb `find-batch`."""

from dataclasses import dataclass
from pathlib import Path

from accelnet.cli.devices import start_platform
from accelnet.cli.output import Output, finish
from accelnet.cli.script import Config, Script


@dataclass(frozen=True)
class FindBatchOptions:
    """Options of the measurement."""

    points: int = 6
    """Steps of the training at which the noise of gradients is measured."""
    workdir: Path | None = None
    """Directory for batch.json and report.html. None keeps nothing."""


def find_batch(script: Script, config: Config, options: FindBatchOptions, output: Output) -> None:
    """Measure the critical batch size, and find the largest batch that fits."""
    start_platform()
    from accelnet.choosing.find_batch import find_batch

    found = find_batch(
        script.experiment(config), points=options.points, workdir=options.workdir, progress=not output.quiet
    )
    finish(output, found.reason, found.to_dict(), options.workdir, "batch.json", "report.html")
