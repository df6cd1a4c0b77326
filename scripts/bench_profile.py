"""Show where the time of one of accelnet's training steps goes on the CPU.

python scripts/bench_profile.py char_lstm [--steps 20] [--top 25]

Takes a case of scripts/bench.py, traces compiled steps with JAX's profiler, and prints milliseconds per step by kind of
operation and for the longest ones; `train --profile` shares it out by layer. What two threads do at a time counts
twice, so the sum is more than the step. Some products are shown from call to return, which is before they are done:
"waiting" has a part of the rest.
"""

import argparse
import re
import sys
import tempfile
from collections import Counter
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent)]

import jax
import numpy as np

from accelnet.training.profile import op_times
from accelnet.training.program import prepare
from bench_systems.accelnet_chunks import make_experiment
from bench_systems.cases import CASES

_WAITING = ("SlinkyThreadPool::Await",)


def trace(case: str, steps: int) -> tuple[Counter[str], Counter[str], str]:
    """Return nanoseconds and calls by the name of the operation, and the text of the compiled program."""
    feed, programs = prepare(make_experiment(CASES[case]))
    state, operand = programs.init(np.uint32(0)), feed.train_operand(0, 1)
    state, report = programs.train(state, operand, np.int32(3), np.bool_(True))
    jax.block_until_ready(report)
    text = programs.train.compiled.as_text()
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            state, report = programs.train(state, operand, np.int32(steps), np.bool_(True))
            jax.block_until_ready(report)
        times, calls = op_times(Path(folder), text, _WAITING)
    return times, calls, text


def operations(text: str) -> dict[str, tuple[str, str]]:
    """Return kind and shape of every operation of a program's text, by name."""
    found = {}
    for name, shape, opcode, rest in re.findall(r"%(\S+) = (\S+) ([\w-]+)\((.*)", text):
        kind = opcode
        traced_as = re.search(r'op_name="([^"]*)"', rest)
        is_reduction = traced_as is not None and "reduce" in traced_as[1].rsplit("/", 1)[-1]
        if opcode == "dot" or ("__ynn_fusion" in rest and not is_reduction):
            kind = "products"
        elif opcode == "fusion":
            kind = "elementwise and reductions"
        elif opcode in ("copy", "transpose", "concatenate"):
            kind = "copies"
        found[name] = kind, shape.split("{")[0]
    return found


def main() -> None:
    """Print the profile."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("case", choices=[case.name for case in CASES.values() if case.kind == "train"])
    parser.add_argument("--steps", type=int, default=20, help="steps to trace")
    parser.add_argument("--top", type=int, default=25, help="operations to list")
    options = parser.parse_args()
    times, calls, text = trace(options.case, options.steps)
    known = operations(text)
    known |= dict.fromkeys(_WAITING, ("waiting", ""))
    kinds: Counter[str] = Counter()
    for name, nanoseconds in times.items():
        if name in known and known[name][0] not in ("while", "call", "conditional"):
            kinds[known[name][0]] += nanoseconds
    scale = options.steps * 1e6
    print(f"{options.case}, ms per step by kind")
    for kind, nanoseconds in kinds.most_common():
        print(f"{nanoseconds / scale:9.3f}  {kind}")
    print("\nms per step, calls, operation")
    listed = [name for name, _ in times.most_common() if name in known and known[name][0] in kinds]
    for name in listed[: options.top]:
        kind, shape = known[name]
        print(f"{times[name] / scale:9.3f} {calls[name] / options.steps:7.1f}  {name}  {shape}  ({kind})")


if __name__ == "__main__":
    main()
