import math
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from accelnet.training.curves import curves, to_png


def make_rows(steps: range, split: str = "train", **metrics: Any) -> list[dict[str, Any]]:
    return [
        {"step": step, "epoch": step / 10, "seconds": 1.0, "split": split, "examples_per_second": 1e4}
        | {name: values(step) for name, values in metrics.items()}
        for step in steps
    ]


def legend(axes: Any) -> list[str]:
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_there_is_a_panel_for_each_metric_and_the_rate():
    rows = make_rows(
        range(1, 5), accuracy=lambda step: step / 5, loss=lambda step: 1 / step, learning_rate=lambda _: 0.1
    )
    figure = curves(rows, "a run")
    assert [axes.get_title() for axes in figure.axes] == ["Loss", "Accuracy", "Learning rate"]
    assert {axes.get_xlabel() for axes in figure.axes} == {"step"}
    assert figure.get_suptitle() == "a run"


def test_lines_hold_the_rows_of_their_split():
    train = make_rows(range(1, 6), loss=lambda step: 6.0 - step)
    validation = make_rows(range(2, 6, 2), "validation", loss=lambda step: 7.0 - step)
    (axes,) = curves(train + validation).axes
    lines = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
    assert lines["train"] == [[step, 6.0 - step] for step in range(1, 6)]
    assert lines["validation"] == [[2, 5.0], [4, 3.0]]


@pytest.mark.parametrize(
    ("name", "best"),
    [("loss", "best validation: 1 at step 40"), ("accuracy", "best validation: 4 at step 10")],
)
def test_the_best_value_of_validation_is_written_down(name, best):
    values = {10: 4.0, 20: 3.0, 30: math.nan, 40: 1.0, 50: 2.0}
    rows = make_rows(range(10, 60, 10), **{name: lambda _: 0.5})
    rows += make_rows(range(10, 60, 10), "validation", **{name: values.__getitem__})
    assert best in legend(curves(rows, directions={"loss": True, "accuracy": False}).axes[0])


def test_nothing_is_best_of_a_metric_that_does_not_say_which_is():
    rows = make_rows(range(1, 4), orbits_found=lambda step: 1.0 / step)
    assert not any("best" in text for text in legend(curves(rows, directions={"orbits_found": None}).axes[0]))
    assert "best train: 1 at step 1" in legend(curves(rows, directions={"orbits_found": False}).axes[0])


def test_the_best_value_is_of_training_where_nothing_else_is():
    rows = make_rows(range(1, 4), loss=lambda step: 1.0 / step)
    assert "best train: 0.3333 at step 3" in legend(curves(rows).axes[0])


@pytest.mark.parametrize(
    ("largest", "scale"),
    [(2.0, "linear"), (1000.0, "log")],
)
def test_a_loss_over_decades_gets_a_logarithmic_axis(largest, scale):
    rows = make_rows(range(1, 4), loss=lambda step: largest / step**2 if step < 3 else 0.5)
    assert curves(rows).axes[0].get_yscale() == scale


def test_a_loss_of_zero_keeps_a_linear_axis():
    rows = make_rows(range(4), loss=lambda step: 100.0 * step)
    assert curves(rows).axes[0].get_yscale() == "linear"


@pytest.mark.parametrize("lost", [None, math.nan, math.inf])
def test_a_lost_value_is_a_gap_and_is_named(lost):
    rows = make_rows(range(1, 6), loss=lambda step: lost if step in (3, 4) else 1.0)
    (axes,) = curves(rows).axes
    assert np.isnan(axes.lines[0].get_ydata()).tolist() == [False, False, True, True, False]
    assert "not finite at step 3 and 1 more" in legend(axes)


def test_many_points_get_a_running_mean():
    rng = np.random.default_rng(0)
    noise = rng.normal(1.0, 0.1, 5001)
    noise[2000] = math.nan
    (axes,) = curves(make_rows(range(5000), loss=noise.__getitem__)).axes
    raw, smooth = axes.lines[0].get_ydata(), axes.lines[1].get_ydata()
    np.testing.assert_array_equal(raw, noise[:5000])
    # The window is 101 wide: an independent mean of it, away from and over the lost value.
    for middle in (1000, 2010):
        np.testing.assert_allclose(smooth[middle], np.nanmean(noise[middle - 50 : middle + 51]), rtol=1e-12)
    np.testing.assert_allclose(smooth[0], noise[:51].mean(), rtol=1e-12)
    assert np.isnan(smooth[2000])


@pytest.mark.parametrize(
    "rows",
    [
        [],
        make_rows(range(1, 2), loss=lambda _: 1.0, learning_rate=lambda _: 0.1),
        make_rows(range(1, 3), loss=lambda _: math.nan),
        make_rows(range(1, 3), "test", accuracy=lambda _: 1.0),
        make_rows(range(1, 3), loss=lambda _: 0.0, r2=lambda _: -5.0, learning_rate=lambda _: None),
    ],
    ids=["none", "one", "all lost", "test alone", "constant"],
)
def test_strange_rows_are_drawn_without_a_warning(rows):
    assert to_png(curves(rows, "strange")).startswith(b"\x89PNG")


def test_a_test_result_is_shown_as_a_number():
    rows = make_rows(range(1, 4), accuracy=lambda step: step / 4)
    rows += make_rows(range(3, 4), "test", accuracy=lambda _: 0.98765)
    assert "test: 0.9877" in legend(curves(rows).axes[0])


def test_drawing_needs_neither_pyplot_nor_a_display():
    code = """
import sys
from accelnet.training.curves import curves, to_png
assert "matplotlib" not in sys.modules
to_png(curves([{"step": 1, "split": "train", "loss": 1.0}]))
print("matplotlib.pyplot" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "False\n", done.stderr


@pytest.mark.parametrize("name", ["数", "\x1b[2J", "a$b", "$\\frac", "_", ""])
def test_any_name_can_be_drawn(name):
    assert to_png(curves([{"step": 1, "split": "train", name: 2.0}], title=name)).startswith(b"\x89PNG")
