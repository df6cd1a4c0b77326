"""What a work directory says of the run in it: how it was started, and what it fitted to its training rows."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelnet.errors import UserError
from accelnet.experiment import Experiment
from accelnet.json_file import plain_value, read_json
from accelnet.training.checkpoint import Checkpoints, on_first
from accelnet.training.hosts import Hosts

CONFIG = "config.json"
_SHAPE = {"description": dict, "config": dict, "fitted?": (dict, None)}


@dataclass(frozen=True)
class Stored:
    """What is stored of a run; None where there is no run.

    Attributes:
        description: Description of the experiment, by which a resumed run is known.
        config: Settings that the script was called with.
        fitted: Numbers and names that were fitted to the training rows.
        directions: By metric, whether lower is better.
        objective: Fingerprint of the objective.
        script: File of the experiment script, if one made it.
    """

    description: dict[str, Any] | None = None
    config: dict[str, Any] | None = None
    fitted: dict[str, Any] | None = None
    directions: Any = None
    objective: Any = None
    script: Any = None


def read_stored(workdir: str | Path) -> Stored:
    """Read what is stored of the run in a work directory.

    The newest checkpoint says what its state was made with; config.json, where no checkpoint is whole.

    Raises:
        UserError: if config.json is needed and cannot be understood.
    """
    content = Checkpoints(workdir).outline() or read_json(
        Path(workdir) / CONFIG, "a run's configuration", _SHAPE, "give another --workdir"
    )
    if content is None:
        return Stored()
    named = {name: content.get(name) for name in ("description", "config", "directions", "objective", "script")}
    return Stored(fitted=content.get("fitted") or {}, **named)


def refitted(experiment: Experiment, workdir: str | Path, hosts: Hosts | None = None) -> Experiment:
    """Return the experiment with what the run in a work directory fitted to its training rows."""
    fitted = on_first(hosts, lambda: read_stored(workdir).fitted)
    if not fitted or fitted == plain_value(experiment.data.fitted):
        return experiment
    return experiment.replace(data=experiment.data.refitted(fitted))


def changed_fields(workdir: Path, experiment: Experiment, *, resume: bool, allow_change: bool) -> list[str]:
    """Return the names of the fields in which an experiment differs from the run in a work directory.

    Raises:
        UserError: if the run in there cannot go on as this experiment.
    """
    before, now = read_stored(workdir).description, plain_value(experiment.description())
    if before is None:
        return []
    if not resume:
        raise UserError(
            f"{workdir} already holds a run of {before.get('experiment')}: pass --resume to go on "
            "with it, or another --workdir"
        )
    if before.get("experiment") != now["experiment"]:
        raise UserError(
            f"{workdir} holds the experiment {before.get('experiment')}, not {now['experiment']}: give "
            "another --workdir"
        )
    names = [name for name in dict.fromkeys([*before, *now]) if before.get(name) != now.get(name)]
    # More or fewer steps alone change nothing that was done, unless the optimizer follows the run's progress.
    harmless = () if experiment.follows_progress else ("steps", "epochs")
    harmful = [name for name in names if name not in harmless]
    if harmful and not allow_change:
        listed = ", ".join(_changed(name, before.get(name), now.get(name)) for name in harmful)
        raise UserError(
            f"the configuration of the run in {workdir} changed: {listed}. Give the old values, or "
            "--allow-change to go on with the new ones"
        )
    return names


def _changed(name: str, old: Any, new: Any) -> str:
    if name in ("model", "optimizer", "objective", "frozen", "data"):
        return f"{name} is another"
    return f"{name} was {old!r} and is {new!r}"
