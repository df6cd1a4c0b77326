import io
import json
import os
import resource
import stat
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import chex
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto.event_pb2 import Event

import accelnet as an
from accelnet.disk import write_atomically
from accelnet.errors import UserError
from accelnet.json_file import plain_value
from accelnet.training.examples import examples, words_of
from accelnet.training.histograms import histograms
from accelnet.training.result import RESULT_FIELDS, result_line, versions, write_result
from accelnet.training.rows import RowFile
from accelnet.training.timing import TIMING_FIELDS

ROWS = [{"step": step, "epoch": step / 10, "split": "train", "loss": 1 / step} for step in (1, 2, 3)]


def read_rows(path: Path) -> list[dict[str, Any]]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


def read_events(path: Path) -> Iterator[Event]:
    """Read TFRecords: a length, its checksum, that many bytes, their checksum."""
    data = path.read_bytes()
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        yield Event.FromString(data[12 : 12 + length])
        data = data[16 + length :]


@pytest.mark.parametrize("content", ["täxt", b"\x00\xff"])
def test_an_atomic_write_replaces_the_content_and_leaves_nothing_else(tmp_path, content):
    path = tmp_path / "new" / "file"
    write_atomically(path, "old and longer than the new one")
    write_atomically(path, content)
    assert path.read_bytes() == (content.encode() if isinstance(content, str) else content)
    assert list(path.parent.iterdir()) == [path]


def test_an_atomic_write_respects_the_umask(tmp_path):
    old = os.umask(0o027)
    try:
        write_atomically(tmp_path / "file", "")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640


def test_a_write_that_fails_names_the_path_and_harms_nothing(tmp_path):
    write_atomically(tmp_path / "file", "kept")
    with pytest.raises(UserError, match=r"cannot write .*file/below: /.*file: File exists\. .*untouched"):
        write_atomically(tmp_path / "file" / "below", "x")
    assert (tmp_path / "file").read_text() == "kept"
    with pytest.raises(UserError, match="cannot write"):
        write_atomically(tmp_path, "x")
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_without_permission_is_named(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match=r"cannot write .*: Permission denied"):
        write_atomically(tmp_path / "file", "x")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.float32(0.1), float(np.float32(0.1))),
        (jnp.float32(0.1), float(np.float32(0.1))),
        (np.int64(3), 3),
        (jnp.bfloat16(0.5), 0.5),
        (np.bool_(True), True),
        (float("inf"), None),
        (jnp.array([1.0, jnp.nan]), [1.0, None]),
        ({"a": (1, Path("x"))}, {"a": [1, "x"]}),
        ("text", "text"),
        (None, None),
    ],
)
def test_values_of_other_libraries_become_plain(value, expected):
    plain = plain_value(value)
    assert plain == expected
    assert type(plain) is type(expected)


def test_a_row_is_in_the_file_as_soon_as_it_is_appended(tmp_path):
    path = tmp_path / "metrics.jsonl"
    rows = [*ROWS, {"step": 4, "split": "validation", "loss": np.float32("nan"), "r2": jnp.float32(0.1)}]
    with RowFile(path) as log:
        for count, row in enumerate(rows, 1):
            log.append(row)
            assert len(read_rows(path)) == count
    assert read_rows(path)[:3] == ROWS
    assert read_rows(path)[3] == {"step": 4, "split": "validation", "loss": None, "r2": float(np.float32(0.1))}


def test_going_on_drops_the_rows_after_the_checkpoint_and_a_torn_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with RowFile(path) as log:
        for row in ROWS:
            log.append(row)
    with path.open("a") as file:
        file.write('{"step": 4, "lo')
    with RowFile(path, rows=ROWS[:2]) as log:
        log.append({"step": 3, "split": "train", "loss": 7.0})
    assert read_rows(path) == [*ROWS[:2], {"step": 3, "split": "train", "loss": 7.0}]


def test_a_new_log_starts_empty(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 9}\n')
    RowFile(tmp_path / "metrics.jsonl").close()
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_a_closed_log_takes_no_rows(tmp_path):
    log = RowFile(tmp_path / "metrics.jsonl")
    log.close()
    log.close()
    with pytest.raises(ValueError, match="is closed"):
        log.append(ROWS[0])


def test_a_full_disk_harms_nothing_that_was_written(tmp_path):
    # A limit on file sizes stands for the full disk: the system writes what fits and then refuses.
    path = tmp_path / "metrics.jsonl"
    write_atomically(tmp_path / "result.json", "old")
    code = f"""
import resource
from accelnet.errors import UserError
import accelnet as an
from accelnet.disk import write_atomically
from accelnet.training.rows import RowFile
log = RowFile({str(path)!r})
log.append({{"step": 1, "loss": 0.5}})
resource.setrlimit(resource.RLIMIT_FSIZE, (40, {resource.getrlimit(resource.RLIMIT_FSIZE)[1]}))
for write in (
    lambda: log.append({{"step": 2, "loss": 0.25}}),
    lambda: write_atomically({str(tmp_path / "result.json")!r}, "new" * 100),
):
    try:
        write()
    except UserError as error:
        print(error)
print(len(open(log.path).readlines()))
log.close()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    messages = done.stdout.splitlines()
    assert [message.split(": ")[0] for message in messages] == [
        f"cannot write {path}",
        f"cannot write {tmp_path / 'result.json'}",
        "1",
    ], done.stderr
    assert (tmp_path / "result.json").read_text() == "old"
    assert {file.name for file in tmp_path.iterdir()} == {"metrics.jsonl", "result.json"}
    assert read_rows(path) == [{"step": 1, "loss": 0.5}]


def make_result() -> dict[str, Any]:
    return dict.fromkeys(RESULT_FIELDS, 1) | {
        "metrics": {"test": {"loss": np.float32(0.5), "r2": float("nan")}},
        "timing": dict.fromkeys(TIMING_FIELDS, 0.5),
        "workdir": Path("runs/a"),
    }


def test_the_result_file_holds_the_same_object_as_the_line(tmp_path):
    path = write_result(tmp_path, make_result())
    line = result_line(make_result())
    assert "\n" not in line
    assert json.loads(path.read_text()) == json.loads(line)
    assert list(json.loads(line)) == list(RESULT_FIELDS)
    assert json.loads(line)["metrics"] == {"test": {"loss": 0.5, "r2": None}}
    assert json.loads(line)["workdir"] == "runs/a"


def test_a_result_that_lacks_a_field_is_refused():
    result = make_result()
    del result["seed"]
    with pytest.raises(ValueError, match="result lacks or does not know: seed"):
        result_line(result)
    result = make_result()
    result["timing"]["total_secs"] = 1.0
    with pytest.raises(ValueError, match="timing lacks or does not know: total_secs"):
        result_line(result)


def test_versions_are_those_that_run():
    found = versions()
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["numpy"] == np.__version__
    assert set(found) == {
        "python",
        "accelnet",
        "jax",
        "jaxlib",
        "flax",
        "optax",
        "orbax-checkpoint",
        "numpy",
    }


@pytest.mark.slow
@pytest.mark.parametrize("microbatch_size", [None, 3])
def test_tensorboard_gets_settings_and_histograms_that_change_nothing(make_experiment, tmp_path, microbatch_size):
    from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

    experiment = make_experiment(epochs=2, config={"rate": 0.1, "sizes": [1, 2]}, microbatch_size=microbatch_size)
    events = [histograms(experiment, tmp_path / "run")]
    run = an.fit(experiment, workdir=tmp_path / "run", events=events, progress=False)
    chex.assert_trees_all_equal(run.state, an.fit(experiment, progress=False).state)
    del events

    (rows,) = (tmp_path / "run" / "tensorboard").glob("*.accelnet")
    plugins = [
        HParamsPluginData.FromString(value.metadata.plugin_data.content)
        for event in read_events(rows)
        for value in event.summary.value
        if value.metadata.plugin_data.plugin_name == "hparams"
    ]
    assert [one.WhichOneof("data") for one in plugins] == ["experiment", "session_start_info", "session_end_info"]
    assert {info.name.tag for info in plugins[0].experiment.metric_infos} >= {"accuracy/validation", "loss/test"}
    given = plugins[1].session_start_info.hparams
    assert given["rate"].number_value == 0.1 and given["sizes"].string_value == "[1, 2]"

    (path,) = (tmp_path / "run" / "tensorboard").glob("*.accelnet-histograms")
    found = {(event.step, value.tag): value.histo for event in read_events(path) for value in event.summary.value}
    assert {step for step, _ in found} == {7, 14}
    kernel = np.asarray(run.state.params["last"]["kernel"])
    assert found[14, "weights/last.kernel"].sum == pytest.approx(kernel.sum(), rel=1e-4)
    assert found[14, "weights/last.kernel"].num == kernel.size
    assert found[7, "gradients/last.kernel"].min < 0 < found[7, "gradients/last.kernel"].max


@pytest.mark.slow
def test_tensorboard_gets_pictures_with_what_the_model_says_and_nothing_changes(tmp_path):
    rng = np.random.default_rng(0)
    pictures, labels = rng.normal(size=(60, 6, 6, 1)).astype(np.float32), np.array(["cat", "dog"])[np.arange(60) % 2]
    experiment = an.Experiment(
        data=an.data.from_arrays(pictures, labels),
        model=lambda rngs: an.models.MLP(36, (4,), 2, rngs=rngs),
        optimizer=an.optim.adam(1e-2),
        objective=an.objectives.softmax_cross_entropy(),
        batch_size=16,
        epochs=2,
    )
    events = [examples(experiment, tmp_path / "run")]
    run = an.fit(experiment, workdir=tmp_path / "run", events=events, progress=False)
    chex.assert_trees_all_equal(run.state, an.fit(experiment, progress=False).state)
    del events
    (path,) = (tmp_path / "run" / "tensorboard").glob("*.accelnet-examples")
    found = [(event.step, value) for event in read_events(path) for value in event.summary.value]
    steps = experiment.order.steps_per_epoch
    assert [(step, value.tag) for step, value in found] == [(n * steps, "examples/validation") for n in (1, 2)]
    with Image.open(io.BytesIO(found[1][1].image.encoded_image_string)) as image:
        assert image.size == (found[1][1].image.width, found[1][1].image.height)
    assert words_of(experiment.data, np.array([[0.1, 0.9], [2.0, 1.0]])) == ["dog", "cat"]
    assert words_of(experiment.data, {"logits": np.zeros((2, 2))}) is None
    assert words_of(experiment.data, np.zeros((2, 3, 3))) is None


def test_what_is_no_picture_has_no_examples_to_show(make_experiment, tmp_path):
    with pytest.raises(an.UserError, match="no pictures"):
        examples(make_experiment(), tmp_path)
