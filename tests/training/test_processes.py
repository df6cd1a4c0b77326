"""Runs of several processes: the numbers of one, preemption, loss, and mistakes."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from scripts.launch_local import free_port

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
SCRIPT = str(ROOT / "tests" / "training" / "toy_script.py")
RTOL = 1e-5  # as in test_layouts.py


class Processes:
    """Some processes of one run; none is left behind."""

    def __init__(self, num_processes, *args, devices=1, each=lambda rank: ()):
        port = free_port()
        environment = os.environ | {
            "PYTHONPATH": str(ROOT),
            "JAX_NUM_CPU_DEVICES": str(devices),
            "JAX_COORDINATOR_BIND_ADDRESS": f"127.0.0.1:{port}",
        }
        if num_processes > 1:
            environment |= {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": str(num_processes)}
        self.all = [
            subprocess.Popen(
                [sys.executable, SCRIPT, "train", *args, *each(rank)],
                env=environment | ({"JAX_PROCESS_ID": str(rank)} if num_processes > 1 else {}),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(num_processes)
        ]

    def end(self, timeout=120):
        """Return (exit codes, what each said on stderr), and no process stays."""
        deadline = time.monotonic() + timeout
        try:
            said = [p.communicate(timeout=max(1.0, deadline - time.monotonic()))[1] for p in self.all]
        finally:
            for process in self.all:
                process.kill()
        return [process.returncode for process in self.all], said

    def wait_for(self, path, text, timeout=90):
        deadline = time.monotonic() + timeout
        while not (path.exists() and text in path.read_text()):
            assert time.monotonic() < deadline and any(p.poll() is None for p in self.all), [p.poll() for p in self.all]
            time.sleep(0.05)


def run(num_processes, workdir, *args, **options):
    codes, said = Processes(num_processes, "--workdir", str(workdir), "--resume", *args, **options).end()
    assert codes == [0] * num_processes, said
    return losses(workdir)


def losses(workdir):
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return np.array([row["loss"] for row in rows if row["split"] == "train"]), rows


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return run(1, tmp_path_factory.mktemp("alone"))


@pytest.mark.parametrize(
    ("num_processes", "devices", "args"),
    [
        (2, 1, ("--on-device", "False")),
        (2, 2, ("--mesh", "data=2,fsdp=2")),
        (4, 1, ("--strategy", "pmap")),
    ],
)
def test_the_loss_curve_on_processes_is_that_of_one(alone, tmp_path, num_processes, devices, args):
    curve, rows = run(num_processes, tmp_path, *args, devices=devices)
    np.testing.assert_allclose(curve, alone[0], rtol=RTOL)
    for ours, theirs in zip(rows, alone[1], strict=True):  # validation and test: every example exactly once
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=RTOL) and ours["split"] == theirs["split"]
        assert ours["accuracy"] == pytest.approx(theirs["accuracy"])
    assert json.loads((tmp_path / "result.json").read_text())["step"] == 50


def test_a_run_wanders_from_one_process_of_four_devices_to_three_processes(alone, tmp_path):
    run(1, tmp_path, "--steps", "15", "--mesh", "fsdp=4", devices=4)
    run(3, tmp_path, "--steps", "35")
    curve, _ = run(2, tmp_path, "--steps", "50", "--mesh", "fsdp=2")
    np.testing.assert_allclose(curve, alone[0], rtol=RTOL)


PAUSE = ("--pause", "0.02", "--steps", "200", "--hang-timeout", "20")


@pytest.mark.parametrize("seed", [0, 1])
def test_sigterm_to_any_process_saves_at_one_step_and_a_second_start_goes_on(tmp_path, seed):
    rng = random.Random(seed)
    processes = Processes(2, "--workdir", str(tmp_path), *PAUSE)
    processes.wait_for(tmp_path / "metrics.jsonl", '"step": 10,')
    time.sleep(rng.uniform(0, 1))
    processes.all[rng.randrange(2)].send_signal(signal.SIGTERM)
    codes, said = processes.end()
    assert codes == [4, 4], said
    steps = {text.split("at step ")[1].split(":")[0] for text in said}
    assert len(steps) == 1 and all("go on with --resume" in text for text in said)
    saved = max(int(path.name) for path in (tmp_path / "checkpoints").iterdir() if path.name.isdecimal())
    assert saved == int(steps.pop()) < 200
    run(2, tmp_path, "--steps", str(saved + 5))


def test_one_process_that_is_told_to_end_saves_too(tmp_path):
    process = Processes(1, "--workdir", str(tmp_path), *PAUSE)
    process.wait_for(tmp_path / "metrics.jsonl", '"step": 10,')
    process.all[0].send_signal(signal.SIGTERM)
    codes, said = process.end()
    assert codes == [4] and "preempted: told to end (SIGTERM) at step" in said[0]


@pytest.mark.parametrize(("victim", "how"), [(0, signal.SIGKILL), (1, signal.SIGSTOP)])
def test_a_lost_process_ends_the_others_and_the_run_goes_on_afterwards(tmp_path, victim, how):
    processes = Processes(3, "--workdir", str(tmp_path), *PAUSE[:4], "--hang-timeout", "10")
    processes.wait_for(tmp_path / "metrics.jsonl", '"step": 15,')
    processes.all[victim].send_signal(how)
    start = time.monotonic()
    others = [process for rank, process in enumerate(processes.all) if rank != victim]
    for process in others:
        process.wait(timeout=40)
    assert time.monotonic() - start < 25
    processes.all[victim].kill()
    codes, said = processes.end()
    for rank in range(3):
        if rank != victim:
            assert codes[rank] == 5, said
            assert f"rank {victim} on" in said[rank] and "Traceback" not in said[rank]
            assert (tmp_path / "stacks" / f"rank-{rank}.txt").exists()
    if how == signal.SIGSTOP:
        run(3, tmp_path, "--steps", "30")


@pytest.mark.parametrize(
    ("each", "message"),
    [
        (lambda rank: ("--batch-size", "12" if rank else "24"), "batch_size is 12 on rank 1"),
        (lambda rank: ("--mesh", "data=2" if rank else "fsdp=2"), "mesh is data=2 on rank 1"),
        (lambda rank: ("--batch-size", "9"), "batch_size 9 does not divide into 2 parts"),
    ],
)
def test_processes_that_do_not_run_the_same_end_with_one_message(tmp_path, each, message):
    codes, said = Processes(2, "--workdir", str(tmp_path), each=each).end()
    assert codes == [2, 2], said
    assert all(message in text and "Traceback" not in text for text in said)


def test_a_work_directory_that_is_not_shared_is_refused(tmp_path):
    processes = Processes(2, each=lambda rank: ("--workdir", str(tmp_path / str(rank))))
    codes, said = processes.end()
    assert codes == [2, 2], said
    assert "is not the same directory on all hosts" in said[0]


def test_a_directory_with_a_run_is_refused_by_all(tmp_path):
    run(1, tmp_path, "--steps", "3")
    codes, said = Processes(2, "--workdir", str(tmp_path)).end()
    assert codes == [2, 2] and all("already holds a run" in text for text in said)
