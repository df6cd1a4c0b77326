"""Joining a cluster, in threads where that is enough and in real processes where jax takes part."""

import socket
import subprocess
import sys
import threading

import jax
import numpy as np
import pytest

from accelnet.cluster import agreement, check_same, check_shared_directory, gather, initialize, rendezvous
from accelnet.cluster.detection import membership
from accelnet.cluster.rendezvous import meet
from accelnet.cluster.store import Ending, Store, endings, tell_ending
from accelnet.errors import LostProcessError, UserError
from accelnet.training.record import remove_temporary

pytestmark = [pytest.mark.slow, pytest.mark.waits]

HOST = socket.gethostname()
SLURM = {
    "SLURM_JOB_ID": "1234567",
    "SLURM_STEP_NODELIST": "node[007-008]",
    "SLURM_NTASKS": "8",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
}


@pytest.fixture
def port():
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    for name in ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID", "KUBERNETES_SERVICE_HOST", *SLURM):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ACCELNET_TOKEN", "0123456789abcdef")


@pytest.fixture
def no_service(monkeypatch):
    """Without jax's service, which takes the port over."""
    monkeypatch.setattr(rendezvous, "_wait_for_service", lambda *_: None)


def meet_all(port, visitors, timeout_seconds=10.0):
    """Let processes (number of processes, rank) meet, each in a thread; return what each was told."""
    told = {}

    def come(index, num_processes, rank):
        try:
            told[index] = meet(f"127.0.0.1:{port}", num_processes, rank, timeout_seconds=timeout_seconds)
        except (UserError, LostProcessError) as error:
            told[index] = f"{error.exit_code}: {error}"

    threads = [threading.Thread(target=come, args=(index, *visitor)) for index, visitor in enumerate(visitors)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [told[index] for index in range(len(visitors))]


def test_processes_join_agree_and_exchange(run):
    run.start("agree", 3)
    assert run.codes() == [0, 0, 0]
    said = [run.said(rank) for rank in range(3)]
    for text in said:
        assert "gathered int16 [[0, 0], [1, 10], [2, 20]], left in the directory: []" in text
        assert (
            f"same: UserError: the processes do not run the same: jax is 0.0.1 on rank 2 ({HOST}), and 0.10.2 on the "
            "other 2. Start all"
        ) in text
        assert f"shared is not the same directory on all hosts: what process 0 on {HOST} writes there is not" in said[0]
        assert f"is not seen on {HOST} (rank 1)" in text
        assert "unwritable: UserError: process 0 cannot write in /proc/no: " in text
        assert "gather: ValueError: the processes gather arrays that differ: <f8 [1], <f8 [1], <f8 [2]" in text


def test_process_0_stays_until_the_last_has_read(run):
    run.start("late", 3, culprit=1)
    assert run.codes() == [0, 0, 0]
    assert "still read: ['0/0', '0/1', '0/2']" in run.said(1)


def test_a_process_that_does_not_come_is_named_by_those_that_did(run):
    run.start("join", 3, ranks=(0, 2), join_seconds=3)
    assert run.codes() == [5, 5]
    for rank in (0, 2):
        assert "error: 2 of 3 processes arrived within 3 s; missing: 1 (here: 0 on" in run.said(rank)
        assert "Traceback" not in run.said(rank) and "absl" not in run.said(rank)


def test_a_process_that_leaves_with_a_message_is_not_waited_for(run):
    run.start("leave", 2, culprit=1)
    assert run.codes() == [2, 2]
    assert "error: no such file" in run.said(1)
    assert f"error: rank 1 on {HOST} ended: no such file" in run.said(0)


def test_all_that_meet_learn_all_hosts(port, no_service):
    assert meet_all(port, [(3, 0), (3, 2), (3, 1)]) == [[HOST] * 3] * 3


def test_everyone_learns_who_is_missing(port):
    for told in meet_all(port, [(4, 0), (4, 2)], 1.0):
        assert told.startswith("5: ")
        assert f"2 of 4 processes arrived within 1 s; missing: 1, 3 (here: 0 on {HOST}, 2 on {HOST})" in told


def test_two_processes_with_one_id_are_one_message_for_all(port):
    for told in meet_all(port, [(3, 0), (3, 1), (3, 1)]):
        assert told.startswith("2: ")
        assert f"two processes have the id 1, on {HOST} and on {HOST}: give each its own JAX_PROCESS_ID, from 0" in told


def test_processes_that_expect_other_numbers_are_told(port):
    for told in meet_all(port, [(3, 0), (4, 1)]):
        assert f"process 1 on {HOST} was started for a run of 4 processes, and process 0 on {HOST} for one of 3" in told


def test_a_coordinator_that_does_not_answer_is_named(port):
    with pytest.raises(
        LostProcessError, match=rf"process 1 on .* did not reach process 0 at 127.0.0.1:{port} in time: .*refus"
    ):
        meet(f"127.0.0.1:{port}", 2, 1, timeout_seconds=0.5)


def test_another_program_at_the_address_is_no_coordinator(monkeypatch):
    monkeypatch.setattr(rendezvous, "_GRACE_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"

        def answer():
            connection, _ = other.accept()
            connection.sendall(b"HTTP/1.1 400 Bad Request\n")
            other.close()

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(LostProcessError, match="did not reach process 0"):
            meet(address, 2, 1, timeout_seconds=0.5)
        thread.join()


def test_a_port_in_use_is_named():
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port}, where process 0 has to listen, is in use on {HOST}"):
            meet(f"127.0.0.1:{port}", 2, 0, timeout_seconds=1)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (
            ("a:1", 2, None),
            "there is coordinator=a:1, num_processes=2, but no process_id: a process of a cluster needs",
        ),
        (("a:1", 2, 2), "process_id is 2 in a run of 2 processes, expected 0 to 1"),
        (("a:1", 0, 0), "process_id is 0 in a run of 0 processes"),
        (("a", 2, 1), "the coordinator's address is 'a', expected host:port"),
        (("a:99999", 2, 1), "the coordinator's address is 'a:99999', expected host:port"),
    ],
)
def test_values_that_make_no_process_of_a_run_are_refused(values, words):
    with pytest.raises(UserError, match=words):
        initialize(*values)


def test_the_environment_says_which_process_this_is(monkeypatch):
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "a:1")
    monkeypatch.setenv("JAX_NUM_PROCESSES", "4")
    with pytest.raises(UserError, match="but no JAX_PROCESS_ID"):
        initialize()
    monkeypatch.setenv("JAX_PROCESS_ID", "x")
    with pytest.raises(UserError, match="JAX_PROCESS_ID is 'x', expected a whole number"):
        initialize()
    monkeypatch.setenv("JAX_PROCESS_ID", "3")
    found = membership(None, None, None, 1)
    assert (found.address, found.num_processes, found.process_id) == ("a:1", 4, 3)


def test_a_task_of_slurm_is_a_process_of_a_run(monkeypatch):
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    found = membership(None, None, None, 1)
    assert (found.num_processes, found.process_id, found.local_devices) == (8, 5, [1])
    assert found.address.startswith("node007:")


def test_what_only_resembles_a_cluster_stays_one_process(monkeypatch):
    assert initialize() is False
    monkeypatch.setenv("SLURM_JOB_ID", "1")  # a login node, or a batch script outside srun
    assert initialize() is False
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")  # any program in Kubernetes
    assert initialize() is False
    for name, value in (SLURM | {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}).items():  # srun of one task
        monkeypatch.setenv(name, value)
    assert initialize() is False


def test_joining_after_devices_were_touched_is_refused():
    jax.devices()
    with pytest.raises(UserError, match="after jax has opened its devices"):
        initialize("127.0.0.1:1", 2, 0)


class MemoryStore(Store):
    def __init__(self, rank, entries):
        super().__init__(None, rank, 3, "")
        vars(self)["kept"] = entries

    def set(self, key, value):
        self.kept[key] = value

    def entries(self, folder):
        return {key.removeprefix(folder): value for key, value in self.kept.items() if key.startswith(folder)}


def test_a_reason_that_another_process_gave_is_passed_on_as_it_is():
    entries = {}
    tell_ending(MemoryStore(1, entries), Ending(2, "no such file", "b"), linger_seconds=0.0)
    first = endings(MemoryStore(2, entries))[1].said_of(1)
    assert first == "rank 1 on b ended: no such file"
    tell_ending(MemoryStore(2, entries), Ending(2, first, "c"), linger_seconds=0.0)
    assert endings(MemoryStore(0, entries))[2].said_of(2) == first


def test_what_a_process_that_dies_while_it_looks_leaves_behind_is_removed_at_the_next_start(tmp_path, monkeypatch):
    left = []

    def look(seen):
        left.extend(path.name for path in tmp_path.iterdir())
        return [HOST], [seen]

    monkeypatch.setattr(agreement.stores, "connected", lambda: MemoryStore(0, {}))
    monkeypatch.setattr(agreement, "exchange", lambda content: [content])
    monkeypatch.setattr(agreement, "_gather_with_hosts", look)
    check_shared_directory(tmp_path)
    assert len(left) == 1 and list(tmp_path.iterdir()) == []
    for name in (*left, ".someones.tmp"):
        (tmp_path / name).touch()
    remove_temporary(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".someones.tmp"]


def test_one_process_exchanges_with_itself(tmp_path):
    assert gather(np.arange(3)).tolist() == [[0, 1, 2]]
    check_same({"seed": "1"})
    check_shared_directory(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_looking_for_a_cluster_takes_no_time_and_touches_no_device():
    code = """
import time
from accelnet.cluster import initialize
start = time.perf_counter()
found = initialize()
seconds = time.perf_counter() - start
from jax._src import xla_bridge
print(found, seconds < 1.0, xla_bridge.backends_are_initialized())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["False", "True", "False"], done.stderr
