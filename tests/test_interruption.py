"""Signals while a script imports what it needs."""

import signal
import subprocess
import sys

import pytest

SCRIPT = """
import importlib.abc, os, signal, sys
number, kept = int(sys.argv[1]), sys.argv[2:] == ["kept"]
if kept:
    signal.signal(number, lambda *_: print("mine"))

class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "accelnet.data":
            os.kill(os.getpid(), number)

sys.meta_path.insert(0, Finder())
before = [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)]
import accelnet
accelnet.data
assert kept and [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)] == before
"""


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [
        (signal.SIGTERM, 4, "preempted: told to end (SIGTERM) before anything began\n"),
        (signal.SIGINT, 130, "interrupted before anything began\n"),
    ],
)
def test_a_script_that_is_told_to_end_while_it_imports_ends_with_a_line(tmp_path, number, code, said):
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, str(tmp_path / "script.py"), str(int(number))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (code, said)
    kept = subprocess.run([*command, "kept"], capture_output=True, text=True, timeout=120)
    assert (kept.returncode, kept.stdout, kept.stderr) == (0, "mine\n", "")
