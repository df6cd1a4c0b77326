"""Prove that an experiment is portable: one artifact for all platforms, which runs bit for bit, compiled for each."""

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from accelnet.errors import UserError
from accelnet.experiment import Experiment
from accelnet.planning.compiled.compile import compile_all
from accelnet.planning.compiled.export import ExportedProgram, export_program, load_arrays, run_artifact, save_arrays
from accelnet.planning.compiled.process import run_worker
from accelnet.planning.targets.target import find_target
from accelnet.training.evaluation import Weights
from accelnet.training.program import prepare

PLATFORMS = ("cpu", "cuda", "tpu")
# One target of each platform.
PROVED_TARGETS = {"cpu": "cpu", "cuda": "h100", "tpu": "v5e:1x1"}
_STEPS = 3
# Relative to the norm of the results: rounding stays far below it in every precision, a wrong program does not.
_ROUNDING = 0.01


@dataclass(frozen=True)
class Proof:
    """The results of a proof.

    Attributes:
        artifact_bytes: Sizes of the exported programs, by name.
        equal: Whether the artifact gave the same bits in a fresh process as the exported program gave here, by name.
        difference: Norm of the difference between these results and those of the run's own program, relative to the
            norm of the latter, by name. XLA fuses and rounds a program for several platforms differently from one for
            this machine alone, and the run's own may have kernels.
        compiled: "ok", or why it was not compiled, by platform and name.
    """

    experiment: str
    artifact_bytes: dict[str, int]
    equal: dict[str, bool]
    difference: dict[str, float]
    compiled: dict[str, dict[str, str]]

    @property
    def holds(self) -> bool:
        """Whether everything worked."""
        return (
            all(self.equal.values())
            and all(difference < _ROUNDING for difference in self.difference.values())
            and all(status == "ok" for programs in self.compiled.values() for status in programs.values())
        )

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return vars(self) | {"holds": self.holds}

    def __str__(self) -> str:
        lines = [f"{self.experiment}: one artifact for {', '.join(PLATFORMS)}"]
        for name, size in self.artifact_bytes.items():
            bits = "the same bits" if self.equal[name] else "OTHER BITS"
            lines.append(f"  {name:<6} {size:>9,} bytes   run from the artifact in a fresh process: {bits}")
            verdict = "rounding" if self.difference[name] < _ROUNDING else "ANOTHER RESULT"
            lines.append(f"  {name:<6} differs from the run's own program by {self.difference[name]:.1e}: {verdict}")
        for platform, programs in self.compiled.items():
            told = ", ".join(f"{name} {status}" for name, status in programs.items())
            lines.append(f"  compiled for {platform:<5} ({PROVED_TARGETS[platform]}): {told}")
        return "\n".join(lines)


def prove(
    experiment: Experiment,
    *,
    compile_seconds: float = 300.0,
    say: Callable[[str], None] = lambda _text: None,
) -> Proof:
    """Export the training and evaluation programs for all platforms at once, and try them.

    Args:
        experiment: Experiment that has the programs.
        compile_seconds: Seconds after which a compiler is given up.
        say: Function that is told of the progress.

    Returns:
        The proof. Bits are compared after 3 steps, and after one evaluation batch.

    Raises:
        UserError: if the artifact cannot be made or read.
    """
    if jax.default_backend() != "cpu":
        raise UserError("the proof runs on the CPU: start it under JAX_PLATFORMS=cpu")
    feed, programs = prepare(experiment, absent=None)
    try:
        say("exporting for " + ", ".join(PLATFORMS))
        exported = {p.name: export_program(p, {}, PLATFORMS) for p in (programs.train, programs.evaluate)}
        state = programs.init(np.uint32(experiment.seed))
        rows = experiment.data.splits["train"]
        length = min(_STEPS, feed.max_steps or _STEPS)
        operands = {
            "train": (state, feed.train_operand(0, length), np.int32(length), np.bool_(True)),
            "eval": (
                Weights(state.params, state.frozen, state.model_state, state.step), experiment.objective.empty(),
                feed.eval_operand(rows, 0, 1), np.int32(0), np.int32(1), np.int32(rows.start), np.int32(rows.stop),
            ),
        }  # fmt: skip
        say("running the artifact in a fresh process")
        theirs = _run_afresh(exported, operands)
        here = {name: run_artifact(exported[name].data, jax.tree.leaves(operands[name])) for name in exported}
        # Evaluation first: training takes the state's buffers.
        ours = {p.name: _arrays(p(*operands[p.name])) for p in (programs.evaluate, programs.train)}
    finally:
        feed.close()
    say("compiling for one target of each platform")
    jobs = [(platform, find_target(name), tuple(exported.values())) for platform, name in PROVED_TARGETS.items()]
    compiled = compile_all(jobs, time_limit=compile_seconds)
    return Proof(
        experiment.name,
        {name: len(program.data) for name, program in exported.items()},
        {name: _same_bits(here[name], theirs[name]) for name in exported},
        {name: _difference(ours[name], theirs[name]) for name in exported},
        {
            platform: {name: "ok" if c.status == "ok" else c.reason for name, c in made.items()}
            for platform, made in compiled.items()
        },
    )


def _run_afresh(exported: Mapping[str, ExportedProgram], operands: Mapping[str, Any]) -> dict[str, list[np.ndarray]]:
    """Return the results of programs that a fresh process read from their artifacts."""
    with tempfile.TemporaryDirectory(prefix="accelnet-prove-") as name:
        folder = Path(name)
        runs = []
        for program in exported.values():
            run = {part: str(folder / f"{program.name}-{part}") for part in ("artifact", "inputs.npz", "outputs.npz")}
            Path(run["artifact"]).write_bytes(program.data)
            save_arrays(Path(run["inputs.npz"]), _arrays(operands[program.name]))
            runs.append(run)
        reason = run_worker({"run": runs}, folder, "cpu", 1, 300.0, set())
        outputs = [Path(run["outputs.npz"]) for run in runs]
        if not all(path.exists() for path in outputs):
            raise UserError(f"the artifact did not run in a fresh process: {reason}")
        return {name: load_arrays(path) for name, path in zip(exported, outputs, strict=True)}


def _arrays(tree: Any) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(jax.device_get(tree))]


def _same_bits(ours: list[np.ndarray], theirs: list[np.ndarray]) -> bool:
    return len(ours) == len(theirs) and all(
        a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
        for a, b in zip(ours, theirs, strict=True)
    )


def _difference(ours: list[np.ndarray], theirs: list[np.ndarray]) -> float:
    """Return the norm of the difference relative to the norm of `ours`; infinite where shapes differ or NaN is met."""
    if [a.shape for a in ours] != [b.shape for b in theirs]:
        return float("inf")
    a, b = (np.concatenate([array.astype(np.float64).ravel() for array in arrays]) for arrays in (ours, theirs))
    difference = float(np.linalg.norm(a - b) / max(float(np.linalg.norm(a)), np.finfo(np.float64).tiny))
    return difference if np.isfinite(difference) else float("inf")
