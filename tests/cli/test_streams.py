"""Output of commands on streams of all kinds. A process is started only where the streams of a process are tested."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import accelnet as an
from experiments import xor_mlp
from tests.cli.conftest import Config, small

ROOT = Path(__file__).parents[2]
XOR = str(ROOT / "experiments" / "xor_mlp.py")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_every_verb_that_shows_a_table_does_so_on_a_terminal_of_few_characters(monkeypatch, tmp_path, encoding):
    run = str(tmp_path / "run")
    for args in [
        ("train", "--workdir", run),
        ("evaluate", "--workdir", run),
        ("data", "--workdir", str(tmp_path / "data")),
        ("summary",),
        ("summary", "--mesh", "data=2,fsdp=2"),
        ("plan", "--abstract", "--targets", "v5e:2x2,cpu"),
        ("plan", "--abstract", "--targets", "v5e:1x1", "--deadline", "1h"),
        ("targets",),
        ("targets", "--family", "tpu"),
        ("compare-runs", run, "--workdir", str(tmp_path / "page")),
    ]:
        streams = [io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict") for _ in range(2)]
        monkeypatch.setattr(sys, "stdout", streams[0])
        monkeypatch.setattr(sys, "stderr", streams[1])
        an.main(small, args)
        shown = streams[0].buffer.getvalue().decode(encoding)
        assert len(shown.splitlines()) >= 2 and "?" not in shown, (args, shown)


@pytest.mark.parametrize("args", [("--help",), ("train", "--help"), ("train", "--stops", "3")])
def test_help_and_messages_of_the_parser_are_plain_on_an_ascii_terminal(monkeypatch, args):
    streams = [io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="strict") for _ in range(2)]
    monkeypatch.setattr(sys, "stdout", streams[0])
    monkeypatch.setattr(sys, "stderr", streams[1])
    with pytest.raises(SystemExit) as end:
        an.main(small, args)
    assert end.value.code == (0 if "--help" in args else 2)
    said = b"".join(stream.buffer.getvalue() for stream in streams).decode("ascii")
    assert "train" in said


def shell(text, **variables):
    """Run a line of the shell, in which $RUN is a script's command line; return its code, output and messages."""
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    environment |= {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error", "RUN": f"{sys.executable} {XOR}"} | variables
    done = subprocess.run(["/bin/bash", "-c", text], capture_output=True, text=True, timeout=300, env=environment)
    return done.returncode, done.stdout, done.stderr


TRAIN = "$RUN train --steps 3 --workdir"


@pytest.mark.slow
@pytest.mark.parametrize("streams", ["<&- >&- 2>&-", "2>/dev/full"])
def test_a_training_whose_streams_are_gone_trains(tmp_path, streams):
    code, _, said = shell(f"{TRAIN} {tmp_path}/run {streams}")
    assert code == 0, said
    assert "Traceback" not in said and "Exception ignored" not in said
    assert json.loads((tmp_path / "run" / "result.json").read_text())["step"] == 3
    run = an.evaluate(xor_mlp.experiment(xor_mlp.Config(steps=3)), tmp_path / "run")  # nothing else is in the files
    assert np.isfinite(run.metrics["train"]["loss"])


@pytest.mark.slow
def test_a_reader_who_leaves_early_is_no_error(tmp_path):
    code, out, said = shell("set -o pipefail; $RUN targets | head -1")
    assert (code, said) == (0, "") and len(out.splitlines()) == 1
    code, _, said = shell(f"set -o pipefail; {TRAIN} {tmp_path}/run --quiet --json | true")
    assert (code, said) == (0, "") and (tmp_path / "run" / "result.json").exists()


@pytest.mark.slow
def test_results_that_do_not_fit_on_the_disk_are_missed():
    code, _, said = shell("$RUN targets >/dev/full")
    assert code == 2
    assert said == "error: the results could not be written to standard output: No space left on device\n"


@pytest.mark.slow
@pytest.mark.parametrize(("platform", "verb"), [("cuda", "train --steps 3"), ("cdua", "plan --abstract")])
def test_a_platform_that_is_missing_is_one_message(platform, verb):
    code, out, said = shell(f"$RUN {verb}", JAX_PLATFORMS=platform)
    assert (code, out) == (2, ""), said
    assert f"error: JAX_PLATFORMS is '{platform}', and there is no such device" in said and "Traceback" not in said


@pytest.mark.parametrize(
    ("args", "text", "words"),
    [
        (("train",), "", "nothing was saved, because --workdir was not given"),
        (("train", "--workdir", "{run}"), "", "nothing was saved in {run} yet"),
        (
            ("train", "--workdir", "{run}"),
            "the state of step 7 is saved",
            "interrupted: the state of step 7 is saved\n",
        ),
        (("tune", "learning_rate", "--workdir", "{run}"), "", "the same command does not do it again"),
        (("summary",), "", "interrupted: nothing was saved\n"),
    ],
)
def test_the_message_of_an_interrupt_depends_on_what_is_there(command, monkeypatch, tmp_path, args, text, words):
    def interrupt(config: Config) -> an.Experiment:
        raise KeyboardInterrupt(*([text] if text else []))

    def leave(code):
        raise SystemExit(code)

    monkeypatch.setattr("os._exit", leave)
    run = str(tmp_path / "run")
    done = command(interrupt, *[part.format(run=run) for part in args])
    assert done.code == 130 and words.format(run=run) in done.err and len(done.err.splitlines()) == 1
    assert done.err.startswith("interrupted: ") and "--resume" not in done.err


def test_an_interrupt_after_a_checkpoint_says_how_to_go_on(command, monkeypatch, tmp_path):
    run = str(tmp_path / "run")
    assert command(small, "train", "--quiet", "--workdir", run).code == 0

    def interrupt(config: Config) -> an.Experiment:
        raise KeyboardInterrupt

    def leave(code):
        raise SystemExit(code)

    monkeypatch.setattr("os._exit", leave)
    done = command(interrupt, "train", "--resume", "--workdir", run)
    assert done.code == 130
    assert done.err == f"interrupted: the state of step 4 is saved in {run}, go on with --resume\n"


def test_a_directory_whose_name_is_no_utf8_is_refused_for_work_and_read_for_reports(command, tmp_path):
    odd, run, page = tmp_path / os.fsdecode(b"caf\xe9"), tmp_path / "run", tmp_path / "page"
    done = command(small, "train", "--quiet", "--workdir", str(odd))
    assert done.code == 2 and "caf\\udce9 has a name that is no UTF-8" in done.err and not odd.exists()
    assert command(small, "train", "--quiet", "--workdir", str(run)).code == 0
    run.rename(odd)
    done = command(small, "compare-runs", str(odd), "--workdir", str(page))
    assert done.code == 0 and "caf\\udce9" in done.out
    assert "caf\\udce9" in (page / "report.html").read_text()
