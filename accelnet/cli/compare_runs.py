"""The verb `compare-runs`."""

import json
from dataclasses import dataclass
from pathlib import Path

import tyro

from accelnet.cli.script import Script
from accelnet.terminal import show


@dataclass(frozen=True)
class CompareRunsOptions:
    """What is put side by side, and where that is written."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Work directories, such as runs/*; those that hold no run are left out."""
    workdir: Path = Path("runs/compare-runs")
    """Directory for compare-runs.json and report.html; made if needed."""
    json: bool = False
    """Print the comparison as the last line of standard output, as one JSON object."""


def compare_runs(
    script: Script,  # noqa: ARG001, all verbs get it; runs of any script are compared
    options: CompareRunsOptions,
) -> None:
    """Put the runs in work directories side by side: results, times, settings that differ, curves."""
    from accelnet.choosing.runs import compare_runs, runs_table, write_runs

    values = compare_runs(options.runs)
    show(runs_table(values))
    page = write_runs(values, options.workdir)
    show(f"kept in {page.with_name('compare-runs.json')} and {page}")
    if options.json:
        show(json.dumps(values))
