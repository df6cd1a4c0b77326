"""The watch, with real processes that die, stop, stand still and leave."""

import json
import random
import re
import signal
import socket
import threading
import time

import pytest

from accelnet.cluster.heartbeats import Heartbeats
from accelnet.cluster.verdict import Beat, lost, stalled
from accelnet.cluster.watch import Watch

pytestmark = [pytest.mark.slow, pytest.mark.waits]

HOST = socket.gethostname()


def strike(run, rank, number):
    """Send a signal to a process at a random moment of its training."""
    run.wait_for(rank, "training")
    # The others hear of it with the next beats, which come every 0.15 s where the machine is not busy.
    time.sleep(1.0 + random.uniform(0.0, 0.5))
    run.processes[rank].send_signal(number)
    return time.monotonic()


def assert_says_once(run, rank, pattern, word="error"):
    said = run.said(rank)
    assert len(re.findall("^(error|preempted): ", said, re.MULTILINE)) == 1, said
    assert re.search(f"^{word}: {pattern}", said, re.MULTILINE), said
    assert "Traceback" not in said


def assert_has_stacks(run, rank):
    assert f"stacks of rank {rank} on {HOST} are in {run.stacks(rank)}" in run.said(rank)
    stacks = run.stacks(rank).read_text()
    assert "Thread 0x" in stacks and "worker.py" in stacks


@pytest.mark.parametrize("rank", [0, 2])
def test_a_killed_process_ends_the_others_and_is_named(run, rank):
    run.start("train", 3)
    at = strike(run, rank, signal.SIGKILL)
    others = {0, 1, 2} - {rank}
    assert [run.code(other) for other in others] == [5, 5]
    assert time.monotonic() - at < 3 + 4
    for other in others:
        assert_says_once(run, other, rf"rank {rank} on {HOST} is lost: .*\(last at step \d+, phase train\)")
        assert_has_stacks(run, other)
    assert not run.stacks(rank).exists()


@pytest.mark.parametrize("rank", [0, 1])
def test_a_stopped_process_ends_the_others_and_itself_when_continued(run, rank):
    run.start("train", 3)
    at = strike(run, rank, signal.SIGSTOP)
    others = {0, 1, 2} - {rank}
    assert [run.code(other) for other in others] == [5, 5]
    assert 2 < time.monotonic() - at < 3 + 4
    for other in others:
        assert_says_once(run, other, rf"rank {rank} on {HOST} is lost: .*\(last at step \d+, phase train\)")
        assert_has_stacks(run, other)
    run.processes[rank].send_signal(signal.SIGCONT)
    assert run.code(rank, 10) == 5
    assert_says_once(run, rank, rf"rank {rank} on {HOST} was stopped for \d+\.\d s, longer than the 3 s")


def test_a_process_that_is_stopped_when_all_have_come_to_the_end_ends_as_they_do(run):
    """It ended with 5, and process 0 waited five minutes for it."""
    run.start("end", 3, culprit=2, how="stop")
    assert run.code(1) == 0
    time.sleep(3 + 2)  # longer than the others would wait for it in a run
    run.processes[2].send_signal(signal.SIGCONT)
    assert (run.code(2, 10), run.code(0, 10)) == (0, 0)
    assert [run.said(rank) for rank in range(3)] == ["at the end\n"] * 3


def test_process_0_does_not_wait_for_one_that_is_killed_at_the_end(run):
    run.start("end", 3, culprit=2, how="kill")
    assert (run.code(2), run.code(1), run.code(0, 60)) == (-signal.SIGKILL, 0, 0)
    assert run.said(0) == "at the end\n"


def test_where_process_0_is_killed_while_the_others_wait_for_it_each_says_one_message(run):
    """One in five said nothing: jax's client, which ended it, never answered when the others were to be told."""
    run.start("end", 5, culprit=0, how="kill before", timeout=15)
    assert run.codes() == [-signal.SIGKILL, 5, 5, 5, 5]
    for rank in range(1, 5):
        assert_says_once(run, rank, "(rank|process) 0")


def test_process_0_that_stands_still_at_the_end_is_lost_to_those_who_have_not_read_its_last_word(run):
    run.start("end", 3, culprit=0, how="stop unread")
    assert [run.code(rank) for rank in (1, 2)] == [5, 5]
    run.processes[0].send_signal(signal.SIGCONT)
    assert run.code(0, 10) == 5
    assert_says_once(run, 0, rf"rank 0 on {HOST} was stopped for \d+\.\d s, longer than the 3 s")


def test_process_0_that_stands_still_at_the_end_does_not_keep_those_who_have_read_its_last_word(run):
    """They had still to take their beats out of the store, and waited for ever."""
    run.start("end", 3, culprit=0, how="stop when read")
    assert [run.code(rank) for rank in (1, 2)] == [5, 5]
    for rank in (1, 2):
        assert_says_once(run, rank, "rank 0 .* has not answered for")


def test_a_process_that_breaks_a_collective_is_found_before_the_timeout(run):
    run.start("collectives", 3, timeout=20)
    at = strike(run, 1, signal.SIGKILL)
    assert [run.code(rank) for rank in (0, 2)] == [5, 5]
    assert time.monotonic() - at < 15
    for rank in (0, 2):
        assert_says_once(run, rank, f"rank 1 on {HOST} is lost: not heard of")


def test_a_deadlock_is_blamed_on_the_process_that_stands_still(run):
    run.start("deadlock", 2, culprit=1)
    assert run.codes() == [5, 5]
    for rank in range(2):
        assert_says_once(
            run, rank, rf"no progress for 3\.\d s: rank 1 on {HOST} stands at step 5, phase train, and the"
        )
        assert_has_stacks(run, rank)
    assert "stand_still" in run.stacks(1).read_text() and "stand_still" not in run.stacks(0).read_text()


@pytest.mark.parametrize("rank", [0, 1])
def test_a_mistake_on_one_process_ends_all_with_its_code_and_reason(run, rank):
    run.start("mistake", 2, culprit=rank)
    assert run.codes() == [2, 2]
    assert_says_once(run, rank, "no such file\nand more")
    assert_says_once(run, 1 - rank, f"rank {rank} on {HOST} ended: no such file")


def test_an_error_of_ones_own_keeps_its_traceback_and_ends_the_others(run):
    run.start("failure", 2, culprit=1)
    assert run.codes() == [1, 1]
    assert "RuntimeError: out of memory" in run.said(1) and "Traceback" in run.said(1)
    assert_says_once(run, 0, f"rank 1 on {HOST} ended: out of memory")


def test_a_termination_signal_to_one_ends_all_at_the_same_step(run):
    run.start("train", 2)
    strike(run, 1, signal.SIGTERM)
    assert run.codes() == [4, 4]
    steps = {re.search(r"^error: saved at step (\d+)$", run.said(rank), re.MULTILINE)[1] for rank in range(2)}
    assert len(steps) == 1


def test_a_termination_signal_during_compilation_ends_all_at_once(run):
    run.start("compile", 2, culprit=1, seconds=60)
    for rank in range(2):
        run.wait_for(rank, "compiling")
    time.sleep(0.5)
    run.processes[1].send_signal(signal.SIGTERM)
    at = time.monotonic()
    assert run.codes() == [4, 4]
    assert time.monotonic() - at < 5
    assert "preempted: told to end (SIGTERM) while a program was compiled" in run.said(1)
    assert_says_once(run, 0, f"rank 1 on {HOST} ended: told to end", "preempted")
    assert (run.directory / "finished-0").exists() and (run.directory / "finished-1").exists()


def test_a_compilation_may_take_longer_than_the_timeout(run):
    run.start("compile", 2, culprit=1, seconds=4, timeout=2)
    assert run.codes() == [0, 0]
    assert "compiled" in run.said(0) and "error" not in run.said(0)


def test_a_run_that_ends_regularly_leaves_nothing_behind(run):
    run.start("train", 2, steps=20)
    assert run.codes() == [0, 0]
    for rank in range(2):
        assert "left behind: ['accelnet-life'] []" in run.said(rank)  # it lives as long as the process
        assert "error" not in run.said(rank)
    assert not run.stacks(0).exists()


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [
        (signal.SIGTERM, 4, "preempted: told to end (SIGTERM) while a program was compiled"),
        (signal.SIGINT, 130, "interrupted: told to end (Ctrl-C) while a program was compiled"),
    ],
)
def test_a_single_process_can_be_ended_while_it_compiles(run, number, code, said):
    run.start("compile", 1, culprit=0, seconds=60)
    run.wait_for(0, "compiling")
    run.processes[0].send_signal(number)
    assert run.code(0) == code
    assert said in run.said(0) and (run.directory / "finished-0").exists()


def test_a_single_process_is_not_watched():
    before = threading.active_count()
    with Watch(0.01) as watch:
        watch.mark(1, "train")
        time.sleep(0.1)
        watch.explain(RuntimeError("of its own"))
        assert threading.active_count() == before


def test_a_timeout_of_zero_is_refused():
    with pytest.raises(ValueError, match="timeout_seconds is 0, expected more than 0"):
        Watch(0)


def beat(rank, step, phase, marks, seconds):
    return Beat(rank, f"h{rank}", step, phase, marks, seconds, 0)


def test_the_process_with_the_least_progress_is_blamed_for_a_stall():
    beats = {0: beat(0, 7, "train", 9, 8.0), 1: beat(1, 6, "save", 8, 6.0), 2: beat(2, 7, "train", 9, 9.0)}
    assert stalled(beats, 5.0).ranks == {1}
    assert stalled(beats, 7.0) is None, "rank 1 may still go on"


def test_nobody_is_singled_out_when_all_stand_at_the_same_place():
    found = stalled({rank: beat(rank, 7, "train", 9, 8.0) for rank in range(3)}, 5.0)
    assert found.ranks == {0, 1, 2} and "none can be singled out" in found.reason


def test_waiting_for_a_process_that_compiles_is_no_stall():
    assert stalled({0: beat(0, 7, "train", 9, 8.0), 1: beat(1, 7, "compile", 8, 60.0)}, 5.0) is None
    assert stalled({0: beat(0, 7, "train", 9, 8.0), 1: beat(1, 8, "compile", 10, 60.0)}, 5.0).ranks == {0}


class Stop:
    """An event that is set after the first wait, so that `Heartbeats.talk` reads once."""

    def __init__(self):
        self.waited = False

    def is_set(self):
        return self.waited

    def wait(self, _):
        self.waited = True


class StoreInMemory:
    rank, num_processes = 0, 2

    def __init__(self):
        self.values = {}

    def set(self, key, value):
        self.values[key] = value

    def entries(self, folder):
        return {key.removeprefix(folder): value for key, value in self.values.items() if key.startswith(folder)}


def test_what_others_said_before_a_signal_came_is_no_reason_to_end():
    """A process was seen to end at step 25, because it had last heard of another one that it compiled at step 17."""
    store = StoreInMemory()

    def hear(count, step, phase):
        store.set("beat/1", json.dumps(vars(Beat(1, "b", step, phase, count, 30.0, count))).encode())
        beats.talk(Stop())

    beats = Heartbeats(store, 1.0)
    hear(0, 17, "compile")
    asked_at = time.monotonic()
    assert beats.last()[1].phase == "compile" and beats.last(since=asked_at) == {}
    hear(1, 17, "compile")  # written, perhaps, before the signal
    assert beats.last(since=asked_at) == {}
    hear(1, 17, "compile")  # the same beat once more
    assert beats.last(since=asked_at) == {}
    hear(2, 25, "train")
    assert beats.last(since=asked_at)[1].step == 25


def test_a_process_that_was_never_heard_of_is_lost_too():
    found = lost({0: beat(0, 7, "train", 9, 0.0)}, {0: 0.0, 1: 6.0}, 2, 5.0)
    assert found.ranks == {1} and "it joined, but was not heard of in 6.0 s" in found.reason
    assert lost({}, {0: 0.0, 1: 4.0}, 2, 5.0) is None
