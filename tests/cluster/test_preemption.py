"""SIGTERM as a flag."""

import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
import pytest

from accelnet.cli.devices import check_platform
from accelnet.cluster import preemption
from accelnet.cluster.preemption import Preemption, raise_dropped, told_to_end
from accelnet.errors import PreemptedError


def test_the_flag_is_set_while_the_main_thread_is_inside_a_program():
    # Some seconds in C++, where no handler of Python's can run.
    program = (
        jax.jit(lambda x: jax.lax.fori_loop(0, 400, lambda _, a: jnp.tanh(a @ a), x)).lower(jnp.eye(400)).compile()
    )
    seen = []

    def look():
        os.kill(os.getpid(), signal.SIGTERM)
        deadline = time.monotonic() + 60
        while not preemption.requested and time.monotonic() < deadline:
            time.sleep(0.001)
        seen.append(time.monotonic())

    with Preemption() as preemption:
        thread = threading.Timer(0.1, look)
        thread.start()
        jax.block_until_ready(program(jnp.eye(400)))
        ended = time.monotonic()
        thread.join()
    assert seen[0] < ended


def test_a_process_that_ends_already_ignores_the_signal():
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(PreemptedError), Preemption():
            raise PreemptedError("another process was told first")
        signal.raise_signal(signal.SIGTERM)
        sleeping = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        sleeping.terminate()
        assert sleeping.wait(timeout=30) == -signal.SIGTERM, "what it starts does not inherit that"
        with Preemption():  # the error was caught, and the process goes on
            pass
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_signal_that_comes_while_python_ends_changes_no_exit_code():
    script = """
import os, signal, sys
from accelnet.cluster import preemption
from accelnet.cluster.preemption import Preemption, raise_dropped, told_to_end
from accelnet.errors import PreemptedError

class Late:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)

sys.late = Late()  # one of the last things that Python deletes
try:
    with Preemption():
        raise PreemptedError("another process was told first")
except PreemptedError:
    sys.exit(4)
"""
    assert subprocess.run([sys.executable, "-c", script], timeout=120).returncode == 4


@pytest.fixture
def interruptible():
    """Whoever runs the tests in the background has interrupts ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_inside_a_callback_whose_exceptions_are_lost_comes_at_the_next_occasion():
    def _xla_gc_callback():  # as jax's, by its name
        signal.raise_signal(signal.SIGINT)

    def dropped_by_somebody_else():
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)

    def made_into_another_one():
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise ImportError("so says a C extension that was just loaded") from None

    for context in (told_to_end, Preemption):
        for drop in (_xla_gc_callback, dropped_by_somebody_else):
            with context():
                drop()
                with pytest.raises(KeyboardInterrupt):
                    raise_dropped()
                preemption._raised.clear()
    with pytest.raises(KeyboardInterrupt), told_to_end():
        dropped_by_somebody_else()
    with pytest.raises(KeyboardInterrupt), told_to_end():
        made_into_another_one()
    raise_dropped()  # nothing is left of them
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_handlers_of_before_come_back():
    def old(*_):
        raise AssertionError("not while the context is open")

    before = signal.signal(signal.SIGTERM, old)
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    wakeup = signal.set_wakeup_fd(writing)
    threads = threading.active_count()
    try:
        with Preemption() as preemption:
            assert not preemption.requested
            signal.raise_signal(signal.SIGTERM)
            assert preemption.requested
            assert os.read(reading, 8) == bytes([signal.SIGTERM]), "who had asked for signals still gets them"
        assert signal.getsignal(signal.SIGTERM) is old
        assert signal.set_wakeup_fd(-1) == writing
        assert threading.active_count() == threads
    finally:
        signal.set_wakeup_fd(wakeup)
        signal.signal(signal.SIGTERM, before)
        os.close(reading)
        os.close(writing)


def test_outside_the_main_thread_it_does_nothing():
    before, seen = signal.getsignal(signal.SIGTERM), []

    def work():
        with Preemption() as preemption:
            seen.append((preemption.requested, signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(False, before)]


def test_sigterm_during_the_start_of_a_plugin_is_no_failure_of_it(monkeypatch, capsys):
    """jax logs what comes up there as the plugin's, and goes on (fault 1586 of scripts/faultstorm.py)."""

    def start():
        try:
            signal.raise_signal(signal.SIGTERM)
        except PreemptedError:
            logging.getLogger("jax._src.xla_bridge").exception("Jax plugin configuration error: %s", "initialize()")

    monkeypatch.setattr(jax, "devices", start)
    with pytest.raises(PreemptedError, match="told to end"), told_to_end():
        check_platform()
    assert capsys.readouterr().err == ""
