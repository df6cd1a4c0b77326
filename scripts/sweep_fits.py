"""Compare what `plan` says of fitting with the TPU compiler's own word, on both sides of the limit.

    python scripts/sweep_fits.py [--out benchmarks/fits.json]

30 points: an MLP, a CNN and an LSTM, each on two TPUs, with five batches around the largest that fits. `plan` exports
the programs and has them compiled elsewhere; here the very function that `fit` would jit is compiled without that
detour, in a process of its own for each point. `plan`'s verdict is its arithmetic: the bytes that it shows against the
limit that it shows. Needs the extra plan-tpu; about 15 minutes on two cores.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np

import accelnet as an
from accelnet.planning.compiled.process import compiler_environment
from accelnet.planning.targets.target import find_target

TARGETS = ("v5e:1x1", "v6e:1x1")
# Of the batch that takes about as much as there is.
SHARES = (0.85, 0.97, 1.0, 1.03, 1.15)
# Where the search for it begins.
_BEGIN = {"mlp": 250_000, "cnn": 4_000, "rnn": 10_000}
_ROUNDS = 3


def make_experiment(family: str, batch_size: int) -> an.Experiment:
    """Make a model whose activations, not its weights, fill the memory."""
    shape, model = {
        "mlp": ((256,), lambda rngs: an.models.MLP(256, (4096,) * 3, 10, rngs=rngs)),
        "cnn": ((64, 64, 3), lambda rngs: an.models.CNN((64, 64, 3), (64, 128), 10, norm="batch", rngs=rngs)),
        "rnn": ((64, 128), lambda rngs: an.models.RNN(128, 512, 10, cell="lstm", rngs=rngs)),
    }[family]
    # One row of zeros, seen as many.
    inputs = np.broadcast_to(np.zeros((1, *shape), np.float32), (batch_size, *shape))
    return an.Experiment(
        data=an.data.from_arrays(
            inputs, np.arange(batch_size) % 10, num_classes=10, validation=0.0, test=0.0, normalize=False
        ),
        model=model,
        optimizer=an.optim.adam(1e-3),
        objective=an.objectives.softmax_cross_entropy(),
        batch_size=batch_size,
        eval_batch_size=8,
        steps=1,
        on_device=False,
        name=family,
    )


def compile_directly(family: str, batch_size: int, name: str) -> bool:
    """Say whether the compiler takes the training program; run in a process with the compiler's environment."""
    import jax
    from jax.experimental import topologies
    from jax.sharding import SingleDeviceSharding

    from accelnet.parallel.layout import AbsentDevices
    from accelnet.training.program import prepare

    target = find_target(name)
    request = target.topology_request()
    settings = {key: tuple(v) if isinstance(v, list) else v for key, v in request["kwargs"].items()}
    device = topologies.get_topology_desc(request["topology_name"], request["platform"], **settings).devices[0]
    absent = AbsentDevices(1, target.accelerator.usable_bytes)
    program = prepare(make_experiment(family, batch_size), absent=absent)[1].train
    here = SingleDeviceSharding(device)
    operands = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=here), program.operands)
    jitted = jax.jit(program.function, donate_argnums=program.donate)
    try:
        jitted.trace(*operands).lower(lowering_platforms=("tpu",)).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return False
    return True


def in_process(family: str, batch_size: int, name: str) -> bool:
    """Run `compile_directly` in a fresh process."""
    finished = subprocess.run(
        [sys.executable, __file__, "--compile", family, str(batch_size), name],
        env=compiler_environment("tpu", 1),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(finished.stdout.splitlines()[-1])


def sweep(family: str, name: str) -> list[dict[str, Any]]:
    """Return five points of a model on a target."""

    def answer(batch_size: int) -> Any:
        (row,) = an.plan(make_experiment(family, batch_size), name, remedies=False, progress=False).rows
        if row.missing:
            raise SystemExit(f"nothing was compiled: {row.missing}")
        return row

    most, points = _BEGIN[family], []
    for _ in range(_ROUNDS):
        memory = answer(most).memory
        most = int(most * memory.limit / memory.total)
    for share in SHARES:
        batch_size = int(share * most) // 8 * 8
        row, compiles = answer(batch_size), in_process(family, batch_size, name)
        points.append({
            "model": family, "target": name, "batch": batch_size, "plan": row.fits, "compiler": compiles,
            "total_bytes": row.memory.total, "limit_bytes": row.memory.limit, "source": row.memory.source,
        })  # fmt: skip
        print(
            f"{family:<5}{name:<9}{batch_size:>9,}{row.memory.total / 2**30:>9.2f}{row.memory.limit / 2**30:>9.2f} GiB"
            f"   plan {'fits' if row.fits else 'no':<5} compiler {'fits' if compiles else 'no':<5}"
            f"{'' if row.fits == compiles else 'DIFFER'}",
            flush=True,
        )
    return points


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the points, print them, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=_BEGIN, default=list(_BEGIN))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--compile", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.compile:
        family, batch_size, name = options.compile
        print(json.dumps(compile_directly(family, int(batch_size), name)))
        sys.stdout.flush()
        os._exit(0)  # libtpu's orderly exit can crash
    points = [point for name in TARGETS for family in options.models for point in sweep(family, name)]
    equal = sum(point["plan"] == point["compiler"] for point in points)
    unknown = sum(point["source"] == "accepted" for point in points)
    print(f"the verdict equals the compiler's: {equal} of {len(points)}; bytes not known: {unknown}")
    if options.out is not None:
        options.out.write_text(json.dumps({"points": points}, indent=1) + "\n")
    return 0 if equal == len(points) else 1


if __name__ == "__main__":
    sys.exit(main())
