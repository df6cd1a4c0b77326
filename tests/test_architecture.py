"""Rules of the house that hold between modules: who may import whom, and what nobody may use."""

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "accelnet"

# A room may import itself and the rooms named here.
_GROUND = {
    "characters", "narrow_tables", "errors", "wording", "arguments", "signature", "fingerprint", "terminal", "disk",
    "cache", "json_file", "runtime", "scopes", "hlo", "packages", "interruption", "lazy",
}  # fmt: skip
_CORE = _GROUND | {"ops", "models", "optim", "objectives", "data", "parallel"}
_TRAINING = _CORE | {"artifact", "training", "experiment"}
_VERBS = {"planning", "evaluating", "populations", "exporting", "choosing", "compressing"}
MAY_IMPORT = {
    "characters": set(),
    "narrow_tables": set(),
    "interruption": {"runtime"},
    "lazy": {"interruption"},
    "errors": {"characters"},
    "wording": set(),
    "arguments": {"errors", "wording"},
    "signature": {"errors"},
    "fingerprint": set(),
    "terminal": {"characters", "narrow_tables"},
    "disk": {"errors"},
    "cache": {"disk", "terminal"},
    "json_file": {"errors", "wording"},
    "runtime": {"cache"},
    "scopes": set(),
    "hlo": {"scopes"},
    "packages": {"errors"},
    "ops": _GROUND,
    "models": _GROUND | {"ops"},
    "optim": _GROUND | {"ops"},
    "objectives": _GROUND | {"ops"},
    "data": _GROUND | {"ops", "report"},
    "parallel": _GROUND | {"ops"},
    "cluster": _GROUND,
    "report": _GROUND,
    "tracking": _GROUND,
    "artifact": _CORE | {"report"},
    "serving": _CORE | {"artifact", "report"},
    "experiment": _TRAINING,
    "training": _TRAINING | {"cluster", "report", "tracking"},
    "planning": _TRAINING | {"report"},
    "evaluating": _TRAINING | {"report"},
    "populations": _TRAINING,
    "exporting": _TRAINING | {"report", "evaluating"},
    "choosing": _TRAINING | {"report", "planning", "evaluating", "populations"},
    "compressing": _TRAINING | {"report", "planning", "evaluating", "populations", "choosing"},
    "__main__": {"cli"},
    "version": set(),
    "cli": _TRAINING | _VERBS | {"cluster", "report", "tracking", "serving"},
    "__init__": _TRAINING | _VERBS | {"version", "lazy", "tracking", "cluster", "cli"},
}
FORBIDDEN_NAMES = {"utils", "util", "helpers", "helper", "common", "misc"}
FORBIDDEN_IMPORTS = {"pickle", "cloudpickle", "dill", "marshal", "shelve"}
# Costly to import, and needed by some runs only: modules import them inside functions.
HEAVY = (
    "orbax", "grain", "matplotlib", "sklearn", "tensorboardX", "tyro", "tqdm", "pooch", "pandas", "pyarrow", "PIL",
    "onnx", "onnxruntime", "tensorflow", "ai_edge_litert", "wandb", "mlflow", "trackio", "uvicorn", "uvloop",
    "httptools", "orjson",
)  # fmt: skip


def room_of(path: Path, package: Path = PACKAGE) -> str:
    return path.relative_to(package).with_suffix("").parts[0]


def imported_names(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Yield (dotted name, line) of every import, those inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            assert node.module is not None
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def upward_arrows(package: Path) -> list[str]:
    arrows = []
    for path in sorted(package.rglob("*.py")):
        room = room_of(path, package)
        for name, line in imported_names(ast.parse(path.read_text())):
            top, *rest = name.split(".")
            if top != "accelnet":
                continue
            target = rest[0] if rest else "__init__"
            if target not in MAY_IMPORT.get(room, set()) | {room}:
                arrows.append(f"{path.relative_to(package)}:{line} imports {name}")
    return arrows


def circles(package: Path) -> list[tuple[str, ...]]:
    """Return the modules that import each other, imports in functions and under TYPE_CHECKING included."""
    modules = {
        ".".join(("accelnet", *path.relative_to(package).with_suffix("").parts)).removesuffix(".__init__"): path
        for path in package.rglob("*.py")
    }

    def module_of(name: str) -> str:
        """Return the module that an imported name is, or stands in."""
        while name not in modules:
            name = name.rpartition(".")[0]
        return name

    graph: dict[str, set[str]] = {}
    for module, path in modules.items():
        names = {name for name, _ in imported_names(ast.parse(path.read_text())) if name.split(".")[0] == "accelnet"}
        graph[module] = {module_of(name) for name in names} - {module}

    def reached(start: str) -> set[str]:
        found: set[str] = set()
        left = [start]
        while left:
            new = graph[left.pop()] - found
            found |= new
            left += new
        return found

    reach = {module: reached(module) for module in graph}
    return sorted({tuple(sorted({a} | {b for b in reach[a] if a in reach[b]})) for a in graph if a in reach[a]})


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


def test_imports_go_one_way():
    assert upward_arrows(PACKAGE) == []


def test_every_room_has_its_place_in_the_order():
    rooms = {room_of(path) for path in PACKAGE.rglob("*.py")}
    assert rooms <= set(MAY_IMPORT), "a new room needs an entry in MAY_IMPORT"


def test_an_arrow_that_goes_up_is_found(tmp_path):
    (tmp_path / "ops").mkdir()
    (tmp_path / "ops" / "conv.py").write_text("def f():\n    from accelnet.models import cnn\n")
    (tmp_path / "ops" / "pool.py").write_text("import accelnet\n")
    (tmp_path / "training.py").write_text("from accelnet.ops import conv\nimport accelnet.errors\n")
    assert upward_arrows(tmp_path) == [
        "ops/conv.py:2 imports accelnet.models.cnn",
        "ops/pool.py:1 imports accelnet",
    ]


def test_no_modules_import_each_other():
    assert circles(PACKAGE) == []


def test_a_circle_is_found(tmp_path):
    (tmp_path / "__init__.py").write_text("")
    (tmp_path / "plan.py").write_text("def f():\n    from accelnet.page import draw\n")
    (tmp_path / "page.py").write_text("if TYPE_CHECKING:\n    from accelnet.plan import Plan\n")
    (tmp_path / "other.py").write_text("import accelnet.page\n")
    assert circles(tmp_path) == [("accelnet.page", "accelnet.plan")]


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


@pytest.mark.parametrize("package", ["accelnet", "accelnet.cluster"])
def test_a_lazy_package_holds_public_names_and_nothing_else_and_both_lists_of_them_agree(package):
    module = importlib.import_module(package)
    tree = ast.parse(Path(module.__file__).read_text())
    (block,) = (one for one in tree.body if isinstance(one, ast.If))
    assert ast.unparse(block.test) == "TYPE_CHECKING"
    told: dict[str, list[str]] = {}
    for statement in block.body:
        assert isinstance(statement, ast.ImportFrom), ast.unparse(statement)
        for alias in statement.names:
            assert alias.asname == alias.name, f"line {statement.lineno}: write `import X as X`"
            told.setdefault(statement.module, []).append(alias.name)
    assert {home: sorted(names) for home, names in module._HOMES.items()} == {
        home: sorted(names) for home, names in told.items()
    }
    imported = {name for one in tree.body if isinstance(one, ast.ImportFrom) for name, _ in imported_names(one)}
    assert imported == {"typing.TYPE_CHECKING", "accelnet.lazy.lazy_names"}, "all others belong into the block"
    names = [name for each in told.values() for name in each]
    assert set(names) <= set(dir(module)) and sorted(names) == sorted(module.__all__)
    assert all(getattr(module, name) is not None for name in names)
    with pytest.raises(AttributeError, match=rf"module '{package}' has no attribute 'no_such_name'"):
        _ = module.no_such_name


@pytest.mark.parametrize(
    "args", [["-m", "accelnet"], ["-m", "accelnet", "launch"], ["experiments/digits_cnn.py", "tune"]]
)
def test_help_imports_no_library_that_computes_and_fits_a_screen(args):
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *args, "--help"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and "usage: " in done.stdout and len(done.stdout.splitlines()) <= 40
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "accelnet.cli.entry" in imported
    assert imported & ({"jax", "flax", "optax", "numpy", "scipy", *HEAVY} - {"tyro"}) == set()


def test_importing_touches_no_device_and_nothing_heavy():
    code = f"""
import sys
import jax, flax.linen, flax.nnx, optax
before = set(sys.modules)
import accelnet
for name in dir(accelnet):
    getattr(accelnet, name)
from jax._src import xla_bridge
heavy = [name for name in {HEAVY!r} if name in set(sys.modules) - before]
print(heavy, xla_bridge.backends_are_initialized())
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[] False"


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
