"""The layout in BUILD.md, made of the modules' own first lines: ``python tests/layout_page.py``."""

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent
BEGIN, END = "<!-- layout: made by tests/layout_page.py -->\n", "<!-- end of layout -->"


def layout() -> str:
    """Every module with the first sentence of its docstring, rooms after the loose modules."""
    lines: list[str] = []
    for folder in ("s7jax", "experiments", "tools", "benchmarks"):
        lines += _folder(ROOT / folder, 0)
    return f"{BEGIN}```\n" + "\n".join(lines) + f"\n```\n{END}"


def _folder(path: Path, depth: int) -> list[str]:
    indent, init = "  " * depth, path / "__init__.py"
    lines = [_line(f"{indent}{path.name}/", _first(init) if init.exists() else "")]
    for file in sorted(path.glob("*.py")):
        if file.name != "__init__.py":
            lines.append(_line(f"{indent}  {file.name}", _first(file)))
    for room in sorted(p for p in path.iterdir() if (p / "__init__.py").exists()):
        lines += _folder(room, depth + 1)
    return lines


def _line(name: str, what: str) -> str:
    return f"{name:<24}{what}".rstrip()


def _first(path: Path) -> str:
    """The first sentence of a module's docstring."""
    doc = ast.get_docstring(ast.parse(path.read_text())) or ""
    return doc.split("\n\n")[0].replace("\n", " ").strip().removesuffix(".")


def replaced(text: str) -> str:
    """BUILD.md with the layout as it is now."""
    start, end = text.index(BEGIN), text.index(END) + len(END)
    return text[:start] + layout() + text[end:]


if __name__ == "__main__":
    page = ROOT / "BUILD.md"
    page.write_text(replaced(page.read_text()))
