"""Plan what an experiment would do on hardware that is not here."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from accelnet import runtime
from accelnet.arguments import flags, names, number
from accelnet.disk import write_atomically
from accelnet.errors import UserError
from accelnet.experiment import Experiment, check_experiment
from accelnet.parallel.mesh import parse_mesh
from accelnet.planning.choice import choose
from accelnet.planning.measure import Measurement
from accelnet.planning.measure import measure as measure_step
from accelnet.planning.modelled.run_time import NOT_COUNTED
from accelnet.planning.page import plan_page
from accelnet.planning.planner import COMPILE_SECONDS, Case, Planner
from accelnet.planning.remedies import find_remedies
from accelnet.planning.rows import Row
from accelnet.planning.scaling import scaling
from accelnet.planning.table import plan_table
from accelnet.planning.targets.accelerators import load_accelerators
from accelnet.planning.targets.target import DEFAULT_TARGETS, Target, find_target, this_machine
from accelnet.report.document import embedded
from accelnet.terminal import StatusLine
from accelnet.training.writable import check_workdir

_MOST_LINES = 11  # where it prints itself


@dataclass(frozen=True, repr=False)
class Plan:
    """Answers for several targets.

    Attributes:
        flops: FLOPs of a step, as of `StepFlops.to_dict`.
        rows: Answers, one per target, in the order asked for.
        scaling: Predictions over the sizes of the targets' families.
        choice: What to rent, where a budget or deadline was given.
        measured: Measurement of this machine, where that was asked for.
    """

    experiment: str
    steps: int
    batch_size: int
    flops: dict[str, Any]
    rows: tuple[Row, ...]
    scaling: tuple[dict[str, Any], ...] = ()
    choice: dict[str, Any] | None = None
    measured: Measurement | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values, of the schema that the guide documents."""
        return {
            "experiment": self.experiment,
            "steps": self.steps,
            "batch_size": self.batch_size,
            "flops": self.flops,
            "targets": [row.to_dict() for row in self.rows],
            "run_leaves_out": list(NOT_COUNTED),
            "scaling": list(self.scaling),
            "choice": self.choice,
            "measured": None if self.measured is None else self.measured.to_dict(),
        }

    def __repr__(self) -> str:
        lines = plan_table(self.to_dict()).splitlines()
        end = next((number for number, line in enumerate(lines[3:], 3) if not line), len(lines))
        shown = lines[: min(end, _MOST_LINES)]
        return "\n".join([*shown, *(["..., print(plan) shows all"] if len(lines) > len(shown) else [])])

    def _repr_html_(self) -> str:
        return embedded(plan_page(self.to_dict()))

    def __str__(self) -> str:
        table = plan_table(self.to_dict())
        return table if self.measured is None else f"{self.measured}\n\n{table}"


def plan(
    experiment: Experiment,
    targets: str | Sequence[str] | None = None,
    *,
    mesh: str | None = None,
    budget_usd: float | None = None,
    deadline_hours: float | None = None,
    workdir: str | Path | None = None,
    compile: bool = True,  # noqa: A002, the word for it
    measure: bool = False,
    remedies: bool = True,
    compile_seconds: float = COMPILE_SECONDS,
    targets_file: str | Path | None = None,
    progress: bool = True,
) -> Plan:
    """Predict whether an experiment fits on hardware that is not here, how fast it can be there, and what it costs.

    The programs that `fit` would run are compiled by XLA's own compilers for the targets, in processes of their own.
    Nothing is trained, and nothing is sent anywhere.

    Args:
        experiment: Experiment that would be trained.
        targets: Names such as "v5e:2x2", "h100:8", "cpu", as a list or with commas between them. None: a spread of
            them, and this machine.
        mesh: Mesh, as of `fit`, with -1 for as many devices as a target has. None: data parallel over all devices, or
            "fsdp" if the state would take more than a quarter of a device's memory.
        budget_usd: The most that a run may cost, to choose what to rent.
        deadline_hours: The longest that a run may take, to choose what to rent.
        workdir: Directory for plan.json and plan.html. None: nothing is written.
        compile: Whether to compile. False: shapes and facts alone, in seconds.
        measure: Whether to measure a step and its parts on this machine first. The step's time is then that of this
            machine; the parts' times are kept and used from then on.
        remedies: Whether to compile what would make it fit, where it does not.
        compile_seconds: Seconds after which a compiler is given up.
        targets_file: File with facts and prices of your own, as of `load_accelerators`.
        progress: Whether to show on standard error what is being done.

    Returns:
        The `Plan`; `print` shows it as a table.

    Raises:
        UserError: if there is no answer for any target, or `workdir` cannot be written to.

    Example:
        >>> import numpy as np, accelnet as an
        >>> data = an.data.from_arrays(np.eye(20, 3, dtype=np.float32), np.arange(20) % 2, num_classes=2)
        >>> experiment = an.Experiment(
        ...     data=data,
        ...     model=lambda rngs: an.models.MLP(3, (4,), 2, rngs=rngs),
        ...     optimizer=an.optim.adam(1e-2),
        ...     objective=an.objectives.softmax_cross_entropy(),
        ...     batch_size=4,
        ...     epochs=2,
        ... )
        >>> made = plan(experiment, "h100", compile=False, progress=False)
        >>> made.rows[0].fits, made.rows[0].memory.source
        (True, 'modelled')
    """
    check_experiment(experiment)
    flags(compile=compile, measure=measure, remedies=remedies, progress=progress)
    number("compile_seconds", compile_seconds, above=0)
    for name, value in {"budget_usd": budget_usd, "deadline_hours": deadline_hours}.items():
        if value is not None:
            number(name, value, above=0)
    if mesh is not None and mesh != "auto":
        parse_mesh(mesh)
    runtime.prepare()
    workdir = check_workdir(workdir)
    say = StatusLine(progress)
    named = find_targets(targets, targets_file)
    measured = None
    if measure:
        measured = measure_step(experiment, this_machine(accelerators=load_accelerators(targets_file)), say=say)
    timed = {} if measured is None else {measured.device: measured.step_seconds}
    planner = Planner(experiment, mesh, compile=compile, compile_seconds=compile_seconds, measured=timed, say=say)
    cases = [target if isinstance(target, Row) else _case(planner, target) for target in named]
    _refuse_if_none(cases)
    planner.compile([case for case in cases if isinstance(case, Case)])
    rows = [case if isinstance(case, Row) else planner.row(case) for case in cases]
    if remedies and compile:
        for index, case in enumerate(cases):
            if isinstance(case, Case) and not case.fits:
                rows[index] = replace(rows[index], remedies=find_remedies(planner, case))
    made = Plan(
        experiment.name,
        experiment.total_steps,
        experiment.order.batch_size,
        planner.trace(experiment).flops().to_dict(),
        tuple(rows),
        tuple(scaling(planner, [row for row in rows if row.time is not None])),
        None if budget_usd is None and deadline_hours is None else choose(rows, budget_usd, deadline_hours),
        measured,
    )
    say.close()
    if workdir is not None:
        values = made.to_dict()
        write_atomically(Path(workdir) / "plan.json", json.dumps(values, indent=1) + "\n")
        write_atomically(Path(workdir) / "plan.html", plan_page(values))
    return made


def find_targets(targets: str | Sequence[str] | None, targets_file: str | Path | None = None) -> list[Target | Row]:
    """Find the targets of names, each once. For a name that is no target, a failed row says why.

    Args:
        targets: Names, as of `plan`.
        targets_file: File of the user's, as of `plan`.

    Raises:
        UserError: if no name is a target.

    Example:
        >>> [target.name for target in find_targets("v5litepod-4, h100, v5e:2x2")]
        ['v5e:2x2', 'h100']
    """
    accelerators = load_accelerators(targets_file)
    if targets is None:
        wanted = [*DEFAULT_TARGETS, "here"]
    else:
        given = targets.split(",") if isinstance(targets, str) else names("targets", targets)
        wanted = list(dict.fromkeys(name.strip() for name in given if name.strip()))
    if not wanted:
        raise UserError("no target was given: name some, such as --targets v5e:2x2,h100:8; `targets` lists them")
    found: dict[str, Target | Row] = {}
    for name in wanted:
        try:
            target = this_machine(accelerators=accelerators) if name == "here" else find_target(name, accelerators)
            found.setdefault(target.name, target)
        except UserError as error:
            found[f"failed {name}"] = Row(name, "failed", str(error))
    _refuse_if_none(list(found.values()))
    return list(found.values())


def _case(planner: Planner, target: Target) -> Case | Row:
    try:
        return planner.case(target)
    except UserError as error:
        return Row(target.name, "failed", str(error))


def _refuse_if_none(found: Sequence[Target | Case | Row]) -> None:
    reasons = [one.reason for one in found if isinstance(one, Row)]
    if len(reasons) == len(found):
        raise UserError("\n".join(reasons))
