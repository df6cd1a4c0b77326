"""Event files for TensorBoard: every number once, whatever happens."""

import time

import pytest
from tensorboardX.proto.event_pb2 import SessionLog

from accelnet.errors import UserError
from accelnet.training.record import TensorBoardLog
from tests.training.test_record import ROWS, read_events


def test_tensorboard_gets_every_number_under_its_split(tmp_path):
    row = {
        "step": 7,
        "epoch": 0.5,
        "seconds": 3.0,
        "split": "validation",
        "loss": 0.25,
        "r2": None,
        "learning_rate": 0.125,
    }
    with TensorBoardLog(tmp_path) as log:
        log.append(row)
    (path,) = tmp_path.iterdir()
    assert "tfevents" in path.name
    version, start, event = read_events(path)
    assert version.file_version == "brain.Event:2"
    assert (start.step, start.session_log.status) == (0, SessionLog.START)
    assert event.step == 7
    assert {value.tag: value.simple_value for value in event.summary.value} == {
        "epoch": 0.5,
        "loss/validation": 0.25,
        "learning_rate": 0.125,
    }


def test_going_on_leaves_every_step_once_whatever_the_clock_says(tmp_path, monkeypatch):
    other = tmp_path / "events.out.tfevents.1.of-somebody-else"
    other.write_bytes(b"")
    rows = [{**row, "seconds": 10.0 * row["step"]} for row in ROWS]
    with TensorBoardLog(tmp_path) as log:
        for row in rows:
            log.append(row)
    past = time.time() - 86_400
    monkeypatch.setattr(time, "time", lambda: past)
    monkeypatch.setattr(time, "time_ns", lambda: int(past * 1e9))
    with TensorBoardLog(tmp_path, rows[:2]) as log:  # row 3 came after the checkpoint
        log.append(rows[2] | {"loss": 7.0})
    other.unlink()
    (path,) = tmp_path.iterdir()
    _, start, *events = read_events(path)
    assert (start.step, start.session_log.status) == (0, SessionLog.START)
    losses = [value.simple_value for event in events for value in event.summary.value if value.tag == "loss/train"]
    assert [event.step for event in events] == [1, 2, 3] and losses == [1, 0.5, 7]
    assert events[0].wall_time == pytest.approx(past - 10, abs=0.01)


def test_tensorboard_names_the_directory_it_cannot_write(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*file"):
        TensorBoardLog(tmp_path / "file")
