"""Text of the running Python: its standard library's code, and its documentation as prose.

Nothing is imported or run: the sources are parsed.
"""

import ast
import hashlib
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from s7jax.data.documents import Document

CODE_BYTES = 4_000_000

# Tests, vendored packages, and modules that are tables rather than code.
_SKIPPED = {
    *("test", "tests", "idle_test", "site-packages", "dist-packages", "ensurepip", "__pycache__"),
    *("idlelib", "lib2to3", "turtledemo", "encodings", "pydoc_data"),
}
_TOPICS = "pydoc_data/topics.py"
_SHORTEST = 200  # characters; below that a document says nothing

_Function = ast.FunctionDef | ast.AsyncFunctionDef
_Documentable = ast.Module | ast.ClassDef | _Function


@dataclass(frozen=True)
class _Module:
    name: str
    code: str  # without docstrings
    prose: str  # the docstrings


def code() -> tuple[Document, ...]:
    """Modules without their docstrings: a fixed choice of up to ``CODE_BYTES``, by name."""
    chosen, size = [], 0
    for module in sorted(_modules(), key=lambda m: hashlib.sha256(m.name.encode()).digest()):
        size += len(module.code.encode())
        if size > CODE_BYTES:
            break
        chosen.append(Document(module.code, f"Python standard library, {module.name}"))
    return tuple(sorted(chosen, key=lambda document: document.origin))


def prose() -> tuple[Document, ...]:
    """One document for each module's docstrings and for each help topic."""
    modules = [
        Document(module.prose, f"Python documentation strings, {module.name}")
        for module in _modules()
        if len(module.prose) >= _SHORTEST
    ]
    topics = [
        Document(text, f"Python help topic, {name}")
        for name, text in _topics().items()
        if len(text) >= _SHORTEST
    ]
    return (*modules, *topics)


def _root() -> Path:
    return Path(sysconfig.get_path("stdlib"))


@cache
def _modules() -> tuple[_Module, ...]:
    return tuple(_parse_all())


def _parse_all() -> Iterator[_Module]:
    root = _root()
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if _SKIPPED.isdisjoint(parts):
            try:
                source = path.read_text(encoding="utf-8")
                tree = ast.parse(source)
            except (SyntaxError, ValueError):  # a file meant for another Python or encoding
                continue
            name = ".".join(parts).removesuffix(".__init__")
            stripped = _without_docstrings(source, tree)
            if len(stripped) >= _SHORTEST:
                yield _Module(name, stripped, _prose(name, tree))


def _topics() -> dict[str, str]:
    """The help topics: one dictionary literal in one module."""
    tree = ast.parse((_root() / _TOPICS).read_text(encoding="utf-8"))
    tables = [node.value for node in tree.body if isinstance(node, ast.Assign)]
    topics: dict[str, str] = ast.literal_eval(tables[-1])
    names = {text: name for name, text in sorted(topics.items())}  # some stand under two names
    return {name: text for text, name in names.items()}


def _documented(node: ast.AST) -> bool:
    return isinstance(node, _Documentable) and ast.get_docstring(node, clean=False) is not None


def _statements(node: ast.AST) -> Iterator[ast.AST]:
    """A tree without its expressions, which are most of it and hold no docstrings."""
    yield node
    for name in ("body", "handlers", "orelse", "finalbody", "cases"):
        for inner in getattr(node, name, ()):
            yield from _statements(inner)


def _without_docstrings(source: str, tree: ast.Module) -> str:
    lines = source.splitlines(keepends=True)
    for node in _statements(tree):
        if isinstance(node, _Documentable) and _documented(node):
            first = node.body[0]
            start, end = first.lineno - 1, first.end_lineno or first.lineno
            indent = lines[start][: first.col_offset]
            if not indent.strip():  # else it shares its line with the definition
                lines[start:end] = [""] * (end - start)
                if len(node.body) == 1 and not isinstance(node, ast.Module):
                    lines[start] = f"{indent}pass\n"
    return "".join(lines).lstrip("\n")


def _prose(name: str, tree: ast.Module) -> str:
    parts = []
    if _documented(tree):
        parts.append(f"The module {name}\n\n{ast.get_docstring(tree)}")
    _describe(tree, "", parts)
    return "\n\n".join(parts) + "\n" if parts else ""


def _describe(parent: ast.AST, prefix: str, parts: list[str]) -> None:
    """Append the docstrings of the classes and functions in ``parent``, in source order."""
    for node in ast.iter_child_nodes(parent):
        if isinstance(node, ast.ClassDef):
            if _documented(node):
                parts.append(f"The class {prefix}{node.name}\n\n{ast.get_docstring(node)}")
            _describe(node, f"{prefix}{node.name}.", parts)
        elif isinstance(node, _Function) and _documented(node):
            kind = "method" if prefix else "function"
            signature = f"{prefix}{node.name}({ast.unparse(node.args)})"
            parts.append(f"The {kind} {signature}\n\n{ast.get_docstring(node)}")
