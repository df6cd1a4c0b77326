"""Work directories that are damaged, taken away, full, shared or read."""

import dataclasses
import errno
import json
import os
import random
import re
import resource
import shutil
import threading
import time
from functools import partial
from pathlib import Path

import chex
import optax
import pytest

import accelnet as an
from accelnet.training.checkpoint import Checkpoints
from accelnet.training.rows import best_step, row_files, with_rows
from accelnet.training.saving import Saver
from tests.training.test_resume import Killed, die, fit, rows_of, same

pytestmark = pytest.mark.usefixtures("no_pictures")


def test_a_directory_with_a_run_is_not_overwritten(make_experiment, tmp_path):
    fit(make_experiment(steps=3), workdir=tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    with pytest.raises(an.UserError, match="already holds a run of toy: pass --resume"):
        fit(make_experiment(steps=3), workdir=tmp_path / "run")
    with pytest.raises(an.UserError, match="holds the experiment toy, not other"):
        fit(make_experiment(steps=3, name="other"), workdir=tmp_path / "run", resume=True)
    with pytest.raises(an.UserError, match="is at step 3 already, and 2 steps were asked for"):
        fit(make_experiment(steps=2), workdir=tmp_path / "run", resume=True)
    assert before == {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}


def _largest_file(step_directory):
    return max((path for path in step_directory.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def _truncate(step_directory):
    file = _largest_file(step_directory / "state")
    file.write_bytes(file.read_bytes()[:-20])


def _flip(step_directory):
    file = _largest_file(step_directory / "state")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0x10
    file.write_bytes(content)


def _lose_record(step_directory):
    (step_directory / "record.json").unlink()


def _change_record(step_directory):
    file = step_directory / "record.json"
    file.write_text(file.read_text().replace('"toy"', '"tox"'))


def _lose_manifest(step_directory):
    (step_directory / "manifest.json").unlink()


def test_a_checkpoint_of_an_earlier_version_is_said_to_be_one(full, dead, copied):
    workdir = copied(dead)
    for step in Checkpoints(workdir).steps():
        (workdir / "checkpoints" / str(step) / "record").mkdir()
    with pytest.raises(an.UserError, match="written by an earlier version of accelnet, which alone can read it"):
        fit(full, workdir=workdir, resume=True)


@pytest.fixture(scope="module")
def dead(full, tmp_path_factory):
    """The work directory of a run that died."""
    workdir = tmp_path_factory.mktemp("dead") / "run"
    with pytest.raises(Killed):
        fit(full, workdir=workdir, events=[an.Event(an.Every(steps=17), die)])
    return workdir


@pytest.mark.parametrize("damage", [_truncate, _flip, _lose_record, _change_record, _lose_manifest])
def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_is_used(full, whole, dead, copied, capsys, damage):
    workdir = copied(dead)
    steps = Checkpoints(workdir).steps()
    damage(workdir / "checkpoints" / str(steps[-1]))
    same(fit(full, workdir=workdir, resume=True), whole)
    said = capsys.readouterr().err
    assert f"checkpoints/{steps[-1]} is damaged" in said and f"going on from step {steps[-2]}" in said
    assert list((workdir / "checkpoints").glob(f"damaged-{steps[-1]}-*"))


def test_a_damaged_checkpoint_that_was_asked_for_is_named_beside_the_others(full, whole, copied):
    workdir = copied(whole.result["workdir"])
    *others, newest = Checkpoints(workdir).steps()
    _flip(workdir / "checkpoints" / str(newest))
    with pytest.raises(an.UserError, match=rf"/{newest} is damaged .*: there are also those of the steps \{others}"):
        Checkpoints(workdir).read_record(newest)
    assert an.evaluate(full, workdir, splits=[]).step == others[-1]


def test_no_flipped_bit_of_any_file_of_a_checkpoint_is_accepted(dead, copied):
    workdir, rng = copied(dead), random.Random(0)
    checkpoints = Checkpoints(workdir)
    newest = workdir / "checkpoints" / str(checkpoints.steps()[-1])
    files = [path for path in newest.rglob("*") if path.is_file()]
    assert len(files) > 8
    for path in files:
        content = path.read_bytes()
        for _ in range(20):
            flipped = bytearray(content)
            flipped[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
            path.write_bytes(flipped)
            with pytest.raises(an.UserError, match=rf"is damaged \({path.relative_to(newest)} is not what was written"):
                checkpoints.read_record(int(newest.name))
        path.write_bytes(content)
    assert checkpoints.read_record(int(newest.name))


@pytest.mark.slow
@pytest.mark.parametrize("file", ["metrics.jsonl", "checkpoints/rows.jsonl", "config.json"])
@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_text("[[[\n")])
def test_files_beside_the_checkpoints_are_mended_from_others(full, whole, dead, copied, capsys, file, damage):
    workdir = copied(dead)
    damage(workdir / file)
    same(fit(full, workdir=workdir, resume=True), whole)
    assert "damaged" not in capsys.readouterr().err
    assert (workdir / file).read_text() and (workdir / "result.json").exists()
    rows = [[json.loads(line) for line in path.read_text().splitlines()] for path in row_files(workdir)]
    assert rows[0] == rows[1] and len(rows[0]) == len(whole.rows)


@pytest.mark.slow
def test_rows_that_are_lost_cost_no_weights(full, whole, dead, copied, capsys):
    workdir = copied(dead)
    for path in row_files(workdir):
        path.write_text(path.read_text()[:400])
    run = fit(full, workdir=workdir, resume=True)
    chex.assert_trees_all_equal(run.state, whole.state)
    assert run.metrics == whole.metrics and rows_of(run)[0] == rows_of(whole)[0] and len(run.rows) < len(whole.rows)
    assert "rows after step" in capsys.readouterr().err


@pytest.mark.slow
def test_what_a_killed_process_left_half_written_is_removed(full, whole, dead, copied):
    workdir = copied(dead)
    left = [workdir / "checkpoints" / ".saving-21" / "state", workdir / "checkpoints" / ".deleting-4-1"]
    for path in left:
        path.mkdir(parents=True)
    (workdir / ".result.json.0123abcd.tmp").write_text("{")
    (workdir / ".my.tmp").write_text("of the user's own")
    same(fit(full, workdir=workdir, resume=True), whole)
    assert sorted(path.name for path in workdir.glob(".*")) == [".lock", ".my.tmp"]
    assert not list((workdir / "checkpoints").glob(".*"))


def _move(workdir):
    workdir.rename(workdir.with_name("elsewhere"))
    return rf"is {workdir.with_name('elsewhere')} now, with what was saved: go on there"


def _delete(workdir):
    shutil.rmtree(workdir.rename(workdir.with_name("bin")), ignore_errors=True)  # the last save may go on in there
    return "it is nowhere now"


def _replace(workdir):
    said = _move(workdir)
    # The last save may go on among the checkpoints.
    shutil.copytree(workdir.with_name("elsewhere"), workdir, ignore=shutil.ignore_patterns("checkpoints"))
    return said


@pytest.mark.slow
@pytest.mark.parametrize("change", [_move, _delete, _replace])
def test_a_work_directory_that_is_taken_away_ends_the_run(full, whole, tmp_path, change):
    said = []

    def act(moment):
        if moment.step == 10:
            while not list((tmp_path / "run" / "checkpoints").glob("8/record.json")):
                time.sleep(0.01)
            said.append(change(tmp_path / "run"))

    with pytest.raises(an.UserError, match="moved, deleted or replaced during the run") as error:
        fit(full, workdir=tmp_path / "run", events=[an.Event(an.Every(steps=5), act)])
    assert re.search(said[0], str(error.value))
    if change is _move:
        assert not (tmp_path / "run").exists(), "nothing is written where the directory was"
    if change is not _delete:
        same(fit(full, workdir=tmp_path / "elsewhere", resume=True), whole)


@pytest.mark.slow
def test_the_last_and_the_best_checkpoints_are_kept_and_no_others_are_written(full, tmp_path, monkeypatch):
    rhythms = {"eval_every": an.Every(steps=3), "save_every": an.Every(steps=1000)}
    experiment = full.replace(keep_last=2, keep_best=1, best_metric="accuracy", **rhythms)
    written, save = [], Saver.save
    spy = lambda self, state, *args, **rest: (written.append(int(state.step)), save(self, state, *args, **rest))  # noqa: E731
    monkeypatch.setattr(Saver, "save", spy)
    run = fit(experiment, workdir=tmp_path / "run")
    scores = {row["step"]: row["accuracy"] for row in run.rows if row["split"] == "validation"}
    records = [step for step in scores if scores[step] > max((scores[s] for s in scores if s < step), default=-1)]
    assert written == sorted({*records, run.step}) and len(records) < len(scores) - 1
    checkpoints = Checkpoints(tmp_path / "run", complete=partial(with_rows, tmp_path / "run", print))
    kept = checkpoints.steps()
    assert kept[-1] == run.step and kept == sorted({*written[-2:], records[-1]})
    assert scores[best_step(checkpoints, "accuracy", False)] == max(scores.values()) > min(scores.values())
    metrics = an.evaluate(experiment, tmp_path / "run", best=True).metrics
    assert metrics["validation"]["accuracy"] == pytest.approx(max(scores.values()))


def test_evaluating_changes_nothing_in_the_directory(full, dead, copied, capsys):
    workdir = copied(dead)
    checkpoints = workdir / "checkpoints"
    (checkpoints / ".saving-99").mkdir()  # as of a process that is saving right now
    steps = Checkpoints(workdir).steps()
    _flip(checkpoints / str(steps[-1]))
    before = sorted(path.name for path in checkpoints.iterdir())
    assert an.evaluate(full, workdir).step == steps[-2] and "is damaged" in capsys.readouterr().err
    assert sorted(path.name for path in checkpoints.iterdir()) == before


@pytest.mark.slow
def test_a_full_disk_during_a_save_is_one_message_and_harms_nothing(make_experiment, tmp_path):
    big = make_experiment(
        model=lambda rngs: an.models.MLP(16, (400, 400), 3, rngs=rngs), optimizer=optax.sgd(0.01), steps=3
    )
    fit(big, workdir=tmp_path / "run")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # a file system that is full for large files
    try:
        with pytest.raises(an.UserError, match=r"checkpoint could not be written .* unharmed"):
            fit(dataclasses.replace(big, steps=6), workdir=tmp_path / "run", resume=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert Checkpoints(tmp_path / "run").steps() == [3]
    assert fit(dataclasses.replace(big, steps=6), workdir=tmp_path / "run", resume=True).step == 6


def test_where_no_directory_can_be_made_nothing_is_left_waiting(full, tmp_path, monkeypatch):
    make = os.mkdir

    def refuse(path, *args, **options):
        if "orbax" in str(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        make(path, *args, **options)

    monkeypatch.setattr(os, "mkdir", refuse)
    before = set(threading.enumerate())
    with pytest.raises(an.UserError, match=r"checkpoint could not be written .* No space left"):
        fit(full, workdir=tmp_path / "run")
    # Python waits for them when it ends.
    assert [thread.name for thread in set(threading.enumerate()) - before if not thread.daemon] == []


def test_two_processes_do_not_share_a_work_directory(full, tmp_path):
    def again(moment):
        with pytest.raises(an.UserError, match="another process is training in"):
            fit(full, workdir=tmp_path / "run", resume=True)
        return True

    assert fit(full, workdir=tmp_path / "run", events=[an.Event(an.Every(steps=2), again)]).step == 2


def test_a_checkpoint_of_another_model_is_refused_by_what_differs(make_experiment, plain_model, tmp_path):
    fit(make_experiment(steps=3), workdir=tmp_path / "run")
    with pytest.raises(an.UserError, match=r"changed: model is another\. Give the old values, or --allow-change"):
        fit(make_experiment(steps=4, model=plain_model), workdir=tmp_path / "run", resume=True)
    with pytest.raises(an.UserError, match="is of another model or optimizer: it and the experiment differ in"):
        fit(make_experiment(steps=4, model=plain_model), workdir=tmp_path / "run", resume=True, allow_change=True)


def test_a_place_that_cannot_be_written_is_one_message(make_experiment, tmp_path):
    (tmp_path / "file").write_text("not a directory")
    with pytest.raises(an.UserError, match="cannot be written"):
        fit(make_experiment(steps=2), workdir=tmp_path / "file" / "run")


@pytest.mark.parametrize("name", ["a[1]", "a\\b"])
def test_a_path_from_which_nothing_can_be_read_back_is_refused_before_the_first_step(make_experiment, tmp_path, name):
    with pytest.raises(an.UserError, match="cannot read a checkpoint back"):
        fit(make_experiment(steps=2), workdir=tmp_path / name)
    assert not (tmp_path / name).exists()


def test_config_json_holds_what_was_run(make_experiment, tmp_path):
    fit(make_experiment(steps=3, config={"rate": 0.1, "path": Path("x")}), workdir=tmp_path / "run")
    content = json.loads((tmp_path / "run" / "config.json").read_text())
    assert content["config"] == {"rate": 0.1, "path": "x"}
    assert content["description"]["steps"] == 3
