"""The verb `find-batch`."""

import json
from dataclasses import dataclass
from pathlib import Path

from accelnet.cli.devices import check_platform, choose_platform
from accelnet.cli.script import Config, Script
from accelnet.terminal import show


@dataclass(frozen=True)
class FindBatchOptions:
    """How it is measured."""

    points: int = 6
    """Of the training, at which the noise of gradients is measured."""
    workdir: Path | None = None
    """Directory for batch.json and report.html. None keeps nothing."""
    json: bool = False
    """Print the result as the last line of standard output, as one JSON object."""
    quiet: bool = False
    """Show no progress."""


def find_batch(script: Script, config: Config, options: FindBatchOptions) -> None:
    """Measure the critical batch size, and find the largest batch that fits."""
    choose_platform(None)
    check_platform()
    from accelnet.choosing.find_batch import find_batch

    found = find_batch(
        script.experiment(config), points=options.points, workdir=options.workdir, progress=not options.quiet
    )
    show(found.reason)
    if options.workdir is not None:
        show(f"kept in {options.workdir}/batch.json and {options.workdir}/report.html")
    if options.json:
        show(json.dumps(found.to_dict()))
