"""The verb `export`."""

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from accelnet.cli.devices import DeviceOptions, start_cpu
from accelnet.cli.models import load_model
from accelnet.cli.output import Output, finish
from accelnet.cli.script import Script
from accelnet.errors import UserError
from accelnet.terminal import StatusLine, show

if TYPE_CHECKING:
    from accelnet.artifact.model import Model


@dataclass(frozen=True)
class ExportOptions:
    """Formats, and where the files are written."""

    to: tuple[str, ...] = ("artifact",)
    """Formats, separated by commas or blanks: artifact, onnx, stablehlo, safetensors, litert."""
    out: Path = Path("dist")
    """Directory for the files and export.json; made if needed."""
    docker: bool = False
    """Write docker/ there, too: `docker build` makes an image of it that serves the model."""


@dataclass(frozen=True)
class ExportRunOptions(ExportOptions):
    """Weights that are exported, formats, and where the files are written."""

    workdir: Path = tyro.MISSING
    """Directory of the run."""
    best: bool = False
    """Take the checkpoint with the best validation metric instead of the newest."""


def export(script: Script, options: ExportRunOptions, output: Output) -> None:
    """Write the model of a run in formats of other runtimes, and check each file there before it is kept."""
    from accelnet.exporting.export import check_folder, check_formats, export_source
    from accelnet.exporting.source import source_of_run
    from accelnet.training.evaluate import evaluate

    wanted = check_formats(options.to)
    check_folder(options.out)
    start_cpu()
    model, known = load_model(script, options.workdir, options.best, DeviceOptions()), script.of_run(options.workdir)
    if known is None:
        raise UserError(f"{options.workdir} holds a model and no run: `accelnet export {model.path}` needs none")
    script, config = known
    run = evaluate(script.experiment(config), options.workdir, best=options.best, splits=[])
    with contextlib.closing(StatusLine(not output.quiet)) as say:
        found = export_source(source_of_run(run, model), wanted, options.out, say)
    write_image(model, options)
    finish(output, found, found.values, None)


def write_image(model: "Model", options: ExportOptions) -> None:
    """Write the files of an image that serves a model, where they are asked for.

    Raises:
        UserError: if it cannot be written, or the model is of another accelnet.
    """
    if options.docker:
        from accelnet.serving.docker import write_docker

        folder = options.out / "docker"
        write_docker(model, folder)
        show(f"an image that serves it: docker build --tag model {folder}")
