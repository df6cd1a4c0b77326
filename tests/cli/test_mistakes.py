"""Mistakes on the command line and in a script: one message, the promised exit code, and no traceback of accelnet."""

import dataclasses
import functools
import inspect
import json
from dataclasses import dataclass
from pathlib import Path

import pytest

import accelnet as an
from experiments import xor_mlp
from tests.cli.conftest import Config, small

XOR_MISTAKES = [
    (("train", "--mesh", "data=3"), "such as --mesh data=8"),
    (("train", "--mesh", "data"), "expected axes and their sizes"),
    (("train", "--learning-rte", "0.1"), "--learning-rate"),
    (("train", "--learning-rate", "-1"), "learning_rate is -1"),
    (("train", "--steps", "0"), "steps is 0, expected a whole number from 1 to 2147483647"),
    (("train", "--steps", "many"), "many"),
    (("trian",), "train"),
    (("train", "--resume"), "--resume needs --workdir"),
    (("evaluate", "--workdir", "/nowhere/at/all"), "holds no run"),
    (("train", "--steps", "3", "--workdir", "/proc/no"), "cannot be written"),
    (("tune",), "Give one or two fields"),
    (("tune", "learning_rte"), "no field that can vary, expected a number of the Config's: learning_rate"),
    (("tune", "learning_rate", "--range", "1:1e-4"), "learning_rate"),
    (("tune", "learning_rate", "--range", "-1:1"), "learning_rate"),
    (("tune", "learning_rate", "--range", "all"), "such as 1e-4:1"),
    (("tune", "learning_rate", "--seeds", "1"), "seeds"),
    (("compare",), "nothing to compare"),
    (("compare", "--optimizers", "sgd,adma"), "adma"),
    (("compare", "--set", "learning_rate=0.1"), "learning_rate is tuned for every candidate"),
    (("compare", "--set", "size=3"), "expected field=value of:"),
    (("compare", "--optimizers", "sgd,adam", "--seeds", "3"), "3 seeds cannot show any difference"),
    (("find-batch",), "a batch size of at most half the training split"),
    (("plan", "--budget", "much"), "much"),
    (("plan", "--abstract", "--measure", "--targets", "v5f:2x2"), "v5f"),
    (("compare-runs", "/nowhere/at/all"), "/nowhere/at/all"),
    (("plan", "--targets", "h1000"), "h1000"),
    (("plan", "--targets", "v5e:3x3"), "v5e"),
]
SMALL_MISTAKES = [
    ((), "Expected one of"),
    (("help",), "there is no verb help"),
    (("train", "extra"), "extra"),
    (("train", "--steps", "1e3"), "1e3"),
    (("train", "--width", "1.5"), "1.5"),
    (("train", "--width", "0"), "hidden_features is 0, expected a whole number of at least 1"),
    (("train", "--seed", "-1"), "seed is -1, expected a whole number from 0 to 4294967295"),
    (("train", "--dropout", "2"), "dropout is 2.0, expected a finite number of at least 0 and below 1"),
    (("train", "--learning-rate", "nan"), "learning_rate is nan"),
    (("train", "--mesh", ""), "the mesh is ''"),
    (("train", "--mesh", "data=0"), "the mesh is 'data=0'"),
    (("train", "--cpu-devices", "0"), "--cpu-devices is 0, expected 1 to 1024"),
    (("train", "--cpu-devices", "-1"), "--cpu-devices is -1, expected 1 to 1024"),
    (("train", "--cpu-devices", "100000"), "--cpu-devices is 100000, expected 1 to 1024"),
    (("train", "--cpu-devices", "3"), "this process computes on 8 cpu devices already"),
    (("tune", "learning_rate", "--cpu-devices", "100000"), "--cpu-devices is 100000, expected 1 to 1024"),
    (("train", "--hang-timeout", "nan"), "--hang-timeout is nan, expected seconds above 0"),
    (("train", "--num-processes", "2"), "no coordinator"),
    (("train", "--workdir", ""), "the path is empty"),
    (("train", "--workdir="), "the path is empty"),
    (("train", "--workdir", "a%2Fb"), "has '%' in its path"),
    (("train", "--workdir", "a#b?c"), "has '#' and '?' in its path"),
    (("tune", "learning_rate", "--workdir", " "), "the path is empty"),
    (("compare-runs", ""), "Could not find valid parse"),
    (("tune", "width"), "width is a whole number"),
    (("tune", "widths"), "no field that can vary"),
    (("tune", "seed"), "no field that can vary"),
    (("tune", "learning_rate", "--points", "0"), "points is 0, expected a whole number of at least 2"),
    (("tune", "learning_rate", "--points", "-3"), "points is -3, expected a whole number of at least 2"),
    (("tune", "learning_rate", "--budget", "0"), "the budget is 0"),
    (("tune", "learning_rate", "--metric", "nope"), "there is no metric 'nope', only: loss, accuracy"),
    (("tune", "learning_rate", "learning_rate"), "give each field once"),
    (("tune", "learning_rate", "dropout", "steps"), "give"),
    (("compare", "--set", ""), "--set is empty, expected field=value of: learning_rate, width"),
    (("compare", "--set", " "), "--set is empty"),
    (("compare", "--set", "width"), "expected field=value of:"),
    (("compare", "--set", "width=abc"), "abc"),
    (("compare", "--set", "widths=1,x"), "widths"),
    (("compare", "--optimizers", ","), "nothing to compare"),
    (("compare", "--optimizers", "sgd,sgd"), "optimizers has 'sgd' more than once"),
    (("compare", "--optimizers", "sgd,adam", "--target", "nan"), "--target is nan"),
    (("compare", "--optimizers", "sgd,adam", "--alpha", "2"), "alpha is 2.0"),
    (("compare", "--optimizers", "sgd,adam", "--rates", "0"), "rates are [0.0]"),
    (("compare", "--variants", "nothere.py"), "nothere.py is no Python file"),
    (("compare", "--variants", "."), "is no Python file"),
    (("find-batch", "--points", "0"), "points is 0"),
    (("plan", "--abstract", "--targets", ","), "no target was given"),
    (("plan", "--compile-seconds", "nan"), "--compile-seconds is nan"),
    (("plan", "--abstract", "--budget", "-1usd"), "the budget is '-1usd'"),
    (("plan", "--abstract", "--deadline", "nanh"), "the deadline is 'nanh'"),
    (("plan", "--abstract", "--mesh", "data=zero"), "the mesh is 'data=zero'"),
    (("plan", "--abstract", "--targets-file", "/nope.toml"), "/nope.toml"),
    (("plan", "--prove", "--measure"), "--prove stands alone, without --measure"),
    (("targets", "--family", "zzz"), "'zzz' begins no name"),
    (("summary", "--mesh", "x"), "the mesh is 'x'"),
    (("evaluate",), "--workdir"),
    (("train", "--lr", "1"), "train has no flag --lr: did you mean --learning-rate? see"),
    (("train", "--wdth", "8"), "did you mean --width or --widths"),
    (("tune", "learning_rate", "--pints=3"), "did you mean --points"),
    (("train", "--config", "nowhere.json"), "--save-config nowhere.json writes one"),
    (("train", "--fast-dev-run", "--workdir", "run"), "--fast-dev-run keeps nothing"),
    (("train", "--overfit-batches", "5"), "the number of batches to overfit is 5, expected a whole number from 1 to 4"),
    (("plan", "--abstract", "--tuned", "/nowhere"), "holds neither tune.json nor compare.json"),
]


@pytest.mark.parametrize(
    ("function", "args", "words"),
    [(xor_mlp.experiment, *row) for row in XOR_MISTAKES] + [(small, *row) for row in SMALL_MISTAKES],
)
def test_a_mistake_is_one_message_with_exit_code_two(command, function, args, words):
    done = command(function, *args)
    assert done.code == 2, done
    said = done.err + done.out
    assert words in said and "Traceback" not in said
    assert said.count("error: ") <= 1 and said.count("the mesh is") <= 1


@dataclass(frozen=True)
class Inner:
    a: int = 1


@dataclass(frozen=True)
class Nested:
    model: Inner = dataclasses.field(default_factory=Inner)


@dataclass(frozen=True)
class Required:
    width: int
    steps: int = 1


@dataclass(frozen=True)
class Unknown:
    a: "Nowhere" = 1  # noqa: F821


def nested(config: Nested): ...
def required(config: Required): ...
def unknown(config: Unknown): ...
def unannotated(config): ...
def annotated_otherwise(config: int): ...
def unresolved(config: "Nowhere"): ...  # noqa: F821
def two(config: Config, other: Config): ...
def returns_nothing(config: Config): ...


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (nested, "Nested.model is a dataclass itself: put its fields into Nested"),
        (required, "Required has fields without a default: width"),
        (unknown, "the annotations of Unknown cannot be read: name 'Nowhere' is not defined"),
        (unannotated, "unannotated has no annotation, expected a function with one parameter"),
        (annotated_otherwise, "annotated_otherwise has the annotations config: int"),
        (unresolved, "the annotations of unresolved cannot be read"),
        (two, "two has the annotations config: Config, other: Config"),
        (returns_nothing, "returns_nothing(config) returned NoneType, expected an Experiment"),
        (lambda config: 1, "<lambda> has no annotation"),
        (functools.partial(small), "main was given an object of type partial"),
        (3, "main was given an object of type int"),
        (Config, "main was given Config"),
    ],
)
def test_a_script_that_says_no_config_is_told_what_a_config_is(command, function, words):
    done = command(function, "train")
    assert done.code == 2, done
    assert done.err.startswith("error: ") and words in done.err and len(done.err.splitlines()) == 1


def fails(config: Config):
    return {}["width"]


def fails_in_accelnet(config: Config):
    return an.models.MLP(3, (4,), 2)


def fails_in_jax(config: Config):
    import jax.numpy as jnp

    return jnp.ones((2, 3)) @ jnp.ones((2, 3))


def frames(text):
    return [line.split('"')[1] for line in text.splitlines() if line.startswith('  File "')]


@pytest.mark.parametrize(
    ("function", "line", "error"),
    [
        (fails, 'return {}["width"]', "KeyError: 'width'"),
        (fails_in_accelnet, "return an.models.MLP(3, (4,), 2)", "TypeError: "),
        (fails_in_jax, "return jnp.ones((2, 3)) @ jnp.ones((2, 3))", "TypeError: "),
    ],
)
def test_an_error_in_the_scripts_function_shows_its_own_frames_alone(command, function, line, error):
    done = command(function, "train")
    assert done.code == 1
    assert done.err.startswith(f"error: {function.__name__}(config) failed:\n")
    assert frames(done.err) == [__file__] and f"    {line}\n" in done.err and f"\n{error}" in done.err
    assert "removed its internal frames" not in done.err


def test_an_error_after_training_is_the_users_and_what_was_trained_stays(command, tmp_path):
    def after(run):
        return run.nothing

    done = command(small, "train", "--quiet", "--workdir", str(tmp_path / "run"), after_train=after)
    assert done.code == 1 and done.err.startswith("error: after_train(run) failed:\n")
    assert frames(done.err) == [__file__] and "has no attribute 'nothing'" in done.err
    assert json.loads((tmp_path / "run" / "result.json").read_text())["step"] == 4


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        ("1 / 0", 1, "failed:\n"),
        ("def experiment(config): ...", 2, "experiment has no annotation"),
        ("def f(:", 2, "cannot be loaded: invalid syntax"),
        ("import nowhere_at_all", 2, "cannot be loaded: No module named 'nowhere_at_all'"),
        ("x = 1", 2, "has no function `experiment`"),
        ("raise SystemExit(0)", 2, "ended the process when it was loaded"),
        (f"{inspect.getsource(Config)}\ndef experiment(config: Config): raise KeyError('x')", 1, "KeyError: 'x'"),
        (f"{inspect.getsource(Inner)}\ndef experiment(config: Inner): ...", 2, "learning_rate is no field"),
    ],
)
def test_a_variant_that_is_wrong_is_named(command, tmp_path, text, code, words):
    path = tmp_path / "variant.py"
    path.write_text(f"from dataclasses import dataclass\n\n{text}\n")
    done = command(small, "compare", "--variants", str(path), "--quiet")
    assert done.code == code, done
    assert done.err.startswith("error: ") and words in done.err
    assert set(frames(done.err)) <= {str(path)}


def test_an_empty_path_fills_no_directory(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert command(small, "train", "--workdir", "").code == 2
    assert list(tmp_path.iterdir()) == []


def test_a_run_keeps_to_its_directory_wherever_the_script_goes(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()

    def wandering(config: Config) -> an.Experiment:
        monkeypatch.chdir(tmp_path / "elsewhere")
        return small(config)

    done = command(wandering, "train", "--quiet", "--workdir", "run")
    assert done.code == 0, done
    assert f"kept in {tmp_path / 'run'}" in done.out
    assert (tmp_path / "run" / "result.json").exists() and not list((tmp_path / "elsewhere").iterdir())


@pytest.mark.parametrize("content", ["[" * 100_000, "[]", "null", '{"description": 1, "config": 2}', "{"])
def test_a_damaged_configuration_is_a_message(command, tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    for args in (("evaluate", "--workdir"), ("compare-runs",), ("train", "--resume", "--workdir")):
        done = command(small, *args, str(tmp_path))
        assert done.code == 2 and "config.json cannot be read as a run's configuration" in done.err
    assert Path(tmp_path / "config.json").read_text() == content
