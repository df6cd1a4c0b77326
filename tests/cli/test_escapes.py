"""Names that would steer a terminal, from each kind of file and from the experiment, through every verb that tells."""

import csv
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

import accelnet as an
from tests.cli.conftest import Config, small

OWNED = "\x1b]0;owned\x07"
SHOWN = "\\x1b]0;owned\\x07"


def from_csv(folder):
    path = folder / "a.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(
            [[f"size{OWNED}", f"kind{OWNED}"], *([i % 7, f"{'ab'[i % 2]}{OWNED}"] for i in range(60))]
        )
    return an.data.table(path, target=f"kind{OWNED}"), 1


def from_npz(folder):
    path = folder / f"a{OWNED}.npz"
    np.savez(path, inputs=np.arange(60.0).reshape(60, 1), targets=np.arange(60) % 2)
    return an.data.npz(path, class_names=(f"a{OWNED}", f"b{OWNED}")), 1


def from_ts(folder):
    path = folder / "a.ts"
    rows = [f"{i % 7}.0,1.0:{'ab'[i % 2]}{OWNED}" for i in range(60)]
    header = f"@problemName Toy{OWNED}\n@timeStamps false\n@missing false\n@classLabel true a{OWNED} b{OWNED}\n@data\n"
    path.write_text(header + "\n".join(rows) + "\n")
    return an.data.ts(path, path), None


def assert_harmless(text):
    assert not set("\x1b\x07\x9b\x9d") & set(text), text


@pytest.mark.slow
@pytest.mark.parametrize("source", [from_csv, from_npz, from_ts])
def test_labels_and_names_of_a_file_reach_terminal_and_page_escaped(command, tmp_path, source):
    data, width = source(tmp_path)

    def experiment(config: Config) -> an.Experiment:
        model = (
            (lambda rngs: an.models.RNN(1, 4, 2, rngs=rngs))
            if width is None
            else lambda rngs: an.models.MLP(width, (4,), 2, rngs=rngs)
        )
        return small(config).replace(name=f"toy{OWNED}", data=data, model=model)

    run, page = str(tmp_path / "run"), str(tmp_path / "page")
    commands = (
        ("train", "--workdir", run),
        ("evaluate", "--workdir", run),
        ("summary",),
        ("data", "--workdir", page),
        ("compare-runs", run, "--workdir", page),
    )
    said = ""
    for args in commands:
        done = command(experiment, *args)
        assert done.code == 0, done
        assert_harmless(done.out + done.err)
        said += done.out + done.err
    assert f"toy{SHOWN}" in said
    pages = [path.read_text() for path in tmp_path.rglob("*.html")]
    assert pages
    for text in pages:
        assert_harmless(text)
    assert any(f"toy{SHOWN}" in text for text in pages)


def test_messages_about_a_file_escape_what_they_quote(command, tmp_path):
    bad = tmp_path / f"a{OWNED}.csv"
    bad.write_text(f"size{OWNED},price\nlarge{OWNED},1\n" + "2,3\n3,4\n" * 5)

    def experiment(config: Config) -> an.Experiment:
        return small(config).replace(data=an.data.table(bad, target="price"))

    done = command(experiment, "train")
    assert done.code == 2 and SHOWN in done.err
    assert_harmless(done.out + done.err)

    def steers(config: Config) -> an.Experiment:
        print(f"reads {OWNED}")
        raise ValueError(f"no such label {OWNED}")

    done = command(steers, "train")
    assert done.code == 1 and done.out == f"reads {SHOWN}\n" and f"no such label {SHOWN}" in done.err
    assert_harmless(done.out + done.err)


@pytest.mark.slow
def test_the_arguments_and_the_settings_of_a_run_reach_the_terminal_escaped(command, tmp_path):
    for args in (("train", f"--a{OWNED}"), ("train", "--width", f"4{OWNED}"), ("evaluate", "--workdir", f"no{OWNED}")):
        done = command(small, *args)
        assert done.code == 2 and done.err
        assert_harmless(done.out + done.err)
    run = str(tmp_path / "run")
    assert command(small, "train", "--quiet", "--workdir", run).code == 0
    config = tmp_path / "run" / "config.json"
    settings = json.loads(config.read_text())
    settings["config"]["width"] = settings["description"]["seed"] = OWNED
    config.write_text(json.dumps(settings))
    shutil.rmtree(tmp_path / "run" / "checkpoints")  # which have the settings too
    done = command(small, "train", "--resume", "--workdir", run)
    assert done.code == 2 and SHOWN in done.err
    assert_harmless(done.out + done.err)


UNCAUGHT = """
import dataclasses, warnings
import accelnet as an
from accelnet.cli import entry

@dataclasses.dataclass(frozen=True)
class Config:
    a: int = 0

def experiment(config: Config) -> an.Experiment:
    return None

def parse(*_):
    warnings.warn("\\x1b]0;owned\\x07")
    raise RuntimeError("\\x1b]0;owned\\x07")

entry._parse = parse
an.main(experiment)
"""


def test_an_exception_that_nobody_catches_is_shown_escaped():
    done = subprocess.run([sys.executable, "-c", UNCAUGHT], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "Traceback" in done.stderr and f"RuntimeError: {SHOWN}" in done.stderr
    assert f"UserWarning: {SHOWN}" in done.stderr
    assert_harmless(done.stderr)
