"""A cloud of processes on this machine that answers as gcloud does."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from tests.scripts import fake_gcloud

ROOT = Path(__file__).resolve().parents[2]
NASTY = [
    "a b",
    "it's",
    'say "hi"',
    "$HOME `id` $(id)",
    "*",
    "two\nlines",
    "back\\slash",
    "",
    "~",
    "!x;y&z|w",
    "ä",
    "-x",
]


RECORD = """
import json, os, pathlib, sys
print(json.dumps(sys.argv[1:]))
print(json.dumps(os.environ.get("GREETING")))
print(json.dumps(os.environ.get("ACCELNET_TOKEN")))
"""


# Trains as accelnet does, as far as launching sees it: all processes agree on the step at which SIGTERM ends the run.
COUNT = """
import os, pathlib, signal, sys, time
import jax, numpy as np
from jax.experimental import multihost_utils

workdir, num_steps = pathlib.Path(sys.argv[sys.argv.index("--workdir") + 1]), int(sys.argv[2])
jax.distributed.initialize(
    os.environ["JAX_COORDINATOR_ADDRESS"], int(os.environ["JAX_NUM_PROCESSES"]), int(os.environ["JAX_PROCESS_ID"])
)
wanted = []
signal.signal(signal.SIGTERM, lambda number, frame: wanted.append(number))
state = workdir / "step"
first = int(state.read_text()) if "--resume" in sys.argv and state.exists() else 0
print(f"process {jax.process_index()} of {jax.process_count()} starts at {first}")
for step in range(first, num_steps):
    seen = multihost_utils.process_allgather(np.array([step, len(wanted)]))
    assert (seen[:, 0] == step).all()
    if jax.process_index() == 0:
        state.with_suffix(".new").write_text(str(step + 1))
        state.with_suffix(".new").rename(state)
    if seen[:, 1].any():
        print("saved")
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        sys.exit(4)
    time.sleep(0.02)
print("done")
"""


class Cloud:
    """A project with a checkout of the scripts, and no TPU VM yet."""

    def __init__(self, folder):
        self.folder, self.checkout, self.workdir = folder / "cloud", folder / "checkout", folder / "workdir"
        for path in (self.folder, self.checkout / "experiments", self.workdir, folder / "bin"):
            path.mkdir(parents=True)
        shutil.copytree(ROOT / "scripts", self.checkout / "scripts", ignore=shutil.ignore_patterns("bench*", "__py*"))
        shutil.copyfile(ROOT / "pyproject.toml", self.checkout / "pyproject.toml")
        for name, text in (("record", RECORD), ("count", COUNT)):
            (self.checkout / "experiments" / f"{name}.py").write_text(text)
        self.git("init", "--quiet")
        self.git("add", ".")
        self.git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "--message", "all")
        self.bin, self.started = folder / "bin", []
        self.stub("gcloud", f'exec {sys.executable} {ROOT}/tests/scripts/fake_gcloud.py "$@"')
        self.env = os.environ | {
            "FAKE_CLOUD": str(self.folder),
            "FAKE_PATH": f"{self.bin}:/usr/local/bin:/usr/bin:/bin",
            "PATH": f"{self.bin}:{os.environ['PATH']}",
        }

    def stub(self, name, text):
        (self.bin / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (self.bin / name).chmod(0o755)

    def git(self, *args):
        command = ["git", *args]
        subprocess.run(command, cwd=self.checkout, check=True, capture_output=True)

    def command(self, *args):
        return ["bash", str(self.checkout / "scripts" / "tpu_vm.sh"), *args]

    def __call__(self, *args, code=0):
        done = subprocess.run(
            self.command(*args),
            env=self.env,
            capture_output=True,
            text=True,
            timeout=120,
            cwd="/",
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
        return done

    def start(self, command, **settings):
        self.started.append(subprocess.Popen(command, env=self.env, start_new_session=True, **settings))
        return self.started[-1]

    def ready(self, name="t", *flags):
        """Make a TPU VM of two workers and set it up with this test's own interpreter."""
        self("create", name, "--type", "v5litepod-16", "--poll", "0", *flags)
        self("setup", name, "--venv", sys.prefix)

    def calls(self):
        path = self.folder / "calls.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def called(self, *words):
        return [call for call in self.calls() if call[2 : 2 + len(words)] == list(words)]

    def things(self, kind):
        return json.loads((self.folder / "things.json").read_text())[kind]

    def run_files(self, node="t", worker=0):
        return fake_gcloud.home(node, worker) / "accelnet-run"

    def step(self):
        path = self.workdir / "step"
        return int(path.read_text()) if path.exists() else 0


def states(told):
    """Return what workers print as their status, in any order, without where they are."""
    return sorted(line.split(" on ")[0] for line in told.stdout.splitlines() if " on " in line)


def eventually(condition, seconds=40):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)
