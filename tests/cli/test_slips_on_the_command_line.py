"""Flags of wrong kinds, of every verb: exit code 2 and exactly one message, at once, in this process."""

import jax
import pytest

import accelnet as an
from tests.cli.conftest import Config, small
from tests.users.slips import in_time

NOT_WHOLE = ["1.5", "abc", "", " ", "-1", "nan", "2**40", "1e3", "0"]
NOT_A_NUMBER = ["abc", "", " ", "nan", "inf"]
HUGE = "99999999999999999999"
TUNE = ("tune", "learning_rate")
COMPARE = ("compare", "--optimizers", "sgd,adam")
PLAN = ("plan", "--abstract", "--targets", "cpu")


def flag(*command):
    """Return rows of a command with a flag and each of some values."""
    return lambda values: [(*command, value) for value in values]


ROWS = [
    *flag("train", "--width")([*NOT_WHOLE, HUGE, "1099511627776"]),
    *flag("train", "--steps")([*NOT_WHOLE, HUGE, "1099511627776"]),
    *flag("train", "--seed")([*NOT_WHOLE[:-1], HUGE, "4294967296"]),
    *flag("train", "--learning-rate")([*NOT_A_NUMBER, "-1"]),
    *flag("train", "--dropout")([*NOT_A_NUMBER, "-1", "1", "2"]),
    *flag("train", "--widths")(["a", "1.5", ""]),
    *flag("train", "--mesh")(["x", "data", "data=0", "data=-5", "data=3", "data=99999999999", "", "=8", "data=8;"]),
    *flag("train", "--mesh")(["data=8,data=8", "fsdp=a", "data=-1,fsdp=-1"]),
    *flag("train", "--strategy")(["map", "", "JIT"]),
    *flag("train", "--cpu-devices")(["0", "-1", "100000", "3", "1.5", "abc", "", HUGE]),
    *flag("train", "--hang-timeout")(["nan", "0", "-1", "abc", "inf", ""]),
    *flag("train", "--num-processes")(["0", "-1", "2", "abc", "99999999"]),
    *flag("train", "--process-id")(["0", "-1", "5", "abc"]),
    *flag("train", "--num-processes", "2", "--process-id", "0", "--coordinator")(["x", "x:y", "", "host:99999999"]),
    *flag("train", "--workdir")(["", " ", "/proc/no", "/dev/null", "/etc/hostname/x", "a" * 300]),
    *flag("train")(["--resume", "--nope", "-x", "--steps", "--quiet=3", "--json=no", "extra"]),
    *flag(*TUNE, "--points")([*NOT_WHOLE, "1"]),
    *flag(*TUNE, "--seeds")([*NOT_WHOLE, "1"]),
    *flag(*TUNE, "--budget")([*NOT_A_NUMBER, "0", "1", "2", "-1"]),
    *flag(*TUNE, "--metric")(["", "nope"]),
    *flag(*TUNE, "--range")(["1", "a:b", "1:1e-4", "-1:1", "", "nan:1", "1:inf", "0:1", "1:2:3"]),
    *flag(*TUNE, "--cpu-devices")(["0", "100000", "a"]),
    *flag(*TUNE, "--workdir")(["", "/proc/no"]),
    *flag("tune")(["nope", "width", "widths", "seed", "", "dropout", "learning_rate,dropout"]),
    ("tune",), (*TUNE, "learning_rate"), (*TUNE, "dropout", "steps"),
    *flag("compare", "--optimizers")(["", ",", "sgd,adma", "sgd,sgd", "sgd;adam"]),
    *flag("compare", "--set")(["", " ", "width", "width=abc", "widths=1,x", "nope=3", "learning_rate=1", "width=1.5"]),
    *flag("compare", "--set")(["width=", "=3", "width==3"]),
    *flag(*COMPARE, "--seeds")(NOT_WHOLE),
    *flag(*COMPARE, "--tuning-seeds")(NOT_WHOLE),
    *flag(*COMPARE, "--alpha")([*NOT_A_NUMBER, "0", "1", "2", "-1"]),
    *flag(*COMPARE, "--target")(NOT_A_NUMBER),
    *flag(*COMPARE, "--rates")([*NOT_A_NUMBER, "0", "-1"]),
    *flag(*COMPARE, "--metric")(["", "nope"]),
    *flag(*COMPARE, "--workdir")(["", "/proc/no"]),
    *flag("compare", "--variants")(["nope.py", ".", "/etc/hostname", ""]),
    ("compare",),
    *flag("find-batch", "--points")(NOT_WHOLE),
    *flag("find-batch", "--workdir")(["", "/proc/no"]),
    *flag("cross-validate", "--folds")([*NOT_WHOLE, "1", "1000"]),
    *flag("cross-validate", "--stratify")(["", "nope", "inputs"]), *flag("cross-validate", "--groups")(["", "nope"]),
    *flag("cross-validate", "--fold-seed")(["-1", "a"]), *flag("cross-validate", "--workdir")(["", "/proc/no"]),
    *flag("data", "--rows")(NOT_WHOLE),
    *flag("data", "--workdir")(["", "/proc/no"]),
    *flag("compare-runs")(["", "/nowhere", "/etc/hostname"]),
    ("compare-runs",), ("compare-runs", ".", "--workdir", ""),
    *flag("evaluate", "--workdir")(["/nowhere", "", "/etc/hostname"]),
    ("evaluate",), ("evaluate", "--workdir", ".", "--split", "nope"),
    *flag("plan", "--abstract", "--targets")(["nope", "v5e:3x3", "", ",", "h100:0", "h100:-1", "h100:99999999"]),
    *flag("plan", "--abstract", "--targets")(["v5e:1000x1000", "cpu:", "here:3"]),
    *flag(*PLAN, "--mesh")(["x", "", "data=0", "data=zero"]),
    *flag(*PLAN, "--budget")(["abc", "", "-1usd", "0usd", "nanusd", "1e3usd"]),
    *flag(*PLAN, "--deadline")(["abc", "", "-1h", "0h", "nanh", "5"]),
    *flag(*PLAN, "--compile-seconds")([*NOT_A_NUMBER, "0", "-1"]),
    *flag(*PLAN, "--workdir")(["", "/proc/no"]),
    *flag("plan", "--abstract", "--targets-file")(["", "/nope.toml", "/etc/hostname", "."]),
    *flag("plan", "--abstract", "--tuned")(["", "/nope", "/etc/hostname", "."]),
    ("plan", "--prove", "--measure"),
    *flag("targets", "--family")(["zzz", ""]),
    ("targets", "--targets-file", "/nope"), ("targets", "--nope"),
    *flag("summary", "--mesh")(["x", "", "data=0"]),
    ("summary", "--width", "0"), ("summary", "--cpu-devices", "0"), ("summary", "--strategy", "x"), ("summary", "x"),
    (), ("help",), ("trian",), ("",), ("--train",), ("train", "evaluate"), ("--version",),
]  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def devices_in_use():
    """As in a notebook: `--cpu-devices 3` comes too late."""
    jax.devices()


@pytest.mark.parametrize("args", ROWS, ids=[f"{index}-{' '.join(row)[:40]}" for index, row in enumerate(ROWS)])
def test_a_slip_is_one_message_with_exit_code_two(command, args, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with in_time():
        done = command(small, *args)
    assert done.code == 2, done
    assert "Traceback" not in done.err + done.out
    # Of the parser, one box, whose last line names the help; else one line.
    lines, boxes = done.err.splitlines(), (done.err + done.out).count("For full helptext")
    assert boxes == 1 or (not boxes and [line.startswith("error: ") for line in lines] == [True]), done
    assert list(tmp_path.iterdir()) == []


def test_five_hundred_slips_are_tried():
    from tests.users import (
        test_slips_in_choices,
        test_slips_in_data,
        test_slips_in_models,
        test_slips_in_optimizers,
        test_slips_in_runs,
    )

    tables = (
        test_slips_in_choices, test_slips_in_data, test_slips_in_models, test_slips_in_optimizers, test_slips_in_runs,
    )  # fmt: skip
    inputs = sum(len(values) for table in tables for _, _, values in table.ROWS)
    assert inputs + len(ROWS) > 3_000


def test_a_model_too_large_for_any_machine_is_told_so(command):
    done = command(small, "train", "--width", str(2**30))
    assert (
        done.code == 2 and done.err.startswith("error: ") and "memory" in done.err and len(done.err.splitlines()) == 1
    )
    assert isinstance(small(Config(width=2**30)), an.Experiment)
