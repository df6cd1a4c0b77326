"""Every experiment script trains for two steps, on small files in the formats of its data."""

import gzip
import json
import os
import runpy
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]


def write_idx(path, array):
    header = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    with gzip.open(path, "wb") as file:
        file.write(header + array.tobytes())


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Small copies of the data sets: Fashion-MNIST's four files, aeon's series, plotnine's table, a text."""
    root, rng = tmp_path_factory.mktemp("files"), np.random.default_rng(0)
    for name, rows in (("train", 72), ("t10k", 30)):
        write_idx(root / f"{name}-images-idx3-ubyte.gz", rng.integers(0, 255, (rows, 28, 28)).astype(np.uint8))
        write_idx(root / f"{name}-labels-idx1-ubyte.gz", (np.arange(rows) % 10).astype(np.uint8))
    series = root / "packages" / "aeon" / "datasets" / "data" / "JapaneseVowels"
    series.mkdir(parents=True)
    for part, rows in (("TRAIN", 90), ("TEST", 27)):
        lines = ["@problemName JapaneseVowels", "@univariate false", "@dimensions 12", "@equalLength false"]
        lines += ["@classLabel true " + " ".join(str(label) for label in range(1, 10)), "@data"]
        for row in range(rows):
            values = rng.normal(size=(12, 7 + row % 20)).round(4)
            lines.append(":".join(",".join(map(str, one)) for one in values) + f":{row % 9 + 1}")
        (series / f"JapaneseVowels_{part}.ts").write_text("\n".join(lines) + "\n")
    table = root / "packages" / "plotnine" / "data"
    table.mkdir(parents=True)
    for package in ("aeon", "plotnine"):
        (root / "packages" / package / "__init__.py").write_text("")
    grades = (["Fair", "Good", "Very Good", "Premium", "Ideal"], list("DEFGHIJ"), ["SI1", "VS2", "IF", "I1"])
    lines = ["carat,cut,color,clarity,depth,table,price,x,y,z"]
    for row in range(800):
        carat = 0.2 + row % 100 / 50
        cut, color, clarity = (grade[row % len(grade)] for grade in grades)
        lines.append(
            f"{carat},{cut},{color},{clarity},{60 + row % 3},{55 + row % 4},{int(4000 * carat)},{carat},{carat},{carat}"
        )
    (table / "diamonds.csv").write_text("\n".join(lines) + "\n")
    (root / "text.txt").write_text("In the beginning was the Word, and the Word was good.\n" * 600)
    return root


FASHION = ["--epochs", "1", "--batch-size", "32", "--data", "{files}"]
RUNS = {
    "xor_mlp": ["--steps", "2"],
    "digits_mlp": ["--epochs", "0.1"],
    "digits_cnn": ["--epochs", "0.1", "--channels", "8", "16"],
    "fashion_cnn": [*FASHION, "--channels", "8", "16"],
    "fashion_cnn 94": [*FASHION, "--halve", "max", "--channels", "4", "8", "8", "--crop", "1"],
    "fashion_fast": [*FASHION, "--channels", "8", "16"],
    "fashion_rnn": [*FASHION, "--hidden-features", "16"],
    "vowels_rnn": ["--epochs", "0.5"],
    "char_rnn": ["--epochs", "1", "--hidden-features", "16", "--batch-size", "64", "--data", "{files}/text.txt"],
    "diamonds_mlp": ["--epochs", "1"],
}


def test_every_script_has_a_run_here():
    assert {run.split()[0] for run in RUNS} == {path.stem for path in (ROOT / "experiments").glob("*.py")}


@pytest.fixture
def script(monkeypatch, capsys):
    """Return a function that runs a script in this process, as Python does, and says how it ended."""

    def run(name, *args, packages):
        path = str(ROOT / "experiments" / f"{name}.py")
        monkeypatch.syspath_prepend(packages)
        monkeypatch.setattr(sys, "argv", [path, "train", *args])
        capsys.readouterr()
        try:
            runpy.run_path(path, run_name="__main__")
        except SystemExit as end:
            return end.code, *capsys.readouterr()
        return 0, *capsys.readouterr()

    return run


def assert_trained(name, code, out, err, workdir):
    assert code == 0, err
    result = json.loads(out.splitlines()[-1])
    assert result["experiment"] == name and result["step"] >= 2 and set(result["compiles"].values()) == {1}
    losses = [metrics["loss"] for metrics in result["metrics"].values() if metrics]
    assert losses and np.isfinite(losses).all()
    assert (workdir / "curves.png").stat().st_size > 10_000


@pytest.mark.parametrize("run", RUNS)
def test_every_experiment_trains_evaluates_and_leaves_its_results(run, script, files, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    name, args = run.split()[0], [argument.format(files=files) for argument in RUNS[run]]
    done = script(name, *args, "--workdir", "run", "--json", packages=files / "packages")
    assert_trained(name, *done, tmp_path / "run")


def test_an_experiment_is_a_script_of_a_process_of_its_own(tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / "experiments" / "xor_mlp.py", "train", *RUNS["xor_mlp"], "--workdir", "run", "--json"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert_trained("xor_mlp", done.returncode, done.stdout, done.stderr, tmp_path / "run")


@pytest.mark.parametrize(
    ("name", "args", "command"),
    [
        ("fashion_cnn", ["--data", "{nothing}"], "give a directory that holds it"),
        ("vowels_rnn", [], "pip install --no-deps aeon"),
        ("diamonds_mlp", [], "pip install --no-deps plotnine"),
        ("char_rnn", ["--data", "{nothing}/text.txt"], "text.txt"),
    ],
)
def test_where_data_is_missing_the_message_says_how_to_get_it(name, args, command, script, tmp_path):
    # An installed package is hidden by an empty one of the same name.
    for package in ("aeon", "plotnine"):
        (tmp_path / "packages" / package).mkdir(parents=True)
        (tmp_path / "packages" / package / "__init__.py").write_text("")
    code, _, err = script(name, *[a.format(nothing=tmp_path) for a in args], packages=tmp_path / "packages")
    assert code == 2, err
    assert command in err and "Traceback" not in err
