"""Files of accelnet's own: of a shape that is known, or one message, whatever lies in their place."""

import json
import os

import pytest

from accelnet.errors import UserError
from accelnet.json_file import parse_json, problem, read_json, read_text

ROW = {"step": int, "loss": (float, None), "note?": str}
SHAPE = {"rows": [ROW], "pair": [str, [int]], "any": object, "by name": {str: [float]}}
GOOD = {
    "rows": [{"step": 1, "loss": 2}, {"step": 2, "loss": None, "note": "", "more": []}],
    "pair": ["a", []],
    "any": {"x": [1]},
    "by name": {"a": [1, 2.5]},
    "beside": 1,
}


def test_content_of_the_shape_comes_back_as_it_is(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(GOOD))
    assert read_json(path, "an answer", SHAPE, "leave it") == GOOD
    assert read_json(tmp_path / "none.json", "an answer", SHAPE, "leave it") is None
    assert read_json(path / "none.json", "an answer", SHAPE, "leave it") is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rows": None}, "rows is None, expected a list"),
        ({"rows": {}}, "rows is {}, expected a list"),
        ({"rows": [5]}, r"rows[0] is 5, expected an object"),
        ({"rows": [{"step": 1}]}, r"rows[0].loss is missing"),
        ({"rows": [{"step": True, "loss": 1}]}, r"rows[0].step is True, expected a whole number"),
        ({"rows": [{"step": 1.0, "loss": 1}]}, r"rows[0].step is 1.0, expected a whole number"),
        ({"rows": [{"step": 2**63, "loss": 1}]}, f"rows[0].step is {2**63}, expected a whole number"),
        ({"rows": [{"step": 1, "loss": 10**400}]}, r"expected a number or null"),
        ({"rows": [{"step": 1, "loss": "x"}]}, r"rows[0].loss is 'x', expected a number or null"),
        ({"rows": [{"step": 1, "loss": 1, "note": None}]}, r"rows[0].note is None, expected text"),
        ({"pair": ["a"]}, "pair is ['a'], expected a list of 2"),
        ({"pair": ["a", ["b"]]}, "pair[1][0] is 'b', expected a whole number"),
        ({"by name": {"a": [None]}}, "by name.a[0] is None, expected a number"),
        ({"by name": 5}, "by name is 5, expected an object"),
    ],
)
def test_content_of_another_shape_is_named_with_its_place(changes, words):
    assert words in problem(GOOD | changes, SHAPE)


def test_where_several_shapes_are_allowed_the_message_is_about_the_nearest():
    shape = ({"a": [int]}, [str], None)
    assert [problem(value, shape) for value in ({"a": [1]}, ["x"], None)] == [None] * 3
    assert problem({"a": ["x"]}, shape) == "a[0] is 'x', expected a whole number"
    assert problem([1], shape) == "it[0] is 1, expected text"
    assert problem(5, shape) == "it is 5, expected an object or a list or null"


BAD = {
    "empty": b"",
    "truncated": json.dumps(GOOD).encode()[:-20],
    "list": b"[]",
    "null": b"null",
    "number": b"5",
    "text": b'"rows"',
    "brackets": b"[" * 100_000,
    "objects": b'{"rows":' * 100_000,
    "deep": b"[" * 500 + b"]" * 500,
    "not UTF-8": b'{"rows": "\xff"}',
    "UTF-16": json.dumps(GOOD).encode("utf-16"),
    "zeros": b"\0" * 100,
    "huge number": b'{"rows": ' + b"9" * 100_000 + b"}",
    "control character": b'{"rows": "\x1b]0;owned\x07"}',
}


def refused(path):
    with pytest.raises(UserError) as raised:
        read_json(path, "an answer", SHAPE, "leave it")
    message = str(raised.value)
    assert message.startswith(f"{path} cannot be read as an answer (") and message.endswith("): leave it")
    assert message.isprintable() and len(message) < len(str(path)) + 300
    return message


@pytest.mark.parametrize("name", BAD)
def test_whatever_lies_in_the_file_is_one_line(tmp_path, name):
    path = tmp_path / "a.json"
    path.write_bytes(BAD[name])
    refused(path)


def test_what_is_no_file_is_one_line_and_nobody_waits_for_it(tmp_path):
    (tmp_path / "directory").mkdir()
    assert "Is a directory" in refused(tmp_path / "directory")
    os.mkfifo(tmp_path / "pipe")
    assert "it is no file" in refused(tmp_path / "pipe")
    assert "it is no file" in refused("/dev/zero")
    (tmp_path / "link").symlink_to("link")
    assert "symbolic links" in refused(tmp_path / "link")
    (tmp_path / "large").touch()
    os.truncate(tmp_path / "large", 2**40)
    assert "it has 1,099,511,627,776 bytes" in refused(tmp_path / "large")
    assert read_text(tmp_path / "none", "an answer", "leave it") is None


def test_lines_of_a_file_are_checked_in_the_same_way():
    assert parse_json('{"step": 1, "loss": NaN}', ROW)["step"] == 1
    for text in ("", "[]", "{}", "[" * 100_000, '{"step": "x", "loss": 1}'):
        with pytest.raises(ValueError, match=r"it|step"):
            parse_json(text, ROW)
