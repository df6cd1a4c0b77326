"""Who may import whom: rooms have an order, no modules import each other, and imports are light."""

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
    "choosing": _TRAINING | {"report", "evaluating", "populations"},
    "compressing": _TRAINING | {"report", "planning", "evaluating"},
    "__main__": {"cli"},
    "version": set(),
    "cli": _TRAINING | _VERBS - {"populations"} | {"cluster", "report", "tracking", "serving"},
    "__init__": _TRAINING | _VERBS | {"version", "lazy", "tracking", "cluster", "cli"},
}
# Costly to import, and needed by some runs only: modules import them inside functions.
HEAVY = (
    "orbax", "grain", "matplotlib", "sklearn", "tensorboardX", "tyro", "tqdm", "pooch", "pandas", "pyarrow", "PIL",
    "onnx", "onnxruntime", "tensorflow", "ai_edge_litert", "wandb", "mlflow", "trackio", "uvicorn", "uvloop",
    "httptools", "orjson",
)  # fmt: skip


def room_of(path: Path, package: Path = PACKAGE) -> str:
    return path.relative_to(package).with_suffix("").parts[0]


def imported_names(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Yield (dotted name, line) of every import: those in functions too, and modules that are imported by their names.

    A relative import begins with a dot, which is no name of a module.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield from ((f"{module}.{alias.name}", node.lineno) for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
            words = (one.value for one in node.args if isinstance(one, ast.Constant))
            yield from ((word, node.lineno) for word in words if isinstance(word, str))


def upward_arrows(package: Path) -> list[str]:
    arrows = []
    for path in sorted(package.rglob("*.py")):
        room = room_of(path, package)
        for name, line in imported_names(ast.parse(path.read_text())):
            top, *rest = name.split(".")
            if not top:
                arrows.append(f"{path.relative_to(package)}:{line} imports {name} without the name of the package")
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


def test_imports_go_one_way():
    assert upward_arrows(PACKAGE) == []


def test_every_room_has_its_place_in_the_order():
    rooms = {room_of(path) for path in PACKAGE.rglob("*.py")}
    assert rooms <= set(MAY_IMPORT), "a new room needs an entry in MAY_IMPORT"


def test_an_arrow_that_goes_up_is_found(tmp_path):
    (tmp_path / "ops").mkdir()
    (tmp_path / "ops" / "conv.py").write_text("def f():\n    from accelnet.models import cnn\n")
    (tmp_path / "ops" / "pool.py").write_text("import accelnet\n")
    (tmp_path / "ops" / "product.py").write_text("from ..models import mlp\nfrom . import conv\n")
    (tmp_path / "ops" / "rows.py").write_text("importlib.import_module('accelnet.training.fit')\n")
    (tmp_path / "training.py").write_text("from accelnet.ops import conv\nimport accelnet.errors\n")
    assert upward_arrows(tmp_path) == [
        "ops/conv.py:2 imports accelnet.models.cnn",
        "ops/pool.py:1 imports accelnet",
        "ops/product.py:1 imports ..models.mlp without the name of the package",
        "ops/product.py:2 imports ..conv without the name of the package",
        "ops/rows.py:1 imports accelnet.training.fit",
    ]


def room_circle(package: Path) -> set[str]:
    """Return the rooms that have no place in an order from below to above; an experiment and its training are one."""

    def room(name: str) -> str:
        return "training" if name == "experiment" else name

    above: dict[str, set[str]] = {}
    for path in package.rglob("*.py"):
        here = room(room_of(path, package))
        names = (name.split(".") for name, _ in imported_names(ast.parse(path.read_text())))
        above.setdefault(here, set()).update(room(name[1]) for name in names if name[0] == "accelnet" and name[1:])
        above[here].discard(here)
    while free := [room for room, arrows in above.items() if not arrows & set(above)]:
        above = {room: arrows for room, arrows in above.items() if room not in free}
    return set(above)


def test_the_rooms_have_an_order():
    assert room_circle(PACKAGE) == set()


def test_a_circle_of_rooms_is_found_where_no_modules_import_each_other(tmp_path):
    for room, names, line in (("ops", "ab", "from accelnet.data import d"), ("data", "cd", "import accelnet.ops.b")):
        (tmp_path / room).mkdir()
        for name in names:
            (tmp_path / room / f"{name}.py").write_text(line if name in "ac" else "")
    (tmp_path / "fit.py").write_text("import accelnet.ops.a")
    assert circles(tmp_path) == []
    assert room_circle(tmp_path) == {"ops", "data", "fit"}  # what stands above a circle has no place either


def test_no_modules_import_each_other():
    assert circles(PACKAGE) == []


def test_a_circle_is_found(tmp_path):
    (tmp_path / "__init__.py").write_text("")
    (tmp_path / "plan.py").write_text("def f():\n    from accelnet.page import draw\n")
    (tmp_path / "page.py").write_text("if TYPE_CHECKING:\n    from accelnet.plan import Plan\n")
    (tmp_path / "other.py").write_text("import accelnet.page\n")
    assert circles(tmp_path) == [("accelnet.page", "accelnet.plan")]


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
