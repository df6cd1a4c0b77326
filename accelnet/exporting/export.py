"""A trained model as files for other runtimes, each checked in its own before it is kept."""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from accelnet.arguments import flags, names
from accelnet.arguments import path as checked_path
from accelnet.artifact.load import load
from accelnet.artifact.model import Model
from accelnet.disk import raise_unwritable, sync, write_atomically
from accelnet.errors import UserError
from accelnet.exporting.checking import check
from accelnet.exporting.exported import RECORD, Exported
from accelnet.exporting.formats import FORMATS, REFUSED
from accelnet.exporting.source import ExportedModel, source_of_model, source_of_run
from accelnet.json_file import plain_value
from accelnet.terminal import StatusLine
from accelnet.training.run import Run
from accelnet.wording import did_you_mean, listed


def export(
    trained: Run | Model | str | os.PathLike[str],
    *,
    to: Sequence[str] | str = ("artifact",),
    out: str | os.PathLike[str],
    best: bool = False,
    progress: bool = False,
) -> Exported:
    """Write a trained model in formats of other runtimes, and check each file there before it is kept.

    Every file is run in its own runtime and compared with the model: a run's on rows of its validation split, that of
    an artifact alone on random rows that its schema allows. Either all files that are asked for come to lie in `out`,
    with export.json, or none.

    Args:
        trained: A `Run`, a `Model`, or the path of an artifact or of a work directory that holds one.
        to: Formats: "artifact" (the file of `Run.save`), "onnx", "stablehlo", "safetensors", "litert".
        out: Directory for the files; made if needed.
        best: Whether to take, of a work directory, the weights with the best validation metric.
        progress: Whether a line on standard error tells what is being done.

    Returns:
        The `Exported`: files, differences, metrics and latency.

    Raises:
        UserError: if a format is unknown, its packages are missing, the model cannot be written in it (with the line
            that makes it so), or an output differs from the model's by more than 1e-4 of the largest.

    Example:
        >>> export("/not/there.accelnet", to="onnx", out="/tmp")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        accelnet.errors.UserError: /not/there.accelnet is not there: ...
    """
    flags(best=best, progress=progress)
    wanted, folder = check_formats(to), check_folder(out)
    with tempfile.TemporaryDirectory() as scratch, contextlib.closing(StatusLine(progress)) as say:
        if not isinstance(trained, Run):
            return export_source(
                source_of_model(trained if isinstance(trained, Model) else load(trained, best=best)),
                wanted,
                folder,
                say,
            )
        if jax.process_count() > 1:
            raise UserError("a run of several processes is exported by one: save it, and export its work directory")
        if best:
            raise UserError("best=True chooses among the weights of a work directory: of a run, give run.best")
        say("artifact")
        model = load(trained.save(Path(scratch) / "model.accelnet"))
        return export_source(source_of_run(trained, model), wanted, folder, say)


def check_formats(to: Sequence[str] | str) -> tuple[str, ...]:
    """Return the names of formats, each once, in the order in which they are made.

    Args:
        to: Names; in a text they are separated by commas or blanks.

    Raises:
        UserError: if one is unknown, or a package for it is missing.

    Example:
        >>> check_formats("safetensors, artifact")
        ('artifact', 'safetensors')
    """
    given = [to] if isinstance(to, str) else names("to", to)
    wanted = [name for text in given for name in text.replace(",", " ").split()]
    if not wanted:
        raise UserError(f"no format is given, expected one or more of {listed(FORMATS)}")
    for name in wanted:
        if name not in FORMATS:
            advice = f": {REFUSED[name]}" if name in REFUSED else did_you_mean(name, FORMATS)
            raise UserError(f"the format is {name!r}, expected one of {listed(FORMATS)}{advice}")
        FORMATS[name].runtime()
    return tuple(name for name in FORMATS if name in wanted)


def check_folder(out: str | os.PathLike[str]) -> Path:
    """Return the directory for the files; raise UserError if it is a file.

    Example:
        >>> check_folder("/dev/null")
        Traceback (most recent call last):
        accelnet.errors.UserError: out is /dev/null, which is a file: expected a directory, which is made if needed
    """
    folder = checked_path("out", out).absolute()
    if folder.exists() and not folder.is_dir():
        raise UserError(f"out is {folder}, which is a file: expected a directory, which is made if needed")
    return folder


def export_source(source: ExportedModel, wanted: Sequence[str], folder: Path, say: StatusLine) -> Exported:
    """Write files into a hidden directory, check them there, and move them to their places.

    Args:
        source: What is exported.
        wanted: Names of formats.
        folder: Directory for the files.
        say: Function that is told what is being done.

    Raises:
        UserError: as `export`.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".export-", dir=folder))
    except OSError as error:
        raise_unwritable(folder, error)
    try:
        found: dict[str, Any] = {}
        for name in wanted:
            say(f"{name}: writing")
            files = _written(scratch, FORMATS[name].write(source))
            say(f"{name}: checking on {source.count:,} rows ({source.told})")
            found[name] = {"files": files, **check(name, FORMATS[name], scratch, source)}
        values = plain_value(_values(source, found, folder))
        _written(scratch, {RECORD: (json.dumps(values, indent=1, allow_nan=False) + "\n").encode()})
        # The record last: what it lists is there.
        for path in sorted(scratch.iterdir(), key=lambda path: path.name == RECORD):
            path.replace(folder / path.name)
        sync(folder)
    except OSError as error:
        raise_unwritable(folder, error)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return Exported(folder, values)


def _written(folder: Path, contents: Mapping[str, bytes]) -> dict[str, dict[str, Any]]:
    for name, content in contents.items():
        write_atomically(folder / name, content)
    return {
        name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in contents.items()
    }


def _values(source: ExportedModel, found: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    model, known = source.model, {name for form in FORMATS.values() for name in form.files}
    earlier = known - {name for form in found.values() for name in form["files"]}
    return {
        "experiment": model.config["experiment"],
        "step": model.metrics["step"],
        "rows": {"of": source.told, "count": source.count, "batch_size": source.size},
        "tolerance": source.tolerance,
        "metrics": source.own_score,
        "formats": dict(found),
        "earlier": sorted(name for name in earlier if (folder / name).exists()),
    }
