"""Text arrives as well as the stream allows, and never fails the program."""

import errno
import io
import sys
import traceback
import unicodedata

import pytest

from accelnet import characters, terminal
from accelnet.characters import encodable, visible
from accelnet.errors import DivergenceError, LostProcessError, PreemptedError, UserCodeError, UserError
from accelnet.terminal import StatusLine, Stream, guarded_streams, rendered, say, show
from accelnet.training.position import Position
from accelnet.training.progress import BarProgress, LineProgress


class Failing(io.StringIO):
    """A stream whose other end is gone, or full."""

    def __init__(self, number):
        super().__init__()
        self.number = number

    def write(self, text):
        raise OSError(self.number, "no more")

    def flush(self):
        raise OSError(self.number, "no more")


class Terminal(io.StringIO):
    def isatty(self):
        return True


def closed():
    stream = io.StringIO()
    stream.close()
    return stream


BROKEN = [None, closed, lambda: Failing(errno.EPIPE), lambda: Failing(errno.EIO), lambda: Failing(errno.ENOSPC)]


@pytest.mark.parametrize("make", BROKEN)
def test_nothing_that_is_written_fails_where_a_stream_is_gone(monkeypatch, make):
    stream = None if make is None else make()
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "stderr", stream)
    say("x")
    show("x")
    progress = StatusLine(True)
    progress("x")
    progress.close()
    for kind in (LineProgress, BarProgress):
        with kind("digits", Position(3)) as progress:
            progress.update(1, loss=0.5)
            progress.note("x")
    with guarded_streams() as output:
        print("x")
        print("x", file=sys.stderr)
    assert (output.lost is None) == (make is not BROKEN[-1])
    assert sys.stdout is stream


@pytest.mark.parametrize(
    ("text", "ascii_text", "latin"),
    [
        ("─│╭ × µ – … ≥ →", "-|+ x u - ... >= ->", "-|+ × µ - ... >= ->"),
        ("é ñ Ø ß", "e n ? ss", "é ñ Ø ß"),
        ("数 ☃ 😀", "? ? ?", "? ? ?"),
        ("1\u00a0%", "1 %", "1\u00a0%"),
        ("plain", "plain", "plain"),
    ],
)
def test_characters_that_an_encoding_lacks_become_plain_ones(text, ascii_text, latin):
    assert encodable(text, "ascii") == ascii_text and encodable(text, "latin-1") == latin
    assert encodable(text, "utf-8") == text == encodable(text, None)
    for encoding, expected in (("ascii", ascii_text), ("latin-1", latin)):
        raw = io.BytesIO()
        stream = Stream(io.TextIOWrapper(raw, encoding=encoding, errors="strict"))
        stream.write(text)
        stream.flush()
        assert raw.getvalue().decode(encoding) == expected


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2J", "\\x1b[2J"),
        ("a\rb\x08\x7f\x00", "a\\rb\\x08\\x7f\\x00"),
        ("\x9b31m", "\\x9b31m"),
        ("\u202egpj.exe", "\\u202egpj.exe"),
        ("\u2028", "\\u2028"),
        ("\udcff", "\\udcff"),
        ("a\tb\nc é 😀", "a\tb\nc é 😀"),
        ("👨\u200d👩 \u06f1", "👨\u200d👩 \u06f1"),
    ],
)
def test_what_could_steer_a_terminal_is_shown_as_its_escape(capsys, text, shown):
    assert visible(text) == shown
    say(text)
    show(text)
    assert capsys.readouterr() == (f"{shown}\n", f"{shown}\n")


def test_every_character_that_steers_is_known_and_no_other():
    def steers(character):
        directions = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
        special = unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp")
        return character not in "\n\t" and (special or unicodedata.bidirectional(character) in directions)

    every = [chr(number) for number in range(sys.maxunicode + 1)]
    assert [c for c in every if characters._STEERING.match(c)] == [c for c in every if steers(c)]


def test_of_what_a_library_or_a_script_prints_only_what_draws_reaches_the_terminal(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stdout", stream)
    drawn = "\x1b[1;31mred\x1b[0m 10 %\r\x1b[K20 %\x1b[A\x1b[?25l\b"
    with guarded_streams():
        print(drawn)
        print("\x1b]0;owned\x07 \x1b[2J \x1b[6n \x1bP1$r \x9d0;owned\x9c \x1b]8;;http://a\x1b\\ \u202e")
    first, second = stream.getvalue().split("\n")[:2]
    assert first == drawn
    assert second.isascii() and second.isprintable() and second.startswith("\\x1b]0;owned\\x07 \\x1b[2J")


def test_an_error_steers_no_terminal_wherever_it_is_printed(capsys):
    for kind in (UserError, DivergenceError, PreemptedError, LostProcessError):
        error = kind("no column a\x1b]0;owned\x07\nnext")
        assert str(error) == "no column a\\x1b]0;owned\\x07\nnext"
        assert "\x1b" not in "".join(traceback.format_exception(error))
    assert "\x1b" not in str(UserCodeError("the loss", KeyError("a"), "\x1b[2J")) + str(
        UserCodeError("the loss", ValueError("\x1b[2J"))
    )
    terminal.say_uncaught(ValueError, ValueError("\x1b]0;owned\x07"), None)
    assert capsys.readouterr().err == "ValueError: \\x1b]0;owned\\x07\n"


def test_no_name_steers_the_terminal_of_a_progress_display(monkeypatch):
    for make in (LineProgress, BarProgress):
        stream = io.StringIO()
        with make("di\x1b]0;git\x07", Position(10), stream=stream) as progress:
            progress.update(10)
            progress.note("\x1b[2J")
        assert "\x1b]" not in stream.getvalue() and "\x1b[2J" not in stream.getvalue()
        assert "di\\x1b]0;git\\x07" in stream.getvalue() and "\\x1b[2J" in stream.getvalue()
    monkeypatch.setattr(sys, "stderr", Terminal())
    StatusLine(True)("\x1b[2J\nnext")
    assert "\\x1b[2J next" in sys.stderr.getvalue()


def test_a_name_that_looks_like_markup_is_shown_as_it_is():
    from rich.table import Table

    table = Table("name", box=None, pad_edge=False)
    table.add_row("[bold]:smile:[/]")
    assert rendered(table).split() == ["name", "[bold]:smile:[/]"]


def test_a_guarded_stream_is_still_the_stream(tmp_path):
    path = tmp_path / "out"
    with path.open("w") as file:
        stream = Stream(file)
        assert stream.fileno() == file.fileno() and not stream.isatty() and stream.encoding == file.encoding
        assert stream.write("é\n") == 2
        stream.writelines(["a", "b"])
    assert path.read_text() == "é\nab"
    assert Stream(None).encoding == "utf-8" and Stream(None).columns > 0 and not Stream(None).isatty()
