"""The commands: one file each, found by its name; what they share is in ``cli/``.

A command is a file here, or in ``running/``, with a function ``run(words)``. The first line of its docstring is its
line of ``vidlit --help``. Nothing heavy is imported before it is needed.
"""

from __future__ import annotations

import ast
from importlib import import_module
from pathlib import Path
from types import ModuleType

_HERE = Path(__file__).parent
IN_ORDER = tuple("fit validate test predict kfold plan encode export report sample stop judge dashboard demo".split())
"""As ``vidlit --help`` shows them; others follow by name."""


def summaries() -> dict[str, str]:
    """One line about each command, read from its file without importing it."""
    found = {}
    for path in _files():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if any(isinstance(node, ast.FunctionDef) and node.name == "run" for node in tree.body):
            found[path.stem] = (ast.get_docstring(tree) or "").partition("\n")[0]
    return {name: found[name] for name in sorted(found, key=_place)}


def load(name: str) -> ModuleType:
    """The file of a command, imported: ``run(words)`` runs it; ``parser()``, where it has one, reads its options.

    Args:
        name: of a command that :func:`summaries` lists.
    """
    (path,) = (path for path in _files() if path.stem == name)
    return import_module(".".join(["vidlit.commands", *path.relative_to(_HERE).with_suffix("").parts]))


def _files() -> list[Path]:
    return [path for folder in (_HERE, _HERE / "running") for path in folder.glob("*.py")]


def _place(name: str) -> tuple[int, str]:
    return (IN_ORDER.index(name) if name in IN_ORDER else len(IN_ORDER), name)
