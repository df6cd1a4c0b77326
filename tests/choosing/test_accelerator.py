"""Hardware side by side: this machine measured, the rest predicted, and the limits hold."""

import json

import pytest

import accelnet as an
from accelnet.choosing.accelerator import accelerator_table, choose_accelerator, tuned_settings, write_accelerators
from tests.pages import needs_browser, needs_nothing, shows
from tests.planning.conftest import make_experiment


@pytest.fixture(scope="module")
def chosen():
    settings = {"budget_usd": 1e-3, "deadline_hours": 1.0, "compile": False, "progress": False}
    return choose_accelerator(make_experiment(steps=1_000_000), ["h100", "h100:8", "v5e:2x2"], **settings)


def test_this_machine_is_measured_and_the_rest_predicted(chosen):
    rows = {row["name"]: row for row in chosen["rows"]}
    assert rows["here"]["how"] == "measured" and {row["how"] for row in rows.values()} == {"measured", "predicted"}
    for row in rows.values():
        # Compiling and evaluating beside a million steps.
        steps = 1_000_000 * row["step_seconds"]
        assert steps < row["run_seconds"] < 3 * steps + 60
        assert row["assumption"]
    assert "modelled kernels at stated rates" in rows["h100"]["assumption"] and "price" in rows["h100"]["assumption"]
    times = [row["run_seconds"] for row in chosen["rows"]]
    assert times == sorted(times)


def test_the_limits_are_of_money_and_hours(chosen):
    for row in chosen["rows"]:
        dear = row["usd"] is not None and row["usd"] > 1e-3
        assert row["within"] == (not dear and row["run_seconds"] <= 3600)
    assert any(not row["within"] for row in chosen["rows"])
    shown = accelerator_table(chosen)
    assert "at most 0.001 USD, within 1 hours" in shown and "measured" in shown and "To rent" in shown


def test_the_page_is_whole(chosen, tmp_path):
    text = write_accelerators(chosen, tmp_path).read_text()
    page = needs_nothing(text)
    assert "measured" in page.text and "predicted" in page.text and "list price" in page.text
    assert json.loads((tmp_path / "accelerator.json").read_text()) == chosen


@needs_browser
@pytest.mark.slow
def test_a_browser_shows_it(chosen, browser, tmp_path):
    shows(browser, write_accelerators(chosen, tmp_path / "out").read_text(), tmp_path)


def test_tuned_settings_are_those_recommended_or_the_winners(tmp_path):
    with pytest.raises(an.UserError, match="holds neither"):
        tuned_settings(tmp_path)
    candidates = [{"name": "a", "learning_rate": 0.1}, {"name": "b", "learning_rate": 0.2}]
    (tmp_path / "compare.json").write_text(json.dumps({"winner": "b", "candidates": candidates}))
    assert tuned_settings(tmp_path) == {"learning_rate": 0.2}
    (tmp_path / "tune.json").write_text(json.dumps({"recommended": {"learning_rate": 0.3}}))
    assert tuned_settings(tmp_path) == {"learning_rate": 0.3}
    (tmp_path / "tune.json").write_text("[]")
    with pytest.raises(an.UserError, match="cannot be understood"):
        tuned_settings(tmp_path)
