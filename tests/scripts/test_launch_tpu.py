"""scripts/tpu_vm.sh played through: a stand-in for gcloud, workers that are local processes, real clusters of jax."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.scripts import fake_gcloud
from tests.scripts.cloud import NASTY, eventually, states

pytestmark = [pytest.mark.slow, pytest.mark.waits]


def test_a_run_on_two_workers_from_nothing_to_nothing(cloud):
    cloud("create", "t", "--type", "v5litepod-16", "--zone", "z", "--project", "p", "--poll", "0")
    (call,) = cloud.called("tpu-vm", "create")
    assert " ".join(call[4:]) == (
        "t --version=v2-alpha-tpuv5-lite --accelerator-type=v5litepod-16 --quiet --zone=z --project=p"
    )
    cloud("setup", "t", "--venv", sys.prefix)
    told = cloud("status", "t")
    assert told.stdout.startswith("t: ready\n") and states(told) == ["idle", "idle"]

    cloud("run", "t", "experiments/count.py", "train", "100000", "--workdir", str(cloud.workdir))
    eventually(lambda: cloud.step() > 3)
    running = states(cloud("status", "t"))
    assert [state.split()[0] for state in running] == ["running", "running"]
    again = cloud("run", "t", "experiments/count.py", "train", "1", code=2)
    assert "A run goes on on" in again.stderr and states(cloud("status", "t")) == running

    follower = cloud.start(cloud.command("logs", "t", "--worker", "all"), stdout=subprocess.PIPE)
    assert states(cloud("stop", "t")) == ["exited 4", "exited 4"]
    said = follower.communicate(timeout=30)[0].decode()
    where = f"[{socket.gethostname()}] "
    lines = [line.removeprefix(where) for line in said.splitlines() if line.startswith(where)]
    assert {"process 0 of 2 starts at 0", "process 1 of 2 starts at 0"} < set(lines)
    assert lines.count("saved") == 2

    saved = cloud.step()
    cloud("run", "t", "experiments/count.py", "train", str(saved + 5), "--workdir", str(cloud.workdir), "--resume")
    eventually(lambda: states(cloud("status", "t")) == ["exited 0", "exited 0"])
    assert f"process 0 of 2 starts at {saved}" in cloud("logs", "t").stdout
    cloud("delete", "t")
    assert cloud.things("tpu-vm") == {} and not list(cloud.folder.glob("homes/*"))
    assert cloud("status", "t").stdout == "t: gone\n"


def test_arguments_and_variables_arrive_unchanged_on_every_worker(cloud):
    cloud.ready()
    greeting = "it's $HOME *\nand more"
    tokens = set()
    for _ in range(2):
        cloud("run", "t", "--env", f"GREETING={greeting}", "experiments/record.py", *NASTY)
        of_workers = set()
        for worker in range(2):
            eventually((cloud.run_files(worker=worker) / "exit").exists)
            lines = (cloud.run_files(worker=worker) / "log").read_text().splitlines()
            args, told, token = (json.loads(line) for line in lines)
            assert (args, told) == (NASTY, greeting)
            of_workers.add(token)
            assert not (fake_gcloud.home("t", worker) / "accelnet-token").exists()
        tokens |= of_workers
        assert len(of_workers) == 1
    # Another secret for each start, which is in nobody's arguments.
    assert len(tokens) == 2 and all(re.fullmatch("[0-9a-f]{32}", token) for token in tokens)
    assert not any(token in (cloud.folder / "calls.jsonl").read_text() for token in tokens)


def test_the_code_is_what_git_tracks_with_its_changes_and_what_was_there_goes(cloud):
    cloud.ready()
    home = fake_gcloud.home("t", 1) / "accelnet"
    (home / "runs").mkdir()
    (home / "stale.py").touch()
    (cloud.checkout / "experiments" / "record.py").write_text("print('changed')")
    (cloud.checkout / "experiments" / "new.py").touch()
    (cloud.checkout / "pyproject.toml").unlink()
    said = cloud("setup", "t", "--venv", sys.prefix).stderr
    assert "does not track it (git add): experiments/new.py" in said
    assert (home / "experiments" / "record.py").read_text() == "print('changed')"
    assert sorted(path.name for path in home.iterdir()) == ["experiments", "runs", "scripts"]
    assert not (home / "experiments" / "new.py").exists()


def test_the_code_can_come_from_git_and_a_bucket_is_mounted_once(cloud):
    cloud.stub("gcsfuse", 'echo "$@" >> "$HOME/mounted"')
    cloud.stub("mountpoint", '[ "$1" = --quiet ] && [ -s "$HOME/mounted" ]')
    cloud("create", "t", "--type", "v5litepod-16", "--poll", "0")
    for _ in range(2):
        cloud("setup", "t", "--venv", sys.prefix, "--git", str(cloud.checkout), "--bucket", "gs://results")
    assert cloud.called("tpu-vm", "scp") == []
    for worker in range(2):
        home = fake_gcloud.home("t", worker)
        assert (home / "accelnet" / "experiments" / "count.py").exists() and (home / "accelnet" / "runs").is_dir()
        (mounted,) = (home / "mounted").read_text().splitlines()
        assert mounted.endswith(f" results {home}/accelnet/runs")


def test_a_worker_without_the_packages_is_named(cloud, tmp_path):
    cloud("create", "t", "--type", "v5litepod-16", "--poll", "0")
    said = cloud("setup", "t", "--venv", str(tmp_path / "nothing"), code=2).stderr
    assert f"{tmp_path / 'nothing'} on " in said and "is no environment with flax, jax and optax" in said
    assert "is not set up" in cloud("run", "t", "experiments/record.py", code=2).stderr


def test_what_ignores_sigterm_is_killed_after_the_grace_period(cloud):
    deaf = (
        "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('deaf', flush=True)\ntime.sleep(99)"
    )
    (cloud.checkout / "experiments" / "record.py").write_text(deaf)
    cloud.ready()
    cloud("run", "t", "experiments/record.py")
    eventually(lambda: all("deaf" in (cloud.run_files(worker=worker) / "log").read_text() for worker in range(2)))
    stopped = cloud("stop", "t", "--grace", "1")
    assert states(stopped) == ["exited 137", "exited 137"] and "SIGKILL" in stopped.stderr


def test_a_run_that_a_restart_of_the_machine_ended_is_lost(cloud):
    cloud.ready()
    cloud("run", "t", "experiments/count.py", "train", "100000", "--workdir", str(cloud.workdir))
    fake_gcloud.end_processes("t", 2)
    eventually(lambda: states(cloud("status", "t")) == ["lost", "lost"])


def up(cloud, *options, steps, verb="train"):
    args = ("experiments/count.py", verb, str(steps), "--workdir", str(cloud.workdir), "--resume")
    return cloud.command("up", "t", "--poll", "1", "--venv", sys.prefix, *options, *args)


def test_up_makes_a_preempted_spot_machine_again_and_the_run_goes_on(cloud, tmp_path):
    with (tmp_path / "out").open("w") as out:
        running = cloud.start(up(cloud, "--type", "v5litepod-16", "--spot", steps=120), stdout=out, stderr=out)
        eventually(lambda: cloud.step() > 20)
        fake_gcloud.take_away("t")
        before = cloud.step()
        code = running.wait(timeout=120)
    said = (tmp_path / "out").read_text()
    assert code == 0, said
    assert len(cloud.called("queued-resources", "create", "t", "--node-id=t")) == 2
    assert all("--spot" in call for call in cloud.called("queued-resources", "create"))
    assert len(cloud.called("queued-resources", "delete", "t", "--force")) == 1
    assert "t: waiting WAITING_FOR_RESOURCES" in said and "t was taken away" in said
    assert f"process 1 of 2 starts at {before}" in (cloud.run_files(worker=1) / "log").read_text()
    assert "process 0 of 2 starts at 0" in said and f"process 0 of 2 starts at {before}" in said and "done" in said
    assert cloud.step() == 120


def test_up_starts_a_run_again_that_was_told_to_save(cloud, tmp_path):
    with (tmp_path / "out").open("w") as out:
        running = cloud.start(up(cloud, "--type", "v6e-16", steps=80), stdout=out, stderr=out)
        eventually(lambda: cloud.step() > 10)
        os.kill(int((cloud.run_files(worker=1) / "pid").read_text()), signal.SIGTERM)
        code = running.wait(timeout=120)
    assert code == 0, (tmp_path / "out").read_text()
    assert "exit code 4: starting it again" in (tmp_path / "out").read_text()
    assert len(cloud.called("tpu-vm", "create")) == 1 and cloud.step() == 80


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupting_up_leaves_the_run_and_nothing_here(cloud, number):
    running = cloud.start(
        up(cloud, "--type", "v6e-16", steps=100000),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        # Whoever runs the tests in the background has interrupts ignored, which processes inherit.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    eventually(lambda: cloud.step() > 3 and processes(cloud, "tail"))
    os.killpg(running.pid, number)  # as a terminal does
    assert running.wait(timeout=30) == 128 + number
    eventually(lambda: not processes(cloud, "tail") and not processes(cloud, "fake_gcloud"))
    assert [state.split()[0] for state in states(cloud("status", "t"))] == ["running", "running"]


def processes(cloud, word):
    """Return the processes of this cloud with a word in their command."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if word in (path / "cmdline").read_text() and str(cloud.folder) in (path / "environ").read_text():
                found.append(path.name)
    return found


def test_up_gives_the_exit_code_of_a_mistake_and_does_not_try_again(cloud):
    (cloud.checkout / "experiments" / "count.py").write_text("raise SystemExit(2)")
    done = subprocess.run(
        up(cloud, "--type", "v6e-16", steps=1), env=cloud.env, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2, done.stderr
    assert len([call for call in cloud.called("tpu-vm", "ssh") if " start " in call[-2]]) == 1


def test_several_slices_are_one_queued_resource_and_one_run(cloud):
    cloud("create", "t", "--type", "v5litepod-8", "--slices", "2", "--poll", "0")
    (call,) = cloud.called("queued-resources", "create")
    assert " ".join(call[4:]) == (
        "t --node-count=2 --runtime-version=v2-alpha-tpuv5-lite --accelerator-type=v5litepod-8 --quiet"
    )
    # From here on gcloud is asked which nodes there are.
    cloud("setup", "t", "--venv", sys.prefix)
    cloud("run", "t", "experiments/count.py", "train", "3", "--workdir", str(cloud.workdir))
    eventually(lambda: states(cloud("status", "t")) == ["exited 0", "exited 0"])
    assert "process 1 of 2 starts at 0" in (cloud.run_files("t-1") / "log").read_text()
    assert "process 0 of 2" in cloud("logs", "t").stdout
    cloud("delete", "t")
    assert cloud.things("tpu-vm") == cloud.things("queued-resources") == {}


@pytest.mark.parametrize("kind", [(), ("--spot",), ("--slices", "2")])
def test_a_dry_run_prints_what_would_be_done_and_does_nothing(cloud, kind):
    args = ("--type", "v5litepod-8", "--env", "A=it's", *kind, "experiments/record.py", *NASTY, "--resume")
    printed = cloud("up", "t", "--dry-run", "--venv", sys.prefix, *args).stdout
    assert cloud.calls() == [] and not list(cloud.folder.iterdir())
    # Pasted, after the machine is ready, it does the same.
    cloud("create", "t", "--type", "v5litepod-8", "--poll", "0", *kind)
    first, rest = printed.split("\n", 1)
    command = ["bash", "-ec", rest]
    pasted = subprocess.run(command, env=cloud.env, capture_output=True, text=True, timeout=60, cwd="/")
    assert pasted.returncode == 0, pasted.stderr
    assert first == "gcloud " + " ".join(cloud.calls()[0])
    assert json.loads(pasted.stdout.splitlines()[-3]) == [*NASTY, "--resume"]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ((), "the verb is '', expected create, setup"),
        (("make", "t"), "the verb is 'make'"),
        (("create",), "create needs the TPU VM's name"),
        (("create", "--spot"), "create needs the TPU VM's name"),
        (("create", "t"), "create needs --type"),
        (("create", "t", "--type", "v1-8"), "no software version is known for --type v1-8"),
        (("create", "t", "--type", "tpu7x-8"), "--type is tpu7x-8, which the Cloud TPU API does not have"),
        (("create", "t", "--type", "tpu7x-standard-4t", "--version", "x"), "made by GKE or Compute Engine"),
        (("create", "t", "--type", "v7x-8"), "made by GKE or Compute Engine. Take GKE with scripts/jobset.yaml"),
        (("create", "t", "--type", "v8t-16"), "made by GKE or Compute Engine"),
        (("up", "t", "--type", "tpu7x-16", "--dry-run", "x.py", "--resume"), "made by GKE or Compute Engine"),
        (("create", "t", "--slices", "two"), "--slices is 'two', expected a whole number"),
        (("create", "t", "--type"), "--type needs a value"),
        (("setup", "t", "--typ", "x"), "--typ is no option"),
        (("run", "t"), "run needs a script"),
        (("run", "t", "--env", "1A=b", "x.py"), "--env is '1A=b', expected NAME=VALUE"),
        (("logs", "t", "x.py"), "logs takes no 'x.py'"),
        (("up", "t", "--type", "v6e-8", "x.py", "train"), "it needs --resume"),
    ],
)
def test_a_mistake_is_one_message_with_exit_code_two(cloud, args, words):
    done = cloud(*args, code=2)
    assert done.stdout == "" and done.stderr.startswith("error: ") and len(done.stderr.splitlines()) == 1
    assert words in done.stderr and cloud.calls() == []


def test_help_shows_every_verb_and_option(cloud):
    said = cloud("--help").stdout
    for word in ("create", "setup", "run", "logs", "status", "stop", "delete", "up", "--dry-run", "--create-flag"):
        assert word in said
    assert "set -e" not in said
