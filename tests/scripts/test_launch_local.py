"""The launcher of several local processes: what they get, what comes out, and that nothing is left."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.waits]

LAUNCH = [sys.executable, "-m", "accelnet", "launch"]
# With less time between the two signals than people have.
QUICK = """
from accelnet.cluster import local
from accelnet.cli.tool import tool
local._KILL_SECONDS = 0.5
tool()
"""

RECORD = """
import json, os, pathlib, sys
rank = os.environ["JAX_PROCESS_ID"]
pathlib.Path(sys.argv[1], rank + ".json").write_text(json.dumps({"args": sys.argv[2:], "env": dict(os.environ)}))
"""
# Leaves its process id, and that of a process that it started, and waits.
WAIT = """
import os, pathlib, signal, subprocess, sys, time

there = pathlib.Path(sys.argv[1])
other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
def end(number, frame):
    (there / ("signal-" + os.environ["JAX_PROCESS_ID"])).write_text(str(number))
    sys.exit(int(sys.argv[2]))
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, end if sys.argv[2] != "never" else signal.SIG_IGN)
(there / os.environ["JAX_PROCESS_ID"]).write_text(f"{os.getpid()} {other.pid}")
time.sleep(600)
"""
FAIL_FIRST = """
import os, sys, time
rank = int(os.environ["JAX_PROCESS_ID"])
time.sleep(0.3 * (3 - rank))
sys.exit([0, 7, 5, 3][rank])
"""
GATHER = """
import os
import jax
jax.distributed.initialize(
    os.environ["JAX_COORDINATOR_ADDRESS"], int(os.environ["JAX_NUM_PROCESSES"]), int(os.environ["JAX_PROCESS_ID"])
)
from jax.experimental import multihost_utils
import numpy as np
seen = multihost_utils.process_allgather(np.array([jax.process_index() + 10]))
print("seen", seen.ravel().tolist(), jax.local_device_count(), jax.device_count())
"""


def script(folder, text, name="script.py"):
    path = folder / name
    path.write_text(text)
    return str(path)


def launch(*args, **settings):
    return subprocess.run([*LAUNCH, *args], capture_output=True, text=True, timeout=120, **settings)


def start(*args):
    return subprocess.Popen([*LAUNCH, *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def eventually(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
    return found


def is_alive(pid):
    try:
        # A process that ended in a container whose first process collects nothing stays there as a zombie.
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def started(folder, count):
    """Wait for `count` processes of WAIT; return the ids of theirs and of those that they started."""
    files = [folder / str(rank) for rank in range(count)]
    eventually(lambda: all(path.exists() and path.read_text().count(" ") for path in files))
    return [int(pid) for path in files for pid in path.read_text().split()]


def test_every_process_gets_its_rank_the_coordinator_and_the_script_s_own_arguments(tmp_path):
    args = ["train", "-n", "7", "--grace", "x", "--help", "--", "a b", "$HOME", "*", "two\nlines", "'\"", ""]
    done = launch("-n", "3", "--devices-per-process", "2", script(tmp_path, RECORD), str(tmp_path), *args, cwd="/")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(3)]
    assert [each["args"] for each in found] == [args] * 3
    env = [each["env"] for each in found]
    assert [each["JAX_PROCESS_ID"] for each in env] == ["0", "1", "2"]
    assert {each["JAX_NUM_PROCESSES"] for each in env} == {"3"}
    assert {each["JAX_NUM_CPU_DEVICES"] for each in env} == {"2"}
    (address,) = {each["JAX_COORDINATOR_ADDRESS"] for each in env} | {
        each["JAX_COORDINATOR_BIND_ADDRESS"] for each in env
    }
    assert re.fullmatch(r"127\.0\.0\.1:\d{4,5}", address)
    (token,) = {each["ACCELNET_TOKEN"] for each in env}
    assert re.fullmatch(r"[0-9a-f]{32}", token)


def test_the_processes_are_one_cluster(tmp_path):
    done = launch("-n", "2", "--devices-per-process", "2", script(tmp_path, GATHER))
    assert done.returncode == 0, done.stderr
    seen = [line for line in done.stdout.splitlines() if "seen" in line]  # gloo has lines of its own
    assert sorted(seen) == ["[0] seen [10, 11] 2 4", "[1] seen [10, 11] 2 4"]


def test_lines_keep_their_stream_are_whole_and_have_their_rank_in_front(tmp_path):
    text = """
import sys
for number in range(300):
    for piece in ("line", f" {number} ", "x" * 200 + "\\n"):
        sys.stdout.write(piece)
        sys.stdout.flush()
sys.stderr.write("last, without an end")
"""
    done = launch("-n", "3", script(tmp_path, text))
    assert done.returncode == 0
    for rank in range(3):
        ours = [line for line in done.stdout.splitlines() if line.startswith(f"[{rank}] ")]
        assert ours == [f"[{rank}] line {number} {'x' * 200}" for number in range(300)]
    assert len(done.stdout.splitlines()) == 900
    assert sorted(done.stderr.splitlines()) == [f"[{rank}] last, without an end" for rank in range(3)]


def test_a_progress_bar_becomes_a_line_now_and_then_and_its_last_state(tmp_path):
    text = r"""
import sys, time
for number in range(100):
    sys.stdout.write(f"\r{number} %")
    time.sleep(0.001)
sys.stdout.write("\r100 %\r\nafter\r\n")
"""
    lines = launch("-n", "1", script(tmp_path, text)).stdout.split("\n")
    assert lines[-3:] == ["[0] 100 %", "[0] after", ""]
    assert 3 < len(lines) + 1 < 10 and lines[0] == "[0] 0 %"


def test_the_exit_code_is_that_of_the_process_that_failed_first(tmp_path):
    done = launch("-n", "4", script(tmp_path, FAIL_FIRST))
    assert done.returncode == 3
    assert "process 3 ended with exit code 3; processes 0, 1, 2: 30 s to end as well" in done.stderr


def test_a_process_killed_by_a_signal_counts_as_128_and_its_number(tmp_path):
    text = "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)"
    assert launch("-n", "1", script(tmp_path, text)).returncode == 137


def test_the_others_get_sigterm_after_the_grace_period(tmp_path):
    text = "import os, sys\nif os.environ['JAX_PROCESS_ID'] == '1': sys.exit(9)\n" + WAIT
    before = time.monotonic()
    done = launch("-n", "2", "--grace", "1", script(tmp_path, text), str(tmp_path), "4")
    assert time.monotonic() - before < 8
    assert done.returncode == 9
    assert (tmp_path / "signal-0").read_text() == str(int(signal.SIGTERM))
    assert "SIGTERM to process 0, which did not end by itself" in done.stderr


def test_who_ignores_sigterm_is_killed(tmp_path, monkeypatch):
    text = "import os, sys\nif os.environ['JAX_PROCESS_ID'] == '1': sys.exit(9)\n" + WAIT
    waiting = [script(tmp_path, text), str(tmp_path), "never"]
    done = subprocess.run(
        [sys.executable, script(tmp_path, QUICK, "quick.py"), "launch", "-n", "2", "--grace", "0.5", *waiting],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 9
    assert "SIGKILL to process 0" in done.stderr
    pids = [int(pid) for pid in (tmp_path / "0").read_text().split()]
    eventually(lambda: not any(map(is_alive, pids)), seconds=5)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_launcher_reaches_all_and_their_exit_code_comes_back(number, tmp_path):
    launcher = start("-n", "2", script(tmp_path, WAIT), str(tmp_path), "4")
    pids = started(tmp_path, 2)
    launcher.send_signal(number)
    launcher.communicate(timeout=30)
    assert launcher.returncode == 4
    assert [(tmp_path / f"signal-{rank}").read_text() for rank in range(2)] == [str(int(number))] * 2
    eventually(lambda: not any(map(is_alive, pids)), seconds=5)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's signal at a parent's death is Linux's")
def test_a_launcher_that_is_killed_leaves_no_process_of_the_script(tmp_path):
    launcher = start("-n", "3", script(tmp_path, WAIT), str(tmp_path), "never")
    pids = started(tmp_path, 3)[::2]
    assert all(map(is_alive, pids))
    launcher.kill()
    launcher.wait()
    eventually(lambda: not any(map(is_alive, pids)), seconds=10)
    for pid in [int((tmp_path / str(rank)).read_text().split()[1]) for rank in range(3)]:
        os.kill(pid, signal.SIGKILL)  # what the script's processes start is theirs to guard


def test_processes_go_on_when_nobody_reads_any_more(tmp_path):
    text = f"import pathlib\nfor n in range(50000): print('line', n)\npathlib.Path({str(tmp_path)!r}, 'end').touch()"
    launcher = start("-n", "1", script(tmp_path, text))
    assert launcher.stdout is not None and launcher.stdout.readline() == "[0] line 0\n"
    launcher.stdout.close()
    assert launcher.wait(timeout=60) == 0
    assert (tmp_path / "end").exists()
