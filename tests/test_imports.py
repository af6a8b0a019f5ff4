"""Imports go one way: which room may use which."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "s7jax"
MODULES = sorted(PACKAGE.rglob("*.py"))

# Room → the others it imports; every grant is used, and whoever is granted stands further up.
ALLOWED = {
    "errors": set(),
    "arguments": {"errors"},
    "digests": set(),
    "devices": set(),
    "extras": set(),
    "sample": set(),
    "fields": {"errors"},
    "storage": {"errors"},
    "terminal": {"arguments", "errors"},
    "architecture": {"errors", "fields"},
    "config": {"architecture", "digests", "errors", "fields"},
    "config_file": {"architecture", "config", "errors", "fields"},
    "s7l": {"architecture", "errors", "extras", "fields", "storage"},
    "data": {"config", "digests", "errors", "extras", "s7l", "storage", "terminal"},
    "mesh": {"architecture", "config", "errors"},
    "integer": {"architecture", "errors", "mesh", "s7l"},
    "native": {"architecture", "devices", "errors", "integer", "s7l"},
    "model": {"architecture", "config", "digests", "mesh"},
    "runtime": {
        "architecture",
        "arguments",
        "data",
        "errors",
        "integer",
        "mesh",
        "native",
        "s7l",
        "storage",
    },
    "train": {
        "architecture",
        "config",
        "data",
        "devices",
        "digests",
        "errors",
        "extras",
        "mesh",
        "model",
        "sample",
        "storage",
        "terminal",
    },
    "server": {"data", "errors", "integer", "runtime", "s7l"},
    "quantize": {
        "architecture",
        "config",
        "data",
        "errors",
        "fields",
        "integer",
        "mesh",
        "model",
        "s7l",
        "storage",
        "terminal",
        "train",
    },
    "sizing": {
        "architecture",
        "config",
        "data",
        "devices",
        "errors",
        "extras",
        "integer",
        "mesh",
        "model",
        "native",
        "quantize",
        "s7l",
        "terminal",
        "train",
    },
    "hub": {
        "architecture",
        "config",
        "data",
        "errors",
        "fields",
        "mesh",
        "model",
        "s7l",
        "storage",
        "train",
    },
    "report": {"architecture", "config", "data", "errors", "s7l", "storage", "terminal", "train"},
    "tasks": {
        "architecture",
        "data",
        "errors",
        "integer",
        "mesh",
        "model",
        "runtime",
        "s7l",
        "terminal",
        "train",
    },
    "runs": {
        "architecture",
        "config",
        "config_file",
        "data",
        "digests",
        "errors",
        "extras",
        "integer",
        "mesh",
        "model",
        "quantize",
        "report",
        "runtime",
        "s7l",
        "storage",
        "tasks",
        "terminal",
        "train",
    },
    "__init__": {"data", "runs", "runtime"},
    "commands": {
        "config",
        "config_file",
        "data",
        "devices",
        "errors",
        "extras",
        "fields",
        "hub",
        "mesh",
        "quantize",
        "report",
        "runs",
        "runtime",
        "s7l",
        "server",
        "sizing",
        "storage",
        "terminal",
        "train",
    },
    "checkout": {"commands"},
    "__main__": {"commands"},
}


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(tree: ast.AST) -> Iterator[str]:
    """Dotted names of all that a module imports, ``module.name`` where it takes a name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imported_rooms(path: Path) -> set[str]:
    """The other rooms that a module of the package imports."""
    found = {name.split(".")[0]: name for name in imported(ast.parse(path.read_text()))}
    assert not found.keys() & {"experiments", "tools", "tests"}, f"{path} imports {found}"
    names = [name.split(".") for name in imported(ast.parse(path.read_text()))]
    return {name[1] for name in names if name[0] == "s7jax" and name[1:]} - {room_of(path)}


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_imports_go_one_way(path: Path):
    assert room_of(path) in ALLOWED, f"{room_of(path)} is not in the table: say what it may import"
    assert imported_rooms(path) <= ALLOWED[room_of(path)]


@pytest.mark.parametrize("room", sorted(ALLOWED))
def test_every_grant_is_used(room: str):
    used = set().union(*(imported_rooms(path) for path in MODULES if room_of(path) == room))
    assert used == ALLOWED[room]


def test_the_rooms_stand_in_an_order():
    """The table is one: nobody is granted what stands below, so there is no circle."""
    order = list(ALLOWED)
    for room, granted in ALLOWED.items():
        assert granted <= set(order[: order.index(room)]), room
    TopologicalSorter(ALLOWED).prepare()


# What of the compute programs may be had outside their room: it computes nothing.
PROGRAMS = {
    "s7jax.integer.program": {"route"},
    "s7jax.integer.layers": {"Cache"},
    "s7jax.integer.specification": {"BLOCK", "Watch"},
    "s7jax.native.program": set(),
}
PACKAGES = {"s7jax.integer", "s7jax.native", *PROGRAMS}  # as objects they give everything in them
COMPUTERS = {"NativeProgram", "Program", "_program", "Specification"}


def dotted(node: ast.AST) -> str:
    """``a.b.c`` of nested attributes; what stands before them, if no name, is left out."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def ways_to_compute(source: str) -> set[str]:
    """How a module gets hold of a compute program, in whatever spelling; literal strings too."""
    tree, found = ast.parse(source), set()
    said = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}  # docstrings
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                found |= {alias.name for alias in names if alias.name in PACKAGES}
            case ast.ImportFrom(module=module, names=names):
                for alias in names:
                    name = f"{module}.{alias.name}"
                    harmless = alias.name in PROGRAMS.get(module, {alias.name})
                    if not harmless or name in PACKAGES or alias.name in COMPUTERS:
                        found.add(name)
            case ast.Attribute(attr=attr):
                if attr in COMPUTERS or dotted(node) in PACKAGES:
                    found.add(dotted(node))
            case ast.Constant(value=str(text)) if id(node) not in said:
                if text in COMPUTERS | PACKAGES or text.startswith(tuple(PROGRAMS)):
                    found.add(text)
    return found


def test_only_the_compute_fold_holds_the_program():
    """FOLD authority: whoever else wants to compute has to ask for it with a gate."""
    outside = [path for path in MODULES if room_of(path) not in ("integer", "native")]
    holders = {path.relative_to(PACKAGE): ways_to_compute(path.read_text()) for path in outside}
    holders = {str(path): found for path, found in holders.items() if found}
    assert set(holders) == {"runtime/compute.py"}
    assert holders["runtime/compute.py"] > {
        "s7jax.integer.program.Program",
        "s7jax.integer.specification.Specification",
        "s7jax.native.program.NativeProgram",
    }


@pytest.mark.parametrize(
    "source",
    [
        "from s7jax.integer.program import Program",
        "from s7jax.integer.program import Program as P",
        "from s7jax.integer.program import (\n    Program as _Ungated,\n)",
        "from s7jax.integer.program import *",
        "from s7jax.integer.layers import trunk",
        "from s7jax.native.program import NativeProgram",
        "from s7jax import native",
        "from s7jax.integer.specification import Specification",
        "from s7jax.runtime.compute import Program",
        "from s7jax.runtime.compute import Specification",
        "from s7jax.integer import program",
        "from s7jax.integer import layers as arithmetic",
        "from s7jax import integer",
        "import s7jax.integer.program",
        "import s7jax.integer.program as p\np.Program",
        "import s7jax.integer",
        "import s7jax\ns7jax.integer.program.Program(seal, pools)",
        "import s7jax\nx = s7jax.integer",
        "def late():\n    from s7jax.integer.program import Program\n    return Program",
        "import s7jax.runtime.compute as c\nc.Program(seal, pools)",
        "answer = compute._program.trunk(tokens, start, cache)",
        "getattr(compute, '_program')",
        "getattr(module, 'Program')",
        "importlib.import_module('s7jax.integer.program')",
        "__import__('s7jax.integer.layers', fromlist=['trunk'])",
        "sys.modules['s7jax.integer.program']",
        "sys.modules['s7jax.integer.specification'].__dict__['Specification']",
    ],
)
def test_no_spelling_gets_through_the_wall(source: str):
    assert ways_to_compute(source)


def test_what_computes_nothing_is_no_matter():
    assert not ways_to_compute(
        '''"""As s7jax.integer.program.Program does."""
from s7jax.integer.layers import Cache
from s7jax.integer.program import route
from s7jax.integer.sampling import choose
from s7jax.runtime import Compute

program = "a Program in a sentence"
'''
    )


def test_no_function_of_the_package_has_the_name_of_a_room():
    """Importing the room would put it in the function's place."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert functions
    assert not functions & {room_of(path) for path in MODULES}


def test_the_sealed_file_room_works_without_jax():
    code = "import s7jax.s7l, sys; print('jax' in sys.modules or 'flax' in sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True
    )
    assert result.stdout == "False\n", result.stderr


@pytest.mark.parametrize("folder", ["experiments", "tools"])
def test_scripts_are_thin_and_hide_no_standard_module(folder: str):
    for path in (ROOT / folder).glob("*.py"):
        assert path.stem not in sys.stdlib_module_names, path
        # The second verifier is one file by design, to be copied where nothing is installed.
        most = 300 if path.name == "s7l_verify.py" else 10
        assert len(path.read_text().splitlines()) <= most, path


def test_commands_are_thin():
    for path in (PACKAGE / "commands").glob("*.py"):
        assert len(path.read_text().splitlines()) <= 110, path
