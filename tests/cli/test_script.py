"""A Config comes back from the JSON of its run as it was."""

import dataclasses
import enum
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from accelnet.cli.script import Script
from accelnet.errors import UserError
from accelnet.json_file import plain_value


class Kind(enum.Enum):
    ADD = "add"
    MULTIPLY = "multiply"


@dataclass(frozen=True)
class Every:
    rate: float = 0.1
    whole: float = 60
    limit: float = math.inf
    size: int | None = None
    widths: tuple[int, ...] = (8, 8)
    pair: tuple[int, str] = (1, "a")
    sizes: list[int] = dataclasses.field(default_factory=lambda: [1])
    path: Path | None = Path("x")
    kind: Kind = Kind.ADD
    word: Literal["a", "b"] = "a"
    flag: bool = True
    text: str = "é"
    double: float = dataclasses.field(init=False, default=0.2)


def every(config: Every): ...


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"size": 3, "widths": (), "pair": (2, "b"), "sizes": [], "path": None, "kind": Kind.MULTIPLY, "word": "b"},
        {"rate": 1, "limit": 3.5, "flag": False, "text": "None", "path": Path("/a b/é")},
    ],
)
def test_every_kind_of_field_comes_back_as_it_was(changes):
    config = Every(**changes)
    stored = json.loads(json.dumps(plain_value(dataclasses.asdict(config))))
    found = Script(every).config_from_json(stored)
    assert found == config
    kinds = {name: type(value) for name, value in vars(config).items() if type(value) is not int}
    assert {name: type(getattr(found, name)) for name in kinds} == kinds


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rate", "fast"), ("rate", None), ("rate", True), ("size", 1.5), ("widths", 8), ("widths", [1, "x"]),
        ("pair", [1, "a", 2]), ("kind", "divide"), ("word", "c"), ("flag", 1), ("text", 5), ("path", 3),
    ],
)  # fmt: skip
def test_a_stored_value_of_another_kind_is_named(name, value):
    with pytest.raises(UserError, match=f"started with {name} = "):
        Script(every).config_from_json({name: value})


def test_a_setting_that_is_gone_is_named():
    with pytest.raises(UserError, match="does not have: older"):
        Script(every).config_from_json({"older": 1})
