"""The verb `data`."""

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path

from accelnet.cli.devices import start_platform
from accelnet.cli.output import Output, finish
from accelnet.cli.script import Config, Script
from accelnet.errors import UserError
from accelnet.terminal import StatusLine


@dataclass(frozen=True)
class DataOptions:
    """Rows that are looked at, and where the page is written."""

    rows: int = 10_000
    """Most rows of a split that are read where they are not in memory."""
    workdir: Path | None = None
    """Directory for data.json and data.html; made if needed. None: runs/data and the script's name."""


def data(script: Script, config: Config, options: DataOptions, output: Output) -> None:
    """Look at the data: rows, classes, ranges, examples; leaks, constants and other things that may be wrong."""
    if options.rows < 1:
        raise UserError(f"--rows is {options.rows}, expected at least 1")
    start_platform()
    from accelnet.data.look import describe
    from accelnet.disk import write_atomically
    from accelnet.training.writable import check_workdir

    made = script.experiment(config)
    workdir = check_workdir(options.workdir or Path("runs", "data", script.name).absolute())
    assert workdir is not None
    with contextlib.closing(StatusLine(not output.quiet)) as say:
        found = describe(made.data, most_rows=options.rows, say=say)
    values = found.to_json()
    write_atomically(workdir / "data.json", json.dumps(values, indent=1, allow_nan=False) + "\n")
    write_atomically(workdir / "data.html", found.page())
    finish(output, found, values, workdir, "data.json", "data.html")
