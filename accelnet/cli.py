"""The command line of an experiment script: verbs, flags from its Config, messages and exit codes.

Exit codes: 0 done; 2 a mistake of the user's, one message; 3 the loss became NaN or infinite; 4 told to end (SIGTERM),
the state is saved; 5 another process of the run is lost; 130 interrupted.
"""

import dataclasses
import json
import os
import sys
import types
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

from accelnet.errors import DivergenceError, LostProcessError, PreemptedError, UserError
from accelnet.experiment import Experiment

ExperimentFunction = Callable[[Any], Experiment]


@dataclass(frozen=True)
class TrainOptions:
    """Where a run is kept, and how it goes on."""

    workdir: Path | None = None
    """Directory for checkpoints, metrics, curves and result.json; made if needed. None keeps nothing."""
    resume: bool = False
    """Go on where the run in --workdir stopped, with its settings; from the start if there is nothing yet."""
    allow_change: bool = False
    """Resume although settings changed."""
    json: bool = False
    """Print the result as the last line of standard output, as one JSON object."""
    quiet: bool = False
    """Show no progress."""


@dataclass(frozen=True)
class DeviceOptions:
    """Which devices compute."""

    mesh: str | None = None
    """The devices as a grid: data=8 cuts batches, fsdp=8 weights too, model=2 layers; data=2,fsdp=4 combines; auto
    takes all. None: all accelerators, or one CPU device."""
    strategy: Literal["jit", "pmap"] = "jit"
    """One program that XLA partitions, or one that is replicated on every device."""
    cpu_devices: int | None = None
    """Compute on the CPU, as if it were so many devices."""


@dataclass(frozen=True)
class ClusterOptions:
    """Which processes compute together. On TPU pods, Slurm, Open MPI and Kubernetes jax knows it."""

    coordinator: str | None = None
    """host:port of process 0; None: of JAX_COORDINATOR_ADDRESS, or as jax detects it."""
    num_processes: int | None = None
    """Of the run; None: of JAX_NUM_PROCESSES, or as jax detects it."""
    process_id: int | None = None
    """Of this process, from 0; None: of JAX_PROCESS_ID, or as jax detects it."""
    hang_timeout: float = 300.0
    """Seconds after which a process that is missing, silent or without progress ends them all."""


@dataclass(frozen=True)
class EvaluateOptions:
    """Which weights are evaluated."""

    workdir: Path
    """Directory of the run; its own settings are used."""
    best: bool = False
    """Take the checkpoint with the best validation metric, not the newest."""
    json: bool = False
    """Print the result as the last line of standard output, as one JSON object."""


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


def main(
    experiment: ExperimentFunction,
    args: Sequence[str] | None = None,
    *,
    after_train: Callable[[Any], None] | None = None,
) -> None:
    """Run the command line of an experiment script: `train`, `evaluate`, `summary`, `plan` or `targets`.

    Args:
        experiment: the script's function from its Config, a flat frozen dataclass with defaults, to an
            `Experiment`. Its parameter's annotation says which dataclass.
        args: command line arguments; None for those of the process.
        after_train: called with the finished `Run` of `train`, to show what else there is to see.

    Raises:
        SystemExit: with the exit codes above.

    Example:
        >>> if __name__ == "__main__":  # doctest: +SKIP
        ...     main(experiment)

    Source: original.
    """
    try:
        _run(experiment, list(sys.argv[1:] if args is None else args), after_train)
    except (UserError, DivergenceError, LostProcessError) as error:
        _leave(error)
        _exit(f"error: {error}", error.exit_code)
    except PreemptedError as error:
        _exit(f"preempted: {error}", error.exit_code)
    except KeyboardInterrupt as error:
        _leave(error)
        print("interrupted: what was saved stays, go on with --resume", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        # A chunk of steps may still be running in XLA's threads, and an orderly exit under it can crash.
        os._exit(130)


def _leave(error: BaseException) -> None:
    """Tell the other processes of the run, if it has any, so that they do not wait for this one."""
    if "jax" in sys.modules:
        from accelnet.parallel.exchange import leave

        leave(error)


def _exit(message: str, code: int) -> NoReturn:
    print(message, file=sys.stderr)
    raise SystemExit(code)


def _run(experiment: ExperimentFunction, args: list[str], after_train: Callable[[Any], None] | None) -> None:
    config_type = _config_type(experiment)
    verb, config, options, devices, processes = _parse(experiment, config_type, config_type(), args)
    if verb == "train" and options.resume and options.workdir is None:
        raise UserError("--resume needs --workdir, the directory of the run to go on with")
    if verb == "train" and options.resume:
        from accelnet.training.workdir import read_config

        stored = read_config(options.workdir)
        if stored is not None:
            # The run's own settings are the defaults now; flags that are given still count.
            verb, config, options, devices, processes = _parse(
                experiment, config_type, config_from_json(config_type, stored), args
            )
    if verb == "targets":
        from accelnet.planning.targets import load_accelerators, targets_table

        print(targets_table(load_accelerators(options.targets_file), options.family))
        return
    _set_up(devices, processes)
    if verb == "plan":
        _plan(named(experiment, config), options)
    elif verb == "train":
        _train(named(experiment, config), options, devices, processes, after_train)
    elif verb == "evaluate":
        _evaluate(experiment, config_type, options, devices, processes)
    else:
        _summary(named(experiment, config), devices)


def _set_up(devices: DeviceOptions, processes: ClusterOptions | None) -> None:
    """Choose the platform and join the cluster, before anything touches a device."""
    if devices.cpu_devices is not None:
        if devices.cpu_devices < 1:
            raise UserError(f"--cpu-devices is {devices.cpu_devices}, expected at least 1")
        import jax

        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", devices.cpu_devices)
    elif not os.environ.get("JAX_PLATFORMS") and has_compilers_alone():
        import jax

        jax.config.update("jax_platforms", "cpu")
    if processes is None:
        return
    if not processes.hang_timeout > 0:
        raise UserError(f"--hang-timeout is {processes.hang_timeout}, expected seconds above 0")
    from accelnet.parallel import cluster

    joined = processes.coordinator, processes.num_processes, processes.process_id
    if cluster.initialize(*joined, timeout_seconds=processes.hang_timeout):
        import jax

        if jax.process_index() > 0:
            # The first process speaks for all.
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123, until the process ends


def has_compilers_alone(devices: Path = Path("/dev")) -> bool:
    """Say whether this machine has compilers for accelerators, as `plan` wants them, and no accelerator.

    JAX would look for the devices all the same, and print a traceback for each platform that has none.

    Args:
        devices: where the system lists devices.
    """
    from importlib.util import find_spec

    if any(any(devices.glob(pattern)) for pattern in ("accel*", "nvidia*", "vfio/*", "kfd", "dxg")):
        return False
    plugins = find_spec("jax_plugins")
    names = {
        path.name for folder in (plugins.submodule_search_locations or () if plugins else ())
        for path in Path(folder).iterdir() if not path.name.startswith("_")
    }  # fmt: skip
    return bool(names or find_spec("libtpu")) and names <= {"xla_cuda12", "xla_cuda13"}


def named(experiment: ExperimentFunction, config: Any) -> Experiment:
    """Make the experiment of a config, with the script's name and the config's values recorded in it."""
    made = experiment(config)
    name = Path(experiment.__globals__.get("__file__", "experiment")).stem  # type: ignore[attr-defined]
    return made.replace(
        name=name if made.name == "experiment" else made.name,
        config=dict(made.config) or dataclasses.asdict(config),
    )


def _config_type(experiment: ExperimentFunction) -> type:
    hints = typing.get_type_hints(experiment)
    kinds = [kind for name, kind in hints.items() if name != "return" and dataclasses.is_dataclass(kind)]
    if len(kinds) != 1:
        raise TypeError(
            f"{experiment.__name__} has parameters {hints}, expected one that is annotated with a dataclass"
        )
    return typing.cast(type, kinds[0])


def _parse(experiment: ExperimentFunction, config_type: type, default: Any, args: list[str]) -> tuple[Any, ...]:
    import tyro

    def train(
        config: Any = default,
        options: TrainOptions = TrainOptions(),
        devices: DeviceOptions = DeviceOptions(),
        processes: ClusterOptions = ClusterOptions(),
    ) -> Any:
        return "train", config, options, devices, processes

    def evaluate(
        options: EvaluateOptions,
        devices: DeviceOptions = DeviceOptions(),
        processes: ClusterOptions = ClusterOptions(),
    ) -> Any:
        return "evaluate", None, options, devices, processes

    def summary(config: Any = default, devices: DeviceOptions = DeviceOptions()) -> Any:
        return "summary", config, None, devices, None

    def plan(config: Any = default, options: PlanOptions = PlanOptions()) -> Any:
        return "plan", config, options, DeviceOptions(), None

    def targets(options: TargetsOptions = TargetsOptions()) -> Any:
        return "targets", None, options, DeviceOptions(), None

    for function in (train, summary, plan):
        function.__annotations__["config"] = config_type
    train.__doc__ = "Train, and evaluate at the end."
    evaluate.__doc__ = "Evaluate the weights of a run on every split."
    summary.__doc__ = "Show layers, shapes, parameters and FLOPs; with --mesh also what lies where."
    plan.__doc__ = "Say whether it fits on hardware that is not here, how fast it can be, and what it costs."
    targets.__doc__ = "List the hardware that `plan` knows."
    module_doc = sys.modules[experiment.__module__].__doc__ if experiment.__module__ in sys.modules else None
    return tyro.extras.subcommand_cli_from_dict(
        {"train": train, "evaluate": evaluate, "summary": summary, "plan": plan, "targets": targets},
        args=args,
        description=module_doc,
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes, tyro.conf.FlagCreatePairsOff),
    )


def config_from_json(config_type: type, values: dict[str, Any]) -> Any:
    """Make a Config from the JSON values of an earlier run.

    Raises:
        UserError: if the script has no such field any more.
    """
    hints = typing.get_type_hints(config_type)
    unknown = sorted(set(values) - {field.name for field in dataclasses.fields(config_type)})
    if unknown:
        raise UserError(
            f"the run was started with settings that {config_type.__module__}.{config_type.__name__} does not have: "
            f"{', '.join(unknown)}"
        )
    return config_type(**{name: _from_json(hints[name], value) for name, value in values.items()})


def _from_json(kind: Any, value: Any) -> Any:
    options = typing.get_args(kind) if typing.get_origin(kind) in (typing.Union, types.UnionType) else (kind,)
    if isinstance(value, list):
        return tuple(value)
    if isinstance(value, str) and Path in options:
        return Path(value)
    return value


def _train(
    experiment: Experiment,
    options: TrainOptions,
    devices: DeviceOptions,
    processes: ClusterOptions,
    after_train: Callable[[Any], None] | None,
) -> None:
    from accelnet.planning.utilization import utilization
    from accelnet.training.loop import fit
    from accelnet.training.result import result_line

    run = fit(
        experiment,
        workdir=options.workdir,
        resume=options.resume,
        allow_change=options.allow_change,
        progress=not options.quiet,
        mesh=devices.mesh,
        strategy=devices.strategy,
        hang_timeout=processes.hang_timeout,
    )
    timing = run.result["timing"]
    _print_metrics(run.metrics)
    print(
        f"{run.step} steps in {timing['total_seconds']:.1f} s, {timing['examples_per_second']:,.0f} examples/s; "
        + (f"kept in {options.workdir}" if options.workdir else "nothing was kept: --workdir names a place")
    )
    used = utilization(experiment, timing["examples_per_second"])
    if used is not None:
        print(used)
    if after_train is not None:
        after_train(run)
    if options.json:
        print(result_line(run.result if used is None else {**run.result, "mfu": used.share}))


def _evaluate(
    experiment: ExperimentFunction,
    config_type: type,
    options: EvaluateOptions,
    devices: DeviceOptions,
    processes: ClusterOptions,
) -> None:
    from accelnet.training.loop import evaluate
    from accelnet.training.workdir import read_config

    stored = read_config(options.workdir)
    if stored is None:
        raise UserError(f"{options.workdir} holds no run: `train --workdir {options.workdir}` makes one")
    made = named(experiment, config_from_json(config_type, stored))
    step, metrics = evaluate(
        made,
        options.workdir,
        best=options.best,
        mesh=devices.mesh,
        strategy=devices.strategy,
        hang_timeout=processes.hang_timeout,
    )
    print(f"{made.name}, step {step}")
    _print_metrics(metrics)
    if options.json:
        print(json.dumps({"experiment": made.name, "step": step, "metrics": metrics, "workdir": str(options.workdir)}))


def _summary(experiment: Experiment, devices: DeviceOptions) -> None:
    from accelnet.models.summary import summary
    from accelnet.training.state import sample_inputs

    print(summary(experiment.model, sample_inputs(experiment)))
    if devices.mesh is not None:
        import jax

        from accelnet.parallel.layout import abstract_layout
        from accelnet.parallel.table import placement_table
        from accelnet.training.state import init_state

        state = jax.eval_shape(lambda: init_state(experiment, experiment.seed))
        layout = abstract_layout(devices.mesh, devices.strategy, experiment.sharding_rules)
        layout.check(state)
        print(placement_table(layout, state))


def _plan(experiment: Experiment, options: PlanOptions) -> None:
    from accelnet.planning.choice import parse_hours, parse_usd
    from accelnet.planning.plan import plan
    from accelnet.planning.planner import Progress

    if not options.compile_seconds > 0:
        raise UserError(f"--compile-seconds is {options.compile_seconds}, expected seconds above 0")
    budget = None if options.budget is None else parse_usd(options.budget)
    deadline = None if options.deadline is None else parse_hours(options.deadline)
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
        print(proof)
        if options.json:
            print(json.dumps(proof.to_dict()))
        if not proof.holds:
            raise SystemExit(1)
        return
    if options.measure:
        from accelnet.planning.measure import measure
        from accelnet.planning.targets import this_machine

        measured = measure(experiment, this_machine(), say=say)
        say.close()
        print(f"{measured}\n")
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
    print(made)
    if options.workdir is not None:
        print(f"kept in {options.workdir}/plan.json and {options.workdir}/plan.html")
    if options.json:
        print(json.dumps(made.to_dict()))


def _print_metrics(metrics: Any) -> None:
    from rich.console import Console
    from rich.table import Table

    splits = [split for split in metrics if metrics[split]]
    table = Table("metric", *splits, box=None, pad_edge=False)
    for name in dict.fromkeys(name for split in splits for name in metrics[split]):
        table.add_row(name, *[f"{metrics[split][name]:.4f}" for split in splits])
    Console(width=100, highlight=False).print(table)
