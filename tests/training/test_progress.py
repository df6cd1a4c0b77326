import io
import sys

import pytest

from accelnet.training.progress import BarProgress, LineProgress, Progress, make_progress


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_lines_come_at_the_first_update_every_ten_seconds_and_at_the_end():
    clock, stream = Clock(), io.StringIO()
    with LineProgress("digits", 1000, stream=stream, clock=clock) as progress:
        for step in range(10, 1001, 10):
            clock.now += 0.25
            progress.update(step, loss=1.0 / step, examples_per_second=100.0 * step)
    assert stream.getvalue().splitlines() == [
        "digits: step 10 of 1,000 (1 %), loss 0.1, 1,000 examples/s",
        "digits: step 410 of 1,000 (41 %), loss 0.002439, 41,000 examples/s, 0:15 left",
        "digits: step 810 of 1,000 (81 %), loss 0.001235, 81,000 examples/s, 0:05 left",
        "digits: step 1,000 of 1,000 (100 %), loss 0.001, 100,000 examples/s",
    ]


def test_the_last_line_is_written_once():
    stream = io.StringIO()
    progress = LineProgress("digits", 10, stream=stream)
    progress.update(10, loss=1.0)
    progress.close()
    progress.close()
    assert len(stream.getvalue().splitlines()) == 1


def test_time_left_counts_neither_compiling_nor_what_ran_before_a_resume():
    clock, stream = Clock(), io.StringIO()
    progress = LineProgress("digits", 20_000, stream=stream, clock=clock)
    clock.now += 1000  # compiling
    progress.update(10_001)
    clock.now += 60
    progress.update(11_001)
    clock.now += 3600
    progress.update(11_501)
    assert stream.getvalue().splitlines() == [
        "digits: step 10,001 of 20,000 (50 %)",
        "digits: step 11,001 of 20,000 (55 %), 9:00 left",
        "digits: step 11,501 of 20,000 (58 %), 5:45:38 left",
    ]


def test_a_note_is_a_line_of_its_own():
    stream = io.StringIO()
    LineProgress("digits", 10, stream=stream).note("saved step 5")
    assert stream.getvalue() == "saved step 5\n"


def test_a_bar_shows_steps_loss_and_rate():
    stream = Terminal()
    progress = BarProgress("digits", 200, stream=stream)
    progress.update(150, loss=0.123456, examples_per_second=12345.6)
    progress.note("saved step 150")
    progress.update(200)
    progress.close()
    progress.close()
    frames = stream.getvalue().replace("\r", "\n").splitlines()
    assert any("saved step 150" in frame for frame in frames)
    last = next(frame for frame in reversed(frames) if "digits" in frame)
    assert last.startswith("digits: 100%")
    assert "200/200 steps" in last
    assert "loss 0.1235, 12,346 examples/s" in last


@pytest.mark.parametrize(("stream", "kind"), [(Terminal(), BarProgress), (io.StringIO(), LineProgress)])
def test_the_kind_suits_the_place(monkeypatch, stream, kind):
    monkeypatch.setattr(sys, "stderr", stream)
    progress = make_progress("digits", 10)
    assert type(progress) is kind
    progress.close()


def test_a_notebook_gets_a_bar_even_without_widgets(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    monkeypatch.setitem(sys.modules, "ipykernel.zmqshell", object())
    progress = make_progress("digits", 10)
    assert type(progress) is BarProgress
    progress.update(10)
    progress.close()


def test_silence_writes_nothing(capfd):
    progress = make_progress("digits", 10, show=False)
    assert type(progress) is Progress
    progress.update(10, loss=1.0, examples_per_second=1.0)
    progress.note("unheard")
    progress.close()
    assert capfd.readouterr() == ("", "")
