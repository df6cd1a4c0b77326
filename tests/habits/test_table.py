"""docs/habits.md tells what the tests in this folder do."""

import ast
import re
from pathlib import Path

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "habits.md"
TESTS = ("test_training.py", "test_data.py", "test_results.py")


def plain(text):
    return re.sub(r"\s+", "", text).replace(",)", ")")


def rows():
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if line.startswith("| ") and not line.startswith("| habit "):
            yield [cell.strip() for cell in line.strip("|").split("|")]


def sources():
    for name in TESTS:
        text = (HERE / name).read_text(encoding="utf-8")
        for node in ast.parse(text).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                yield node.name, plain(ast.get_source_segment(text, node))


def test_each_of_forty_habits_is_a_test_that_does_what_its_row_tells():
    table, tests = list(rows()), dict(sources())
    names = ["test_" + re.sub(r"\W+", "_", row[0].lower()) for row in table]
    assert len(table) == 40 and names == list(tests)  # in the same order
    assert all(len(row) == 6 and all(row) for row in table)
    for name, row in zip(names, table, strict=True):
        told = re.findall(r"`([^`]+)`", row[1])
        assert told, name
        for code in told:
            assert plain(code).removesuffix("...)") in tests[name], f"{name} does not have {code}"
