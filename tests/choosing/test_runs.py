"""Runs side by side: what they left is read, and nothing else."""

import json
import os

import pytest

import accelnet as an
from accelnet.choosing.runs import compare_runs, runs_table
from accelnet.choosing.runs_page import runs_page
from tests.damage import damaged, read_or_message
from tests.pages import needs_browser, needs_nothing, shows

HOSTILE = """<script>alert("x")</script>"""


DIRECTIONS = {"loss": True, "accuracy": False}


def write_run(
    path,
    rate,
    *,
    finished=True,
    loss=0.5,
    name="digits",
    rows=40,
    data="3a",
    objective="softmax",
    directions=DIRECTIONS,
):
    path.mkdir(parents=True)
    description = {"experiment": name, "data": data, "steps": rows, "seed": 0, "learning_rate": rate}
    said = {} if directions is None else {"directions": directions, "objective": objective}
    config = {"description": description, "config": {"learning_rate": rate}, **said}
    (path / "config.json").write_text(json.dumps(config))
    lines = []
    for step in range(1, rows + 1):
        row = {"step": step, "epoch": step / 10, "seconds": 0.1 * step, "learning_rate": rate}
        lines.append(row | {"split": "train", "loss": loss + 1 / step, "accuracy": 1 - 1 / (step + 1)})
        if step % 10 == 0:
            worse = 0.1 if step > 30 else 0.0
            lines.append(row | {"split": "validation", "loss": loss + 1 / step + worse, "accuracy": 0.5 + step / 100})
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if finished:
        metrics = {split: {"loss": loss, "accuracy": 1 - loss} for split in ("train", "validation", "test")}
        timing = {"total_seconds": 0.1 * rows, "examples_per_second": 1000.0}
        result = {"experiment": name, "step": rows, "epochs": rows / 10, "metrics": metrics, "parameters": 1234}
        (path / "result.json").write_text(json.dumps(result | {"timing": timing, "devices": ["cpu"], "seed": 0}))
    return path


@pytest.fixture
def three(tmp_path):
    runs = [write_run(tmp_path / "a", 0.1), write_run(tmp_path / "b", 0.2, loss=0.3)]
    return [*runs, write_run(tmp_path / HOSTILE.replace("/", ""), 0.1, finished=False, name=HOSTILE), tmp_path]


def test_results_settings_and_curves_come_from_the_files(three):
    values = compare_runs(three)
    first, second, third = values["runs"]
    assert [run["finished"] for run in values["runs"]] == [True, True, False]
    assert second["metrics"]["test"] == {"loss": 0.3, "accuracy": 0.7}
    assert first["curves"]["loss"]["validation"][-1] == [40, 4.0, pytest.approx(0.625)]
    assert first["best"]["loss"] == {"value": pytest.approx(0.5 + 1 / 30), "step": 30}
    assert third["metrics"]["validation"]["accuracy"] == pytest.approx(0.9) and third["step"] == 40
    assert values["differing"]["learning_rate"] == {"a": 0.1, "b": 0.2, third["name"]: 0.1}
    assert set(values["differing"]) == {"experiment", "learning_rate"}
    assert values["left_out"] == [str(three[-1])]
    shown = runs_table(values)
    assert "b " in shown and "0.3" in shown and "unfinished" in shown and "learning_rate" in shown


def test_the_best_is_marked_where_a_metric_says_which_it_is(tmp_path):
    directions = {"loss": True, "accuracy": None}
    runs = [write_run(tmp_path / n, 0.1, loss=v, directions=directions) for n, v in (("a", 0.5), ("b", 0.3))]
    values = compare_runs(runs)
    assert values["winners"]["test"] == {"loss": ["b"]}
    assert set(values["runs"][0]["best"]) == {"loss"}
    # Of runs that were made before they said it, nothing is known.
    old = [write_run(tmp_path / n, 0.1, loss=v, directions=None) for n, v in (("c", 0.5), ("d", 0.3))]
    values = compare_runs(old)
    assert values["winners"]["test"] == {} and values["runs"][0]["best"] == {}
    assert "✓ 0" not in runs_page(values)


def test_a_higher_value_wins_where_higher_is_better_whatever_the_name(tmp_path):
    directions = {"loss": False, "accuracy": True}
    runs = [write_run(tmp_path / n, 0.1, loss=v, directions=directions) for n, v in (("a", 0.5), ("b", 0.3))]
    values = compare_runs(runs)
    assert values["winners"]["test"] == {"loss": ["a"], "accuracy": ["a"]}
    assert values["runs"][0]["best"]["loss"]["step"] == 40


@pytest.mark.parametrize("other", [{"objective": "squared error"}, {"data": "4b"}])
def test_runs_of_another_objective_or_other_data_are_never_ranked_against_each_other(tmp_path, other):
    runs = [write_run(tmp_path / "a", 0.1), write_run(tmp_path / "b", 0.1, loss=0.1, **other)]
    assert compare_runs(runs)["winners"]["test"] == {}
    runs.append(write_run(tmp_path / "c", 0.1, loss=0.4))
    values = compare_runs(runs)
    assert values["winners"]["test"] == {"loss": ["c"], "accuracy": ["c"]}
    assert "✓ 0.4" in needs_nothing(runs_page(values)).text


def test_values_that_are_undefined_or_not_finite_never_win(tmp_path):
    runs = [write_run(tmp_path / name, 0.1, loss=0.5) for name in "abc"]
    for run, value in zip(runs, (None, float("nan"), 0.9), strict=True):
        result = json.loads((run / "result.json").read_text())
        result["metrics"]["test"]["loss"] = value
        (run / "result.json").write_text(json.dumps(result))
    values = compare_runs(runs)
    assert "loss" not in values["winners"]["test"]  # one value alone is no best
    assert "undefined" in needs_nothing(runs_page(values)).text


def test_long_curves_are_thinned_and_keep_their_end(tmp_path):
    values = compare_runs([write_run(tmp_path / "a", 0.1, rows=5000)])
    curve = values["runs"][0]["curves"]["loss"]["train"]
    assert 100 < len(curve) <= 302 and curve[0][0] == 1 and curve[-1][0] == 5000


def test_runs_of_one_name_are_told_by_their_paths(tmp_path):
    values = compare_runs([write_run(tmp_path / "x" / "run", 0.1), write_run(tmp_path / "y" / "run", 0.1)])
    assert [run["name"] for run in values["runs"]] == [str(tmp_path / "x" / "run"), str(tmp_path / "y" / "run")]
    assert values["differing"] == {}


def test_the_page_is_whole_and_escaped(three, tmp_path):
    values = compare_runs(three, tmp_path / "out")
    text = (tmp_path / "out" / "report.html").read_text()
    shown = needs_nothing(text)
    assert HOSTILE not in text and HOSTILE in shown.text
    assert "✓ 0.3" in shown.text and "unfinished" in shown.text and "Loss" not in shown.all("title")
    assert json.loads((tmp_path / "out" / "compare-runs.json").read_text()) == values


def test_twenty_runs_are_drawn_in_groups(tmp_path):
    runs = [write_run(tmp_path / str(number), 0.1, rows=20) for number in range(20)]
    needs_nothing(runs_page(compare_runs(runs)))


@needs_browser
@pytest.mark.slow
def test_a_browser_shows_it_in_light_and_dark_and_on_a_phone(three, browser, tmp_path):
    shows(browser, runs_page(compare_runs(three)), tmp_path, colors=((0x00, 0x72, 0xB2),))


def test_what_is_no_run_is_told(tmp_path):
    with pytest.raises(an.UserError, match="no runs were given"):
        compare_runs([])
    with pytest.raises(an.UserError, match="holds no run: give work directories"):
        compare_runs([tmp_path])
    run = write_run(tmp_path / "a", 0.1)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 41, "spl')
    assert compare_runs([run])["runs"][0]["step"] == 40  # the last line may be in the making
    (run / "metrics.jsonl").write_text("no row\n" * 2)
    with pytest.raises(an.UserError, match="line 1 is no row of metrics"):
        compare_runs([run])
    (run / "metrics.jsonl").unlink()
    for text in ("{", '{"metrics": 5}', '{"metrics": {"test": 5}}', "[" * 100_000):
        (run / "result.json").write_text(text)
        with pytest.raises(an.UserError, match="cannot be read as a run's result"):
            compare_runs([run])
    (run / "result.json").write_text("{")
    with pytest.raises(an.UserError, match="cannot be read as a run's result"):
        compare_runs([run])


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", "[" * 100_000),
        ("result.json", "[" * 100_000),
        *[("result.json", text) for text in ('{"metrics": 5}', '{"metrics": {"test": 5}}', "5", "[1]")],
        *[("result.json", text) for text in ('{"metrics": {"test": {"loss": "x"}}}', '{"timing": 5}', '{"step": "x"}')],
        *[("metrics.jsonl", f"{row}\n{{}}\n") for row in ("5", "{}", "[" * 100_000)],
        ("metrics.jsonl", '{"step": 1, "split": "train", "loss": "x"}\n{}\n'),
    ],
)  # fmt: skip
def test_a_file_of_another_form_is_named(tmp_path, file, content):
    path = write_run(tmp_path / "a", 0.1)
    (path / file).write_text(content)
    with pytest.raises(an.UserError, match=file):
        compare_runs([path])


@pytest.mark.parametrize("name", ["config.json", "result.json", "metrics.jsonl"])
def test_whatever_part_of_a_file_is_damaged_the_answer_is_one_message_or_a_whole_page(tmp_path, name):
    file = write_run(tmp_path / "a", 0.1, rows=10) / name
    lines = file.read_text().splitlines()
    good = json.loads(lines[0])
    refused = shown = 0
    for content in damaged(good):
        file.write_text("\n".join([json.dumps(content), *lines[1:]]))
        values, message = read_or_message(lambda: compare_runs([tmp_path / "a"]))
        if message is not None:
            refused += 1
            continue
        shown += 1
        for text in (runs_table(values), runs_page(values)):
            assert not {"\x1b", "\x07"} & set(text)
    assert refused and shown


def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(tmp_path):
    run = write_run(tmp_path / "a", 0.1, rows=10)
    for name in ("result.json", "metrics.jsonl"):
        content = (run / name).read_text()
        (run / name).unlink()
        os.mkfifo(run / name)
        with pytest.raises(an.UserError, match=rf"{name} cannot be read as a run's .* \(it is no file\)"):
            compare_runs([run])
        (run / name).unlink()
        (run / name).write_text(content)
