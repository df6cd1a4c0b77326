"""Help of a verb on one screen."""

import sys
from dataclasses import dataclass, field, make_dataclass
from typing import Literal

import pytest
import tyro

from accelnet.cli.parsing import parsed
from accelnet.cli.short_help import short_help
from accelnet.cli.verbs import VERBS
from tests.cli.conftest import small


@dataclass(frozen=True)
class Options:
    """What is done, and where."""

    place: tyro.conf.Positional[str]
    """Place."""
    run: str = tyro.MISSING
    """Run."""
    kind: Literal["a", "b"] = "b"
    """Kind: a long text that says much of it. And a second sentence that says so much more that it has no room."""
    sizes: tuple[int, ...] = (1, 2)
    names: tuple[str, ...] = field(default_factory=tuple)
    plain: bool = False
    limit: float | None = None
    """First words of a text that has no stop before the very end, which is why it has to be cut somewhere in it."""


def verb(options: Options):
    """Do it."""
    return options


def test_a_flag_is_a_line_with_its_default_and_what_fits_of_its_text():
    assert short_help(verb, "run.py do", 72).splitlines() == [
        "usage: run.py do PLACE [FLAGS]",
        "",
        "Do it.",
        "",
        "What is done, and where",
        "  PLACE             Place",
        "  --run TEXT        Required. Run",
        "  --kind b|a        Kind: a long text that says much of it",
        "  --sizes 1 2",
        "  --names TEXT ...",
        "  --plain",
        "  --limit FLOAT     First words of a text that has no stop before the...",
        "",
        "Values are the defaults, the first of several. --help-all says all of",
        "every flag.",
    ]


def test_a_config_without_source_or_docstring_has_flags_all_the_same():
    made = make_dataclass("Made", [("rate", float, 0.5)])
    own: dict = {"dataclass": dataclass, "__name__": "__main__"}
    exec("@dataclass\nclass Own:\n    size: int = 3\n", own)  # noqa: S102, a class without source
    for kind, flag in ((made, "--rate 0.5"), (own["Own"], "--size 3")):

        def do(config): ...

        do.__annotations__ = {"config": kind}
        assert ["Settings", f"  {flag}"] == short_help(do, "run.py do", 80).splitlines()[3:5]


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_is_what_it_says_wherever_it_stands(flag, capsys):
    for args in ([flag], ["here", "--sizes", "3", flag]):
        with pytest.raises(SystemExit) as end:
            parsed({"do": verb}, ["do", *args], "run.py")
        assert end.value.code == 0 and "usage: run.py do PLACE [FLAGS]" in capsys.readouterr().out
    with pytest.raises(SystemExit) as end:
        parsed({"do": verb}, ["do", "--help-all"], "run.py")
    assert end.value.code == 0 and "so much more" in " ".join(capsys.readouterr().out.split())
    assert parsed({"do": verb}, ["do", "--run", "r", "--", flag], "run.py").place == flag


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_every_verb_of_a_script_fits_a_screen(command, columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr(sys, "argv", ["run.py"])
    for one in VERBS:
        done = command(small, one.__name__.replace("_", "-"), "--help")
        lines = done.out.splitlines()
        assert done.code == 0 and 5 < len(lines) <= 40 and max(map(len, lines)) <= columns, one
