"""`accelnet launch`: a script as several processes, here or by another's launcher."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from accelnet.disk import write_atomically
from accelnet.errors import UserError
from accelnet.terminal import show

TemplateName = Literal["slurm", "jobset", "sky", "tpu"]
_FILES = {
    "slurm": ("slurm.sbatch",), "jobset": ("jobset.yaml",), "sky": ("sky.yaml",),
    "tpu": ("tpu_vm.sh", "tpu_gcloud.sh", "tpu_worker.sh", "venv.sh"),
}  # fmt: skip
_NEXT = {
    "slurm": "sbatch --nodes=2 --gpus-per-node=8 slurm.sbatch SCRIPT train --workdir DIR",
    "jobset": "kubectl apply -f jobset.yaml -l accelerator=tpu",
    "sky": "sky jobs launch --secret ACCELNET_TOKEN sky.yaml",
    "tpu": "bash scripts/tpu_vm.sh --help",
}


@dataclass(frozen=True)
class LaunchOptions:
    """Processes on this machine, or a launcher that is written."""

    script: tyro.conf.Positional[tuple[str, ...]] = ()
    """Python script, and its arguments: all that follows is the script's."""
    num_processes: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 2
    """Processes, -n 4 for short."""
    devices_per_process: int = 1
    """Simulated CPU devices of each process."""
    grace: float = 30.0
    """Seconds that the others have after one failed, before they get SIGTERM."""
    template: TemplateName | None = None
    """Write the launcher for Slurm, for Kubernetes with JobSet, for SkyPilot or for TPU VMs here instead."""


def launch(options: LaunchOptions) -> None:
    """Run a script as several processes on this machine, or write the launcher for a cluster."""
    if options.template is not None:
        if options.script:
            raise UserError("--template writes a launcher and runs nothing: leave out the script")
        _write(options.template)
        return
    for name in ("num_processes", "devices_per_process"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} is {getattr(options, name)}, expected at least 1")
    if not options.grace >= 0:
        raise UserError(f"--grace is {options.grace}, expected seconds, at least 0")
    check_script(options.script, "launch -n 2")
    from accelnet.cluster.local import launch

    raise SystemExit(launch(options.script, options.num_processes, options.devices_per_process, options.grace))


def check_script(script: tuple[str, ...], before: str) -> None:
    """Refuse a command without a script, or with something else in its place.

    Args:
        script: Script and its arguments.
        before: What stands before it, for the message.

    Raises:
        UserError: if it is no file.

    Example:
        >>> check_script((), "plan")
        Traceback (most recent call last):
        accelnet.errors.UserError: no script was given: accelnet plan SCRIPT [ARGUMENTS ...]
    """
    if not script:
        raise UserError(f"no script was given: accelnet {before} SCRIPT [ARGUMENTS ...]")
    if not Path(script[0]).is_file():
        raise UserError(f"{script[0]} is no file, expected a Python script, after accelnet's own options")


def _write(name: TemplateName) -> None:
    # The shell scripts for TPU VMs look for each other, and for the project, from scripts/.
    folder = Path("scripts") if name == "tpu" else Path()
    paths = [folder / file for file in _FILES[name]]
    there = [str(path) for path in paths if path.exists()]
    if there:
        raise UserError(f"{', '.join(there)} exists already: move it away, or go to another directory")
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        write_atomically(path, template(path.name))
    show(f"wrote {', '.join(map(str, paths))}: its first lines say how to use it")
    show(f"\n{_NEXT[name]}")


def template(file: str) -> str:
    """Return a launcher's file as it is written into a project.

    Args:
        file: Name of the file.

    Example:
        >>> template("slurm.sbatch").splitlines()[0]
        '#!/usr/bin/env bash'
    """
    installed = Path(__file__).parent / "launchers" / file
    checkout = Path(__file__).parents[2] / "scripts" / file
    text = (installed if installed.exists() else checkout).read_text(encoding="utf-8")
    if not file.endswith((".yaml", ".sbatch")):
        return text
    # In the repository the files stand in scripts/, and accelnet is the project.
    text = text.replace(f"scripts/{file}", file).replace("the repository's folder", "your project's folder")
    for extra in ("cuda12", "cuda13"):
        text = text.replace(f"-e '.[{extra}]'", f"'accelnet[{extra}]'")
    return text.replace("experiments/digits_cnn.py", "SCRIPT.py")
