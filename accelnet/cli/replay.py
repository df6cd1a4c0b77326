"""The verb `replay`, and `accelnet replay`, which finds the script by the run."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from accelnet.cli.devices import DeviceOptions
from accelnet.cli.output import Output, finish
from accelnet.cli.script import Script
from accelnet.errors import UserError


@dataclass(frozen=True)
class ReplayOptions:
    """Run that is repeated."""

    workdir: Path
    """Directory of a run that diverged, whose settings are used."""


@dataclass(frozen=True)
class StoredRunOptions:
    """Run that is repeated."""

    workdir: tyro.conf.Positional[Path]
    """Directory of a run that diverged."""
    script: Path | None = None
    """Experiment script that made it. None: the one that the run names."""


def replay(script: Script, options: ReplayOptions, output: Output, devices: DeviceOptions) -> None:
    """Repeat the step in which a run diverged, and find the operation that made the first NaN or infinity."""
    from accelnet.training.replay import replay

    known = script.of_run(options.workdir)
    if known is None:
        raise UserError(f"{options.workdir} holds no run: give the --workdir of one that diverged")
    script, config = known
    found = replay(
        script.experiment(config), options.workdir, mesh=devices.mesh, strategy=devices.strategy,
        progress=not output.quiet,
    )  # fmt: skip
    finish(output, found, found.values, None)


def replay_stored(options: StoredRunOptions) -> None:
    """Run the verb `replay` of the script that made a run, in a process of its own.

    Raises:
        UserError: if there is no run, or its script is not known or not there.
        SystemExit: with the exit code of that process.
    """
    from accelnet.training.stored import read_stored

    stored = read_stored(options.workdir)
    if stored.description is None:
        raise UserError(f"{options.workdir} holds no run: give the --workdir of one that diverged")
    script = options.script or Path(str(stored.script or ""))
    if not script.is_file():
        told = f"was made by {script}, which is not there" if stored.script or options.script else "names no script"
        raise UserError(f"the run in {options.workdir} {told}: give --script, or call an.replay(experiment, workdir)")
    command = [sys.executable, str(script), "replay", "--workdir", str(options.workdir.absolute())]
    raise SystemExit(subprocess.run(command, check=False).returncode)  # noqa: S603, a script that the user ran before
