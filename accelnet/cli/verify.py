"""The verb `verify`."""

from dataclasses import dataclass
from pathlib import Path

from accelnet.cli.output import JsonOutput, finish
from accelnet.cli.script import Script
from accelnet.errors import UserError


@dataclass(frozen=True)
class VerifyOptions:
    """The run that is looked at."""

    workdir: Path
    """Directory of the run."""


def verify(
    script: Script,  # noqa: ARG001, every verb gets it; runs of any script are looked at
    options: VerifyOptions,
    output: JsonOutput,
) -> None:
    """Compare all that a run has written with its checksums, and say what is whole. Exit code 2 if something is not."""
    from rich.table import Table

    from accelnet.terminal import rendered
    from accelnet.training.verify import verify

    parts = verify(options.workdir)
    table = Table("part", "", "", box=None, pad_edge=False)
    for part in parts:
        table.add_row(part["part"], "whole" if part["whole"] else "DAMAGED", part["says"])
    finish(output, rendered(table, folds=True), {"workdir": str(options.workdir), "parts": parts}, None)
    if damaged := [part["part"] for part in parts if not part["whole"]]:
        raise UserError(
            f"{', '.join(damaged)} in {options.workdir} is not whole: `train --resume` goes on from what is"
        )
