"""The verb `accelerator`."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from accelnet.cli.devices import check_platform, choose_platform
from accelnet.cli.script import Config, Script
from accelnet.errors import UserError
from accelnet.terminal import show


@dataclass(frozen=True)
class AcceleratorOptions:
    """Which hardware, within what."""

    tuned: Path | None = None
    """Work directory of `tune` or `compare`, whose recommended settings are taken."""
    targets: str | None = None
    """As of `plan`. None: a spread of them; this machine is always there."""
    budget: str | None = None
    """Dollars of the run, such as 20usd."""
    deadline: str | None = None
    """Time of the run, such as 2h or 90min."""
    workdir: Path | None = None
    """Directory for accelerator.json and report.html. None writes nothing."""
    abstract: bool = False
    """Compile nothing: shapes and facts alone, in seconds."""
    targets_file: Path | None = None
    """TOML with facts and prices of your own; also $ACCELNET_TARGETS."""
    json: bool = False
    """Print the table as the last line of standard output, as one JSON object."""
    quiet: bool = False
    """Show no progress."""


def accelerator(script: Script, config: Config, options: AcceleratorOptions) -> None:
    """Say on which hardware to train all steps: what fits, the time, the cost, and what that rests on."""
    choose_platform(None)
    check_platform()
    from accelnet.choosing.accelerator import (
        accelerator_table,
        choose_accelerator,
        tuned_settings,
        write_accelerators,
    )
    from accelnet.planning.choice import parse_hours, parse_usd

    budget = None if options.budget is None else parse_usd(options.budget)
    deadline = None if options.deadline is None else parse_hours(options.deadline)
    if options.tuned is not None:
        settings = tuned_settings(options.tuned)
        unknown = set(settings) - {field.name for field in dataclasses.fields(script.config_type)}
        if unknown:
            raise UserError(f"{options.tuned} recommends {', '.join(sorted(unknown))}, which this script does not have")
        config = dataclasses.replace(config, **settings)  # pyright: ignore[reportArgumentType]
    values = choose_accelerator(
        script.experiment(config),
        None if options.targets is None else options.targets.split(","),
        budget_usd=budget,
        deadline_hours=deadline,
        compile=not options.abstract,
        targets_file=options.targets_file,
        progress=not options.quiet,
    )
    show(accelerator_table(values))
    if options.workdir is not None:
        page = write_accelerators(values, options.workdir)
        show(f"kept in {page.with_name('accelerator.json')} and {page}")
    if options.json:
        show(json.dumps(values))
