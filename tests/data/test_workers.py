import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from accelnet.data.rows import Rows
from accelnet.data.workers import InProcesses
from accelnet.errors import UserCodeError, UserError

pytestmark = pytest.mark.waits

ROOT = Path(__file__).resolve().parents[2]


class Numbers(Rows):
    """Row n holds n, n + 1 and, in "process", the number of the process that read it; some rows misbehave."""

    def __init__(self, count=100):
        self.shapes = {
            "a": {"b": jax.ShapeDtypeStruct((2,), np.dtype(np.float32))},
            "process": jax.ShapeDtypeStruct((), np.dtype(np.int64)),
        }
        self.count = count

    def __len__(self):
        return self.count

    def read(self, rows):
        for row in rows.tolist():
            self.one(row)
        pairs = np.stack([rows, rows + 1], axis=1).astype(np.float32)
        return {"a": {"b": pairs}, "process": np.full(len(rows), os.getpid(), np.int64)}

    def one(self, row):
        if row == 90:
            raise UserError("row 90 is damaged")
        if row == 91:
            raise ZeroDivisionError("division by zero")
        if row == 92:
            os.kill(os.getpid(), signal.SIGKILL)
        if row == 93:
            time.sleep(60)
        if row == 94:
            os._exit(3)
        if row == 95:
            raise RuntimeError(f"jax {'jax' in sys.modules}, {os.environ['JAX_PLATFORMS']}")

    def place(self, row):
        return f"number {row}"

    def identity(self):
        return b"numbers"


class Unsendable(Numbers):
    def __init__(self):
        super().__init__()
        self.lock = threading.Lock()


@pytest.fixture(scope="module")
def importable():
    """Let the processes import this module, as they import a module of a user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parent)
        import test_workers  # the same file, under the name by which others find it

        yield test_workers


@pytest.fixture(scope="module")
def rows(importable):
    return InProcesses(importable.Numbers(), 2, timeout_seconds=20)


def test_processes_read_what_the_rows_say_in_any_order_and_with_repeats(rows):
    asked = np.array([5, 3, 3, 80, 0, 7, 7])
    for part in (asked, asked[:1], asked[:0], asked[::-1]):
        batch = rows.read(part)
        assert np.array_equal(batch["a"]["b"], np.stack([part, part + 1], axis=1).reshape(-1, 2))
        assert batch["a"]["b"].dtype == np.float32
    readers = set(rows.read(np.arange(50))["process"].tolist())
    assert len(readers) == 2 and os.getpid() not in readers
    assert (len(rows), rows.place(3), rows.identity()) == (100, "number 3", b"numbers")


def test_threads_read_at_the_same_time(rows):
    rng, found = np.random.default_rng(0), []

    def read(asked):
        found.extend(np.array_equal(rows.read(asked)["a"]["b"][:, 0], asked) for _ in range(20))

    threads = [threading.Thread(target=read, args=(rng.integers(0, 90, size),)) for size in (1, 2, 7, 64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == [True] * 80


def test_an_error_of_the_rows_is_told_and_the_next_read_gets_its_own_answer(rows):
    with pytest.raises(UserError, match=r"^row 90 is damaged$"):
        rows.read(np.array([90, 1, 2, 3]))
    assert rows.read(np.array([4, 5]))["a"]["b"][:, 0].tolist() == [4, 5]
    with pytest.raises(UserCodeError, match=r"reading rows in a process failed:\n(.|\n)*division by zero"):
        rows.read(np.array([91, 1]))
    assert rows.read(np.array([6, 7]))["a"]["b"][:, 0].tolist() == [6, 7]
    with pytest.raises(UserCodeError, match=", cpu"):
        rows.read(np.array([95]))


@pytest.mark.parametrize(
    ("row", "message"),
    [(92, "was ended by SIGKILL, as the system does where memory is short"), (94, "ended with code 3")],
)
def test_a_process_that_dies_is_one_message_and_others_start_at_the_next_read(rows, row, message):
    first = set(rows.read(np.arange(10))["process"].tolist())
    start = time.monotonic()
    with pytest.raises(UserError, match=message):
        rows.read(np.array([1, row]))
    assert time.monotonic() - start < 10
    assert first.isdisjoint(rows.read(np.arange(10))["process"].tolist())


def test_a_process_that_was_killed_between_reads_is_one_message(rows):
    os.kill(int(rows.read(np.arange(1))["process"][0]), signal.SIGKILL)
    with pytest.raises(UserError, match="was ended by SIGKILL"):
        rows.read(np.arange(10))


@pytest.mark.parametrize("stopped", [False, True])
def test_a_process_that_does_not_answer_is_one_message_with_the_time(importable, stopped):
    rows = InProcesses(importable.Numbers(), 1, timeout_seconds=2)  # starting may take longer
    reader = int(rows.read(np.arange(1))["process"][0])
    if stopped:
        os.kill(reader, signal.SIGSTOP)
    start = time.monotonic()
    with pytest.raises(UserError, match=re.escape("gave no answer within 2 s: does the disk answer?")):
        rows.read(np.array([1 if stopped else 93]))
    assert 1.5 < time.monotonic() - start < 20
    assert not Path(f"/proc/{reader}").exists()


def test_rows_that_cannot_be_sent_are_refused(importable):
    with pytest.raises(UserError, match=r"the rows cannot be sent to other processes \(cannot pickle '_thread.lock'"):
        InProcesses(importable.Unsendable(), 1).read(np.arange(2))


@pytest.mark.parametrize(("workers", "seconds"), [(0, 1), (1.5, 1), (1, 0), (True, 1)])
def test_wrong_arguments_are_refused(workers, seconds):
    with pytest.raises(UserError, match="expected"):
        InProcesses(Numbers(), workers, seconds)


# --- processes of a script ------------------------------------------------------------------------------------------

SCRIPT = """
    import os, signal, sys, time
    import jax, numpy as np
    from accelnet.data.rows import Rows
    from accelnet.data.workers import InProcesses

    class Own(Rows):
        shapes = {"process": jax.ShapeDtypeStruct((), np.dtype(np.int64))}
        def __len__(self):
            return 10
        def read(self, rows):
            return {"process": np.full(len(rows), os.getpid())}

    if __name__ == "__main__":
        rows = InProcesses(Own(), 2)
        print(*np.unique(rows.read(np.arange(10))["process"]), flush=True)
"""


def started(tmp_path, ending, **options):
    path = tmp_path / "script.py"
    path.write_text(textwrap.dedent(SCRIPT) + textwrap.indent(textwrap.dedent(ending), "    "))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, path], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


def gone(processes, seconds=10.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not any(Path(f"/proc/{number}").exists() for number in processes):
            return True
        time.sleep(0.05)
    return False


@pytest.mark.slow
def test_rows_of_a_class_of_the_script_are_read_and_nobody_is_left_behind(tmp_path):
    process = started(tmp_path, "")
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")
    assert len(output.split()) == 2 and gone(output.split())


@pytest.mark.slow
@pytest.mark.parametrize("main", ["if True:", 'if __name__ != "__main__":\n    sys.exit(3)\nelse:'])
def test_a_script_that_reads_when_it_is_imported_is_told_where_that_belongs(tmp_path, main):
    path = tmp_path / "script.py"
    path.write_text(textwrap.dedent(SCRIPT).replace('if __name__ == "__main__":', main))
    found = subprocess.run(
        [sys.executable, path], env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=60
    )
    assert found.returncode == 1
    assert 'put what trains under if __name__ == "__main__":' in found.stderr.splitlines()[-1]


@pytest.mark.slow
def test_nobody_is_left_behind_by_a_process_that_was_killed(tmp_path):
    process = started(tmp_path, "time.sleep(100)")
    readers = process.stdout.readline().split()
    assert len(readers) == 2 and not gone(readers, 0.5)
    process.kill()
    process.communicate()
    assert gone(readers)


@pytest.mark.slow
def test_signals_to_the_group_leave_the_readers_at_work(tmp_path):
    ending = """
        seen = []
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda number, _: seen.append(number))
        for number in (signal.SIGINT, signal.SIGTERM):
            print("ready", flush=True)
            while number not in seen:
                time.sleep(0.01)
        print(*np.unique(rows.read(np.arange(10))["process"]), flush=True)
    """
    process = started(tmp_path, ending, start_new_session=True)
    readers = process.stdout.readline().split()
    for number in (signal.SIGINT, signal.SIGTERM):
        assert process.stdout.readline() == "ready\n"
        for reader in readers:
            os.kill(int(reader), number)
        os.killpg(process.pid, number)
    output, errors = process.communicate(timeout=60)
    assert (output.split(), process.returncode, errors) == (readers, 0, "")
    assert gone(readers)
