"""Hurt real runs at random, let them go on, and compare each with a run that nothing happened to.

python scripts/faultstorm.py                                     2,000 faults: 4 s each on two cores, after 5 minutes
python scripts/faultstorm.py --seconds 1800                      some of them; the next such command goes on there
python scripts/faultstorm.py --seconds 60 --runs mlp,cnn         as many as a minute takes
python scripts/faultstorm.py --kinds kill,full-disk --faults 50  some kinds of faults
python scripts/faultstorm.py --flips 20 --runs mlp               20 flipped bits in each file of a checkpoint
python scripts/faultstorm.py --seed 3 --only 17                  one fault again, with what each start said

A run is killed, stopped, told to end, interrupted, or its disk is full, read-only or slow, its clock jumps, its memory
ends, its network is lost, at a random instant or at the n-th operation on some file; or one file of its work directory
is damaged, deleted or replaced between two starts. Then the same command with --resume is given until the run is done.
Its metrics, rows, TensorBoard's scalars and every array of every checkpoint must be those of the run that nothing
happened to, bit for bit, and each process must end with the promised code and one message that names the cause. Results
go to benchmarks/faults.json, but with --only; what is there already does not happen again, unless --again is given. The
exit code is 1 if a fault, or a control that must fail, shows something wrong.
`kill -USR1` holds new faults back until it is sent again, for who needs the machine; `kill` starts no more and writes
what there is.
"""

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ["JAX_PLATFORMS"] = "cpu"

from accelnet.disk import write_atomically
from accelnet.errors import UserError
from accelnet.json_file import plain_value
from scripts.faultstorm.controls import controls as controls_of
from scripts.faultstorm.controls import files_control
from scripts.faultstorm.faults import ALL, OF_PROCESSES, PLACES, RUN_OF_MEMORY, RUN_OF_PLACES, Fault, draw, flips
from scripts.faultstorm.kinds import PROCESSES
from scripts.faultstorm.processes import Server
from scripts.faultstorm.report import Row, is_wrong, reference_of, row_of, summary, table, written, wrong_of
from scripts.faultstorm.storm import Grounds, endure


def main(args: Sequence[str] | None = None) -> int:
    """Run a storm and return the exit code."""
    try:
        options = parse(args)
        record = begun(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    folder = Path(tempfile.mkdtemp(prefix="faultstorm-"))
    try:
        with Server(folder) as server:
            _storm(options, record, server, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(table(record))
    every = record["all"]
    if every["tried"]:
        print(f"goodput: {100 * every['goodput_steps']:.1f} % of steps, {100 * every['goodput_seconds']:.1f} % of time")
    missed = [name for name, noticed in record["controls"].items() if not noticed]
    print(
        f"controls: {len(record['controls']) - len(missed)} of {len(record['controls'])} noticed", *missed, sep="\n  "
    )
    return int(bool(missed or record["wrong"]))


def begun(options: argparse.Namespace) -> Row:
    """Return the record of the same storm, if there is one, or else an empty one.

    Raises:
        UserError: if the file holds another storm, which may have taken hours, and neither --again nor --only is given.
    """
    settings = {name: getattr(options, name) for name in ("seed", "runs", "kinds", "flips")}
    if options.output.exists() and not options.again and options.only is None:
        found = json.loads(options.output.read_text())
        if found.get("settings") != settings:
            raise UserError(f"{options.output} holds a storm of other settings: give another --output, or --again")
        return found
    return {"settings": settings, "seconds": 0.0, "references": {}, "faults": {}}


def _storm(options: argparse.Namespace, record: Row, server: Server, folder: Path) -> None:
    """Let all faults happen that the record does not have yet, and keep them there."""
    going, ended = _obey_signals()
    begun, grounds = time.monotonic(), Grounds(server, folder / "grounds")
    (folder / "grounds").mkdir()
    left = [index for index in range(options.faults) if str(index) not in record["faults"]]
    left = left if options.only is None else [options.only]
    if len(left) > len(options.runs):  # which will need all references
        several_first = sorted(options.runs, key=lambda run: -PROCESSES[run])
        with ThreadPoolExecutor(options.workers) as pool:
            list(pool.map(grounds.__getitem__, several_first))
    if options.flips:
        run = options.runs[0]
        faults = flips(options.seed, run, grounds[run].middle, options.flips)
    else:
        faults = [
            draw(options.seed, index, options.runs, options.kinds, lambda run, midway: grounds[run].courses[midway])
            for index in left
        ]
    for run in dict.fromkeys(fault.run for fault in faults):
        record["references"][run] = reference_of(grounds[run])
    keeping, started, before = threading.Lock(), time.monotonic(), record["seconds"]

    def keep() -> None:
        record["seconds"] = round(before + time.monotonic() - begun, 1)
        record["faults"] = {number: record["faults"][number] for number in sorted(record["faults"], key=int)}
        record["wrong"] = [row["wrong"] for row in record["faults"].values() if "wrong" in row]
        record.update(summary(record["faults"], record["references"]))
        if options.only is None:
            write_atomically(options.output, written(plain_value(record)))

    def one(fault: Fault) -> None:
        while not going.wait(1):
            pass
        if ended.is_set() or (options.seconds is not None and time.monotonic() - started > options.seconds):
            return
        workdir = folder / f"fault-{fault.index}"
        verdict = endure(grounds[fault.run], fault, workdir)
        shutil.rmtree(workdir, ignore_errors=True)
        with keeping:
            record["faults"][str(fault.index)] = row_of(verdict)
            if is_wrong(verdict) or options.only is not None:
                print(json.dumps(wrong_of(verdict), indent=1), flush=True)
            if len(record["faults"]) % 25 == 0:
                print(f"{time.monotonic() - begun:5.0f} s  {len(record['faults'])} faults", flush=True)
                keep()

    # Two runs of three processes on two cores would stand still for longer than they wait for each other.
    with ThreadPoolExecutor(options.workers) as pool, ThreadPoolExecutor(1) as pool_of_several:
        for future in [(pool if PROCESSES[fault.run] == 1 else pool_of_several).submit(one, fault) for fault in faults]:
            future.result()
    if "controls" not in record or faults:
        ground = grounds[faults[0].run if faults else options.runs[0]]
        record["controls"] = controls_of(ground) | {
            "result.json on the disk": files_control(ground, folder / "control")
        }
    keep()


def _obey_signals() -> tuple[threading.Event, threading.Event]:
    """Return whether faults may start, and whether the storm ends, as SIGUSR1 and SIGTERM say."""
    going, ended = threading.Event(), threading.Event()
    going.set()

    def hold(*_: Any) -> None:
        going.clear() if going.is_set() else going.set()
        print("faults start again" if going.is_set() else "no fault starts until the next SIGUSR1", flush=True)

    def end(*_: Any) -> None:
        ended.set()
        going.set()

    signal.signal(signal.SIGUSR1, hold)
    signal.signal(signal.SIGTERM, end)
    return going, ended


def parse(args: Sequence[str] | None) -> argparse.Namespace:
    """Return the options; those of faults that cannot be here are left out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=2000, help="number of faults (2000)")
    parser.add_argument("--seconds", type=float, help="start no fault after so many seconds, references not counted")
    parser.add_argument("--seed", type=int, default=0, help="seed of all that is random (0)")
    parser.add_argument(
        "--only", type=int, help="number of the one fault to run, with the same --seed, --runs and --kinds"
    )
    parser.add_argument("--flips", type=int, help="instead, flip so many bits in each file of a checkpoint")
    parser.add_argument("--kinds", type=_some_of(ALL), default=list(ALL), help=f"kinds of faults: {_listed(ALL)}")
    parser.add_argument("--runs", type=_some_of(PROCESSES), default=list(PROCESSES), help=f"{_listed(PROCESSES)}")
    parser.add_argument("--again", action="store_true", help="begin anew where the results have some of these faults")
    parser.add_argument(
        "--workers",
        type=int,
        default=min(2, os.cpu_count() or 1),
        help="runs of one process at the same time (2)",
    )
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "faults.json", help="where results go")
    options = parser.parse_args(args)
    if os.getuid():
        print("not root: no process can be another user's, two kinds of faults are left out")
        options.kinds = [kind for kind in options.kinds if kind not in PLACES[1:]]
    alone = [run for run in options.runs if PROCESSES[run] == 1]
    if not alone:
        options.kinds = [kind for kind in options.kinds if kind in OF_PROCESSES]
    if len(alone) == len(options.runs):
        options.kinds = [kind for kind in options.kinds if kind != "network"]
    if RUN_OF_MEMORY not in options.runs:
        options.kinds = [kind for kind in options.kinds if kind != "memory"]
    if RUN_OF_PLACES not in options.runs:
        options.kinds = [kind for kind in options.kinds if kind not in PLACES]
    if not options.kinds:
        raise UserError("no kind of fault is left: these runs can have none of them")
    return options


def _listed(names: Any) -> str:
    return ", ".join(name.replace(" ", "-") for name in names)


def _some_of(names: Any) -> Any:
    def parse(text: str) -> list[str]:
        known = {name.replace(" ", "-"): name for name in names}
        asked = text.replace(" ", "-").split(",")
        if unknown := [name for name in asked if name not in known]:
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)} is unknown, expected some of {', '.join(known)}")
        return [known[name] for name in asked]

    return parse


if __name__ == "__main__":
    sys.exit(main())
