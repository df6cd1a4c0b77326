"""Runs of several processes: the numbers of one, preemption, loss, and mistakes."""

import json
import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest

import accelnet as an
from accelnet.cluster.local import free_port
from tests.training import toy_script

pytestmark = [pytest.mark.slow, pytest.mark.waits]

SCRIPT = Path(__file__).with_name("toy_script.py")
RTOL = 1e-5  # as in test_layouts.py


class Processes:
    """Some processes of one run, all told to keep to this machine; what each says goes to a file."""

    def __init__(self, forks, folder):
        self.forks, self.folder, self.all = forks, folder, []

    def start(self, num_processes, *args, devices=1, each=lambda rank: (), script=SCRIPT, **env):
        address = f"127.0.0.1:{free_port()}"
        env |= {"JAX_NUM_CPU_DEVICES": str(devices)}
        if num_processes > 1:
            env |= {"JAX_COORDINATOR_ADDRESS": address, "JAX_COORDINATOR_BIND_ADDRESS": address}
            env |= {"JAX_NUM_PROCESSES": str(num_processes)}
        self.all = []
        for rank in range(num_processes):
            own = env | ({"JAX_PROCESS_ID": str(rank)} if num_processes > 1 else {})
            output = self.folder / f"{rank}.txt"
            self.all.append(self.forks.start(script, "train", *args, *each(rank), output=output, **own))
        return self

    def end(self, timeout=300):
        """Return (exit codes, what each said), and no process stays."""
        deadline = time.monotonic() + timeout
        codes = [process.wait(max(1.0, deadline - time.monotonic())) for process in self.all]
        return codes, [process.said() for process in self.all]

    def wait_for(self, path, text, timeout=240):
        deadline = time.monotonic() + timeout
        while not (path.exists() and text in path.read_text()):
            assert time.monotonic() < deadline and any(p.poll() is None for p in self.all), [p.said() for p in self.all]
            time.sleep(0.05)

    def close(self):
        for process in self.all:
            process.kill()


@pytest.fixture
def processes(forks, tmp_path_factory):
    made = Processes(forks, tmp_path_factory.mktemp("said"))
    yield made
    made.close()


def rows_of(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def losses(workdir):
    return np.array([row["loss"] for row in rows_of(workdir) if row["split"] == "train"])


def run(processes, num_processes, workdir, *args, **options):
    codes, said = processes.start(num_processes, "--workdir", str(workdir), "--resume", *args, **options).end()
    assert codes == [0] * num_processes, said


def run_here(workdir, *args):
    """Run the command line in this process, which has 8 devices."""
    an.main(toy_script.experiment, ["train", "--workdir", str(workdir), "--resume", *args])


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The work directory of a run on one device."""
    workdir = tmp_path_factory.mktemp("alone")
    run_here(workdir)
    return workdir


@pytest.mark.parametrize(
    "args", [("--mesh", "data=2,fsdp=2", "--on-device", "False"), ("--strategy", "pmap")], ids=["jit", "pmap"]
)
def test_the_loss_curve_on_processes_of_two_devices_is_that_of_one(processes, alone, tmp_path, args):
    run(processes, 2, tmp_path, *args, devices=2)
    np.testing.assert_allclose(losses(tmp_path), losses(alone), rtol=RTOL)
    for ours, theirs in zip(rows_of(tmp_path), rows_of(alone), strict=True):
        # Validation and test: every example exactly once.
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=RTOL) and ours["split"] == theirs["split"]
        assert ours["accuracy"] == pytest.approx(theirs["accuracy"])
    assert json.loads((tmp_path / "result.json").read_text())["step"] == 50


def test_each_process_reads_only_the_rows_of_its_devices(processes, alone, tmp_path):
    run(processes, 2, tmp_path, "--reads", str(tmp_path / "reads"), "--steps", "50", devices=1)
    np.testing.assert_allclose(losses(tmp_path), losses(alone), rtol=RTOL)
    run(processes, 1, tmp_path / "one", "--reads", str(tmp_path / "reads"))
    read = {name: int((tmp_path / f"reads.{name}").read_text()) for name in ("0", "1", "alone")}
    # Batches of 12 rows, all evaluated, and what is read ahead; the fingerprint's and the first rows on each.
    assert read["0"] == pytest.approx(read["1"], rel=0.1)
    assert read["0"] + read["1"] <= 1.15 * read["alone"], read


def test_a_run_wanders_from_one_process_to_three_and_back(processes, alone, tmp_path):
    run_here(tmp_path, "--steps", "15", "--mesh", "fsdp=4,model=2")
    run(processes, 3, tmp_path, "--steps", "35", "--mesh", "fsdp=3")
    run_here(tmp_path, "--steps", "50")
    np.testing.assert_allclose(losses(tmp_path), losses(alone), rtol=RTOL)


@pytest.mark.parametrize(
    ("number", "moment", "codes", "others", "its_own"),
    [
        (signal.SIGTERM, "before", [4, 4, 4], "preempted: rank 1", "preempted: told to end (SIGTERM)"),
        (signal.SIGTERM, "after", [4, 4, 4], "preempted: rank 1", "preempted: told to end (SIGTERM)"),
        (signal.SIGINT, "before", [130, 130, 130], "error: rank 1", "interrupted: nothing was saved"),
        (signal.SIGKILL, "before", [5, -9, 5], "error: rank 1", ""),
        (signal.SIGKILL, "after", [5, -9, 5], "error: rank 1", ""),
    ],
)
def test_a_process_that_ends_where_devices_are_opened_is_named(
    processes, tmp_path, number, moment, codes, others, its_own
):
    """The others wait inside jax until it says which devices it has."""
    args, env = ("--hang-timeout", "5", "--workdir", str(tmp_path / "run")), {"NUMBER": str(int(number))}
    processes.start(3, *args, script=SCRIPT.with_name("gone_script.py"), MOMENT=moment, **env)
    ended, said = processes.end(90)
    assert ended == codes, said
    for rank, text in enumerate(said):
        assert text.startswith(its_own if rank == 1 else others) and len(text.splitlines()) <= 1, said


# More steps than any machine takes before the signal comes: none of these runs is to reach its end.
PAUSE = ("--pause", "0.02", "--steps", "20000", "--hang-timeout", "20")


def last_saved(workdir):
    return max(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdecimal())


def test_sigterm_to_any_process_saves_at_one_step_and_another_start_goes_on(processes, tmp_path):
    rng, workdir, saved = random.Random(0), tmp_path / "run", 0
    sigterm = signal.SIGTERM, 4, "preempted: told to end (SIGTERM)"
    interrupt = signal.SIGINT, 130, "interrupted: told to end (Ctrl-C)"
    for num_processes, told, end in ((2, 1, sigterm), (2, 0, interrupt), (1, 0, sigterm)):
        number, code, kind = end
        processes.start(num_processes, "--workdir", str(workdir), "--resume", *PAUSE)
        processes.wait_for(workdir / "metrics.jsonl", f'"step": {saved // 5 * 5 + 10},')
        time.sleep(rng.uniform(0, 0.5))
        processes.all[told].send_signal(number)
        codes, said = processes.end()
        assert codes == [code] * num_processes, said
        assert all(f"{kind} at step " in text and "go on with --resume" in text for text in said), said
        steps = {int(text.split(f"{kind} at step ")[1].split(":")[0]) for text in said}
        assert len(steps) == 1
        before, saved = saved, steps.pop()
        assert before < saved == last_saved(workdir)
    run_here(workdir, *PAUSE[:2], "--steps", str(saved + 5))
    run_here(tmp_path / "whole", *PAUSE[:2], "--steps", "50")
    np.testing.assert_allclose(losses(workdir)[:10], losses(tmp_path / "whole"), rtol=RTOL)


def test_a_lost_process_ends_the_others_and_the_run_goes_on_afterwards(processes, tmp_path):
    for num_processes, victim, how, step in ((2, 1, signal.SIGSTOP, 15), (3, 0, signal.SIGKILL, 30)):
        processes.start(num_processes, "--workdir", str(tmp_path), "--resume", *PAUSE)
        processes.wait_for(tmp_path / "metrics.jsonl", f'"step": {step},')
        processes.all[victim].send_signal(how)
        start = time.monotonic()
        others = set(range(num_processes)) - {victim}
        for rank in others:
            processes.all[rank].wait(50)
        assert time.monotonic() - start < 20 + 15
        processes.all[victim].kill()
        codes, said = processes.end()
        for rank in others:
            assert codes[rank] == 5, said
            assert f"rank {victim} on" in said[rank] and "Traceback" not in said[rank]
            stacks = tmp_path / "stacks" / f"rank-{rank}.txt"
            assert stacks.exists()
            stacks.unlink()
    steps = last_saved(tmp_path) + 10
    run_here(tmp_path, *PAUSE[:2], "--steps", str(steps))
    assert json.loads((tmp_path / "result.json").read_text())["step"] == steps


@pytest.mark.parametrize(
    ("args", "messages"),
    [
        (
            lambda rank: ("--batch-size", "12", "--mesh", "data=2") if rank else ("--batch-size", "24"),
            ("batch_size is 12 on rank 1", "mesh is data=2 on rank 1"),
        ),
        (lambda rank: ("--batch-size", "9"), ("batch_size 9 does not divide into 2 parts",)),
    ],
    ids=["different", "the same mistake"],
)
def test_processes_that_do_not_run_the_same_end_with_one_message(processes, tmp_path, args, messages):
    codes, said = processes.start(2, "--workdir", str(tmp_path), each=args).end()
    assert codes == [2, 2], said
    assert all(message in text and "Traceback" not in text for text in said for message in messages)


def test_a_work_directory_that_is_not_shared_is_refused(processes, tmp_path):
    codes, said = processes.start(2, each=lambda rank: ("--workdir", str(tmp_path / str(rank)))).end()
    assert codes == [2, 2], said
    assert "is not the same directory on all hosts" in said[0]


def test_a_directory_with_a_run_is_refused_by_all(processes, alone):
    codes, said = processes.start(2, "--workdir", str(alone)).end()
    assert codes == [2, 2] and all("already holds a run" in text for text in said)
