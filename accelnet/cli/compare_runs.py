"""The verb `compare-runs`."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from accelnet.cli.output import JsonOutput, finish
from accelnet.cli.script import Script


@dataclass(frozen=True)
class CompareRunsOptions:
    """Runs that are compared, and where the report is written."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Work directories, such as runs/*; those without a run are left out."""
    workdir: Path = Path("runs/compare-runs")
    """Directory for compare-runs.json and report.html; made if needed."""


def compare_runs(
    script: Script,  # noqa: ARG001, every verb gets it; runs of any script are compared
    options: CompareRunsOptions,
    output: JsonOutput,
) -> None:
    """Put the runs in work directories side by side: results, times, settings that differ, curves."""
    from accelnet.choosing.runs import compare_runs, runs_table

    values = compare_runs(options.runs, options.workdir)
    finish(output, runs_table(values), values, options.workdir, "compare-runs.json", "report.html")
