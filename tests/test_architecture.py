"""Imports go one way: which room may use which."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "s7jax"

# Room → what it may import. A room may always import itself.
ALLOWED = {
    "__init__": {"runtime"},
    "errors": set(),
    "progress": set(),
    "storage": {"errors"},
    "config": {"errors"},
    "cli": {"errors"},
    "processes": set(),
    "run": {"config", "errors", "storage"},
    "mesh": {"config", "errors"},
    "data": {"config", "errors", "progress", "storage"},
    "model": {"config", "errors", "mesh"},
    "train": {
        "config",
        "data",
        "devices",
        "errors",
        "mesh",
        "model",
        "processes",
        "progress",
        "run",
        "storage",
    },
    "integer": {"config", "errors", "mesh", "model", "progress", "s7l", "storage"},
    "s7l": {"errors"},
    "experiment": {"config", "data", "errors", "mesh", "model", "processes", "run", "train"},
    "export": {"config", "data", "errors", "integer", "mesh", "model", "storage", "train"},
    "inspection": {"config", "errors", "mesh", "model", "s7l", "train"},
    "devices": set(),
    "sizing": {"config", "devices", "errors", "mesh", "model", "s7l", "train"},
    "runtime": {"config", "data", "errors", "integer", "mesh", "s7l", "storage"},
    "comparison": {
        "config",
        "data",
        "errors",
        "integer",
        "mesh",
        "model",
        "progress",
        "runtime",
        "s7l",
        "train",
    },
    "pipeline": {
        "comparison",
        "errors",
        "experiment",
        "export",
        "mesh",
        "model",
        "runtime",
        "s7l",
        "storage",
        "train",
    },
    "report": set(),
}


def imported_rooms(path: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            modules = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for module in modules:
            first, *rest = module.split(".")
            assert first not in {"experiments", "tools", "tests"}, f"{path} imports {module}"
            if first == "s7jax" and rest:
                rooms.add(rest[0])
    return rooms


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=str)
def test_imports_go_one_way(path: Path):
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    assert room in ALLOWED, f"{room} is not in the table: say what it may import"
    assert imported_rooms(path) - {room} <= ALLOWED[room]


def test_only_the_compute_fold_holds_the_program():
    """FOLD authority: whoever else wants to compute has to ask for it with a gate."""
    holders = {
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        if re.search(r"import .*\bProgram\b|program\.Program\(", path.read_text())
    }
    assert holders == {"runtime/compute.py"}


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
        most = 300 if path.name == "s7l_verify.py" else 100
        assert len(path.read_text().splitlines()) <= most, path
