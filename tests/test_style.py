"""What holds in every file: names, what nobody may use, one module that prints, lengths."""

import ast
from pathlib import Path

import pytest

from tests.test_architecture import PACKAGE, ROOT, imported_names

FORBIDDEN_NAMES = {"utils", "util", "helpers", "helper", "common", "misc"}
FORBIDDEN_IMPORTS = {"pickle", "cloudpickle", "dill", "marshal", "shelve"}


def unsafe_uses(source: str) -> list[str]:
    tree = ast.parse(source)
    found = [
        f"line {line}: imports {name}" for name, line in imported_names(tree) if name.split(".")[0] in FORBIDDEN_IMPORTS
    ]
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        if isinstance(node.func, ast.Name) and node.func.id in {"eval", "exec"}:
            found.append(f"line {node.lineno}: calls {node.func.id}()")
        found += [
            f"line {node.lineno}: {keyword.arg}=True"
            for keyword in node.keywords
            if keyword.arg in {"shell", "allow_pickle"}
            and not (isinstance(keyword.value, ast.Constant) and keyword.value.value is False)
        ]
    return found


def our_files() -> list[Path]:
    folders = (ROOT / name for name in ("accelnet", "experiments", "scripts"))
    return sorted(path for folder in folders for path in folder.rglob("*.py"))


def test_no_room_is_a_drawer_for_leftovers():
    names = {part for path in our_files() for part in path.relative_to(ROOT).with_suffix("").parts}
    assert names & FORBIDDEN_NAMES == set()


def test_nothing_unpickles_evaluates_or_uses_a_shell():
    found = {str(path.relative_to(ROOT)): unsafe_uses(path.read_text()) for path in our_files()}
    assert {path: uses for path, uses in found.items() if uses} == {}


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "eval('1')",
        "subprocess.run('ls', shell=True)",
        "np.load(path, allow_pickle=flag)",
    ],
)
def test_an_unsafe_use_is_found(source):
    assert len(unsafe_uses(source)) == 1


def test_a_safe_use_is_not_called_unsafe():
    assert unsafe_uses("model.eval()\nnp.load(path, allow_pickle=False)\n") == []


def printing(source: str) -> list[str]:
    """Return the uses of print and of the process's streams, docstrings left out."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    return [
        ast.unparse(call.func)
        for call in calls
        if ast.unparse(call.func) == "print"
        or ast.unparse(call.func) in {f"sys.{name}.write" for name in ("stdout", "stderr")}
        or ast.unparse(call.func).endswith("Console")
    ]


def test_one_module_prints():
    found = {
        str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py") if printing(path.read_text(encoding="utf-8"))
    }
    assert found <= {"terminal.py"}


def test_a_print_is_found():
    assert printing("import sys\nprint(1)\nsys.stderr.write('a')\nrich.console.Console()\nsay(1)\n") == [
        "print",
        "sys.stderr.write",
        "rich.console.Console",
    ]


def too_long(source: str, most_lines: int = 300, most_in_a_function: int = 80) -> list[str]:
    """Return what a reader cannot take in at once: a file, or a function without its docstring."""
    found = [f"{len(source.splitlines())} lines"] if len(source.splitlines()) > most_lines else []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            docstring = ast.get_docstring(node, clean=False)
            lines = node.end_lineno - node.lineno + 1 - (0 if docstring is None else docstring.count("\n") + 1)
            found += [f"{node.name} has {lines} lines"] if lines > most_in_a_function else []
    return found


def test_every_file_and_every_function_can_be_read_at_once():
    found = {
        str(path.relative_to(PACKAGE)): too_long(path.read_text(encoding="utf-8")) for path in PACKAGE.rglob("*.py")
    }
    assert {path: problems for path, problems in found.items() if problems} == {}


def test_what_is_too_long_is_found():
    assert too_long("x = 1\n" * 301) == ["301 lines"]
    assert too_long("def f():\n" + "    x = 1\n" * 80) == ["f has 81 lines"]
    assert too_long('def f():\n    """' + "\n" * 80 + '"""\n' + "    x = 1\n" * 78) == []
