"""`accelnet new`: what it writes trains at once."""

import importlib.util
import sys
from pathlib import Path

import pytest

import accelnet as an
from accelnet.cli.new import starter
from accelnet.cli.tool import tool
from accelnet.errors import UserError


@pytest.mark.parametrize("kind", ["mlp", "cnn", "rnn", "table", "images", "module"])
def test_a_new_script_trains_at_once_and_its_test_is_python(kind, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tool(["new", kind, "first_try"])
    assert "train --fast-dev-run" in capsys.readouterr().out
    spec = importlib.util.spec_from_file_location("first_try", tmp_path / "first_try.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "first_try", module)
    spec.loader.exec_module(module)
    an.main(module.experiment, ["train", "--fast-dev-run", "--quiet", "--batch-size", "8"])
    assert "its restoring went through" in capsys.readouterr().out
    compile((tmp_path / "test_first_try.py").read_text(), "test_first_try.py", "exec")
    assert not list(tmp_path.rglob("*{{*"))
    with pytest.raises(SystemExit) as end:
        tool(["new", kind, "first_try"])
    assert end.value.code == 2 and "exists already" in capsys.readouterr().err


def test_a_new_script_takes_the_users_own_table(tmp_path, monkeypatch):
    table = tmp_path / 'odd "name".csv'
    table.write_text("a,b,left\n" + "".join(f"{n},{n * 2},{'yes' if n > 20 else 'no'}\n" for n in range(40)))
    text = starter("table", "churn", table)
    (script,) = [content for path, content in text.items() if path.name == "churn.py"]
    namespace = {"__file__": "churn.py", "__name__": "churn"}
    monkeypatch.setitem(sys.modules, "churn", type(sys)("churn"))
    exec(compile(script, "churn.py", "exec"), namespace)  # noqa: S102, what accelnet wrote
    made = namespace["experiment"](namespace["Config"]())
    assert made.data.info["num_classes"] == 2 and len(text) == 2


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("mlp", "my-net"), "'my-net' is no name of a script"),
        (("mlp", "class"), "'class' is no name of a script"),
        (("mlp", "a", "b.csv"), "takes no --data"),
        (("cnn", "a", None, "b"), "--target is a column of a table"),
        (("images", "a", "nowhere"), "expected a directory with a folder of pictures"),
        (("vit", "a"), "there is no vit to begin with"),
    ],
)
def test_what_cannot_be_written_is_refused(args, words):
    kind, name, *rest = args
    rest = [Path(rest[0]) if rest and rest[0] else None, *rest[1:]]
    with pytest.raises(UserError, match=words):
        starter(kind, name, *rest)


@pytest.mark.parametrize(
    ("args", "words"),
    [(["exprt"], "did you mean export"), (["new", "mlp", "a", "--traget", "b"], "did you mean --target")],
)
def test_slips_of_the_command_are_guessed(args, words, capsys):
    with pytest.raises(SystemExit) as end:
        tool(args)
    assert end.value.code == 2 and words in capsys.readouterr().err
