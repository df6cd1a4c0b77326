"""The verbs `plan` and `targets`."""

import json
from dataclasses import dataclass
from pathlib import Path

from accelnet.cli.devices import check_platform, choose_platform
from accelnet.cli.script import Config, Script
from accelnet.errors import UserError
from accelnet.terminal import show


@dataclass(frozen=True)
class PlanOptions:
    """For which hardware, within what."""

    targets: str | None = None
    """Names with commas between them, such as v5e:2x2,h100:8,cpu; `targets` lists them, "here" is this machine. None:
    a spread of them."""
    mesh: str | None = None
    """As of `train`, with -1 for as many devices as a target has. None: data parallel over all of them."""
    budget: str | None = None
    """Say what to rent for at most this, such as 20usd."""
    deadline: str | None = None
    """Say what to rent to be done within this, such as 2h or 90min."""
    workdir: Path | None = None
    """Directory for plan.json and plan.html. None writes nothing."""
    abstract: bool = False
    """Compile nothing: shapes and facts alone, in seconds."""
    measure: bool = False
    """Measure the parts of a step on this machine first; what was measured is kept and used from then on."""
    prove: bool = False
    """Instead: export the programs for CPU, CUDA and TPU at once, run them from there bit for bit, compile each."""
    compile_seconds: float = 300.0
    """After which a compiler is given up."""
    targets_file: Path | None = None
    """TOML with facts and prices of your own; also $ACCELNET_TARGETS."""
    json: bool = False
    """Print the plan as the last line of standard output, as one JSON object."""
    quiet: bool = False
    """Show no progress."""


@dataclass(frozen=True)
class TargetsOptions:
    """Which targets are listed."""

    family: str | None = None
    """tpu, gpu, or the beginning of names such as v5e, listed with every size. None: all."""
    targets_file: Path | None = None
    """TOML with facts and prices of your own; also $ACCELNET_TARGETS."""


def plan(script: Script, config: Config, options: PlanOptions) -> None:
    """Say whether it fits on hardware that is not here, how fast it can be, and what it costs."""
    choose_platform(None)
    check_platform()
    from accelnet.parallel.mesh import parse_mesh
    from accelnet.planning.choice import parse_hours, parse_usd
    from accelnet.planning.plan import find_targets, plan
    from accelnet.report.progress import Progress

    if not options.compile_seconds > 0:
        raise UserError(f"--compile-seconds is {options.compile_seconds}, expected seconds above 0")
    if options.mesh is not None and options.mesh != "auto":
        parse_mesh(options.mesh)
    budget = None if options.budget is None else parse_usd(options.budget)
    deadline = None if options.deadline is None else parse_hours(options.deadline)
    if not options.prove:
        find_targets(options.targets, options.targets_file)  # a name that is none costs no minutes of measuring
    experiment = script.experiment(config)
    say = Progress(not options.quiet)
    if options.prove:
        others = ("targets", "mesh", "budget", "deadline", "workdir", "abstract", "measure", "targets_file")
        given = [f"--{name.replace('_', '-')}" for name in others if getattr(options, name)]
        if given:
            raise UserError(
                f"--prove stands alone, without {', '.join(given)}: it runs on the CPU and needs no targets"
            )
        from accelnet.planning.prove import prove

        proof = prove(experiment, compile_seconds=options.compile_seconds, say=say)
        say.close()
        show(proof)
        if options.json:
            show(json.dumps(proof.to_dict()))
        if not proof.holds:
            raise SystemExit(1)
        return
    if options.measure:
        from accelnet.planning.machine import load_accelerators
        from accelnet.planning.measure import measure
        from accelnet.planning.targets import this_machine

        here = this_machine(accelerators=load_accelerators(options.targets_file))
        measured = measure(experiment, here, say=say)
        say.close()
        show(f"{measured}\n")
    made = plan(
        experiment,
        options.targets,
        mesh=options.mesh,
        budget_usd=budget,
        deadline_hours=deadline,
        workdir=options.workdir,
        compile=not options.abstract,
        compile_seconds=options.compile_seconds,
        targets_file=options.targets_file,
        progress=not options.quiet,
    )
    show(made)
    if options.workdir is not None:
        show(f"kept in {options.workdir}/plan.json and {options.workdir}/plan.html")
    if options.json:
        show(json.dumps(made.to_dict()))


def targets(script: Script, options: TargetsOptions) -> None:  # noqa: ARG001, as every verb
    """List the hardware that `plan` knows."""
    from accelnet.planning.listing import targets_table
    from accelnet.planning.machine import load_accelerators

    show(targets_table(load_accelerators(options.targets_file), options.family))
