import io
import sys

import pytest

import accelnet as an
from accelnet.training.position import Position
from accelnet.training.progress import BarProgress, LineProgress, NotebookProgress, Progress, make_progress


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
    with LineProgress("digits", Position(1000, clock=clock), stream=stream) as progress:
        for step in range(10, 1001, 10):
            clock.now += 0.25
            progress.update(step, loss=1.0 / step, examples_per_second=100.0 * step)
    assert stream.getvalue().splitlines() == [
        "digits: 1 % · step 10/1,000 · loss 0.1 · 1.0k/s",
        "digits: 41 % · step 410/1,000 · loss 0.002439 · 41k/s · 0:15 left",
        "digits: 81 % · step 810/1,000 · loss 0.001235 · 81k/s · 0:05 left",
        "digits: 100 % · step 1,000/1,000 · loss 0.001 · 100k/s",
    ]


def test_the_last_line_is_written_once():
    stream = io.StringIO()
    progress = LineProgress("digits", Position(10), stream=stream)
    progress.update(10, loss=1.0)
    progress.close()
    progress.close()
    assert len(stream.getvalue().splitlines()) == 1


def test_time_left_counts_neither_compiling_nor_what_ran_before_a_resume():
    clock, stream = Clock(), io.StringIO()
    progress = LineProgress("digits", Position(20_000, clock=clock), stream=stream)
    clock.now += 1000  # compiling
    progress.update(10_001)
    clock.now += 60
    progress.update(11_001)
    clock.now += 3600
    progress.update(11_501)
    assert stream.getvalue().splitlines() == [
        "digits: 50 % · step 10,001/20,000",
        "digits: 55 % · step 11,001/20,000 · 9:00 left",
        "digits: 58 % · step 11,501/20,000 · 5:45:38 left",
    ]


def test_a_note_is_a_line_of_its_own():
    stream = io.StringIO()
    LineProgress("digits", Position(10), stream=stream).note("saved step 5")
    assert stream.getvalue() == "saved step 5\n"


def test_a_bar_shows_steps_loss_and_rate():
    stream = Terminal()
    progress = BarProgress("digits", Position(200), stream=stream)
    progress.update(150, loss=0.123456, examples_per_second=12345.6)
    progress.note("saved step 150")
    progress.update(200)
    progress.close()
    progress.close()
    frames = stream.getvalue().replace("\r", "\n").splitlines()
    assert any("saved step 150" in frame for frame in frames)
    last = next(frame for frame in reversed(frames) if "digits" in frame)
    assert last.startswith("digits: 100%")
    assert "step 200/200 · loss 0.1235 · 12k/s" in last


@pytest.mark.parametrize(("stream", "kind"), [(Terminal(), BarProgress), (io.StringIO(), LineProgress)])
def test_the_kind_suits_the_place(monkeypatch, stream, kind):
    monkeypatch.setattr(sys, "stderr", stream)
    progress = make_progress("digits", 10)
    assert type(progress) is kind
    progress.close()


def test_a_line_says_the_epoch_the_validation_and_the_best_and_drops_what_does_not_fit():
    position = Position(400, 100, "accuracy", False, clock=iter([0.0, 10.0]).__next__)
    position.move(1)
    for step, accuracy in ((100, 0.9), (200, 0.94), (300, float("nan"))):
        position.evaluated(step, {"loss": 0.25, "accuracy": accuracy})
    position.move(301, 0.21, 24_310.0)
    whole = "epoch 4/4 · loss 0.21 · val loss 0.25 · val accuracy 0.94 (best 0.94, epoch 2) · 24k/s · 0:03 left"
    assert position.line(200) == whole
    assert position.line(len(whole) - 1) == whole.replace(" · 24k/s", "")
    assert position.line(70) == "epoch 4/4 · loss 0.21 · val loss 0.25 · val accuracy 0.94 · 0:03 left"
    assert position.line(50) == "epoch 4/4 · loss 0.21 · val accuracy 0.94"
    for columns in range(10, 120):
        assert len(position.line(columns)) <= columns


def test_a_stream_that_knows_no_dots_gets_commas():
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    with LineProgress("digits", Position(10), stream=stream) as progress:
        progress.update(10, loss=1.0)
    assert stream.buffer.getvalue() == b"digits: 100 %, step 10/10, loss 1\n"


def test_a_notebook_gets_a_curve_that_is_renewed(monkeypatch):
    display = pytest.importorskip("IPython.display")
    shown, renewed = [], []

    class Handle:
        def update(self, html):
            renewed.append(html.data)

    monkeypatch.setitem(sys.modules, "ipykernel.zmqshell", object())
    monkeypatch.setattr(display, "display", lambda html, display_id: shown.append(html.data) or Handle())
    progress = make_progress("digits", 10, steps_per_epoch=5, metric="accuracy", lower_is_better=False)
    assert type(progress) is NotebookProgress
    progress.update(5, loss=2.0)
    progress.evaluated(5, {"loss": 1.5, "accuracy": 0.5})
    progress.note("a <note>")
    progress.update(10, loss=1.0)
    progress.close()
    assert len(shown) == 1
    assert "<svg" in renewed[-1] and "epoch 2/2 · loss 1 · val loss 1.5 · val accuracy 0.5" in renewed[-1]
    assert "a &lt;note&gt;" in renewed[-1]


def test_a_run_shows_its_validation_and_a_resumed_one_remembers_the_best(tmp_path, capsys, make_experiment):
    run = an.fit(make_experiment(epochs=2), workdir=tmp_path / "run")
    accuracies = [row["accuracy"] for row in run.rows if row["split"] == "validation"]
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("toy: 100 % · epoch 2/2 · loss ")
    assert f"val accuracy {accuracies[-1]:.4g} (best {max(accuracies):.4g}, epoch" in last
    longer = make_experiment(epochs=2.5, eval_every=an.Every(steps=1000))
    an.fit(longer, workdir=tmp_path / "run", resume=True, allow_change=True)
    first = next(line for line in capsys.readouterr().err.splitlines() if line.startswith("toy:"))
    assert f"(best {max(accuracies):.4g}, epoch" in first


def test_silence_writes_nothing(capfd):
    progress = make_progress("digits", 10, show=False)
    assert type(progress) is Progress
    progress.update(10, loss=1.0, examples_per_second=1.0)
    progress.note("unheard")
    progress.close()
    assert capfd.readouterr() == ("", "")
