"""The verbs `plan` and `targets`."""

import contextlib
import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelnet.cli.devices import start_platform
from accelnet.cli.output import Output, finish
from accelnet.cli.script import Config, Script
from accelnet.errors import UserError
from accelnet.json_file import read_json
from accelnet.terminal import StatusLine, show
from accelnet.wording import shown


@dataclass(frozen=True)
class PlanOptions:
    """Hardware, and limits of cost and time."""

    targets: str | None = None
    """Names separated by commas, such as v5e:2x2,h100:8,cpu; `targets` lists them, "here" is this machine. None: a
    selection of them."""
    tuned: Path | None = None
    """Work directory of `tune` or `compare`, whose recommended settings are used."""
    mesh: str | None = None
    """Mesh as in `train`, with -1 for as many devices as a target has. None: data parallel over all of them."""
    budget: str | None = None
    """Largest cost, such as 20usd: show what to rent for it."""
    deadline: str | None = None
    """Longest time, such as 2h or 90min: show what to rent for it."""
    workdir: Path | None = None
    """Directory for plan.json and plan.html. None writes nothing."""
    abstract: bool = False
    """Compile nothing: use shapes and facts alone, in seconds."""
    measure: bool = False
    """Measure a step and its parts on this machine first; the parts are kept and used from then on."""
    prove: bool = False
    """Instead, export the programs for CPU, CUDA and TPU at once, run the export bit for bit, and compile each."""
    compile_seconds: float = 300.0
    """Longest time for one compilation."""
    targets_file: Path | None = None
    """TOML with facts and prices of your own; also $ACCELNET_TARGETS."""


@dataclass(frozen=True)
class TargetsOptions:
    """Targets that are listed."""

    family: str | None = None
    """tpu, gpu, or the beginning of names such as v5e, listed with every size. None: all."""
    targets_file: Path | None = None
    """TOML with facts and prices of your own; also $ACCELNET_TARGETS."""


def plan(script: Script, config: Config, options: PlanOptions, output: Output) -> None:
    """Predict whether a run fits on other hardware, how fast it can be, and what it costs."""
    from accelnet.parallel.mesh import parse_mesh
    from accelnet.planning.choice import parse_hours, parse_usd

    if not options.compile_seconds > 0:
        raise UserError(f"--compile-seconds is {options.compile_seconds}, expected seconds above 0")
    if options.mesh is not None and options.mesh != "auto":
        parse_mesh(options.mesh)
    budget = None if options.budget is None else parse_usd(options.budget)
    deadline = None if options.deadline is None else parse_hours(options.deadline)
    if options.tuned is not None:
        config = _with_tuned(script, config, options.tuned)
    if options.prove:
        _prove(script, config, options, output)
        return
    start_platform()
    from accelnet.planning.plan import plan

    made = plan(
        script.experiment(config),
        options.targets,
        mesh=options.mesh,
        budget_usd=budget,
        deadline_hours=deadline,
        workdir=options.workdir,
        compile=not options.abstract,
        measure=options.measure,
        compile_seconds=options.compile_seconds,
        targets_file=options.targets_file,
        progress=not output.quiet,
    )
    finish(output, made, made.to_dict(), options.workdir, "plan.json", "plan.html")


def _prove(script: Script, config: Config, options: PlanOptions, output: Output) -> None:
    others = ("targets", "mesh", "budget", "deadline", "workdir", "abstract", "measure", "targets_file")
    given = [f"--{name.replace('_', '-')}" for name in others if getattr(options, name)]
    if given:
        raise UserError(f"--prove stands alone, without {', '.join(given)}: it runs on the CPU and needs no targets")
    start_platform()
    from accelnet.planning.prove import prove

    with contextlib.closing(StatusLine(not output.quiet)) as say:
        proof = prove(script.experiment(config), compile_seconds=options.compile_seconds, say=say)
    finish(output, proof, proof.to_dict(), None)
    if not proof.holds:
        raise SystemExit(1)


def _with_tuned(script: Script, config: Any, directory: Path) -> Any:
    """Return the Config with the settings that `tune` or `compare` recommends in a directory."""
    found = [path for name in ("tune.json", "compare.json") if (path := directory / name).is_file()]
    if not found:
        raise UserError(f"{directory} holds neither tune.json nor compare.json: `tune --workdir {directory}` makes one")
    advice = f"`{found[0].stem} --workdir {directory}` makes it anew, once it is removed"
    if found[0].name == "tune.json":
        settings = read_json(found[0], "the answer of tune", {"recommended": {str: float}}, advice)["recommended"]
    else:
        shape = {"winner": str, "candidates": [{"name": str, "learning_rate": float}]}
        content = read_json(found[0], "the answer of compare", shape, advice)
        rates = {one["name"]: one["learning_rate"] for one in content["candidates"]}
        if content["winner"] not in rates:
            raise UserError(f"{found[0]} names the winner {shown(content['winner'])}, none of its candidates: {advice}")
        settings = {"learning_rate": float(rates[content["winner"]])}
    unknown = set(settings) - {field.name for field in dataclasses.fields(script.config_type)}
    if unknown:
        raise UserError(f"{directory} recommends {', '.join(sorted(unknown))}, which this script does not have")
    return dataclasses.replace(config, **settings)


def targets(script: Script, options: TargetsOptions) -> None:  # noqa: ARG001, as every verb
    """List the hardware that `plan` knows."""
    from accelnet.planning.targets.accelerators import load_accelerators
    from accelnet.planning.targets.listing import targets_table

    show(targets_table(load_accelerators(options.targets_file), options.family))
