"""The commands: one file each, found by its name; what they share is in ``cli/``.

A command is a file here, or in ``on_runs/``, with a function ``run(words)``. The first line of its docstring is its
line of ``vidlit --help``. Nothing heavy is imported before it is needed.
"""

from __future__ import annotations

import ast
from importlib import import_module
from pathlib import Path
from types import ModuleType

IN_ORDER = tuple(
    "init fit validate test predict kfold plan encode export report watch sample stop judge dashboard demo".split()
)
"""As ``vidlit --help`` shows them; others follow by name."""
_FOLDERS = (Path(__file__).parent, Path(__file__).parent / "on_runs")


def summaries() -> dict[str, str]:
    """One line about each command, read from its file without importing it."""
    found = {}
    for path in (each for folder in _FOLDERS for each in folder.glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if any(isinstance(node, ast.FunctionDef) and node.name == "run" for node in tree.body):
            found[path.stem] = (ast.get_docstring(tree) or "").partition("\n")[0]
    return {name: found[name] for name in sorted(found, key=_place)}


def load(name: str) -> ModuleType:
    """The file of a command, imported: ``run(words)`` runs it; ``parser()``, where it has one, reads its options.

    Args:
        name: of a command that :func:`summaries` lists.
    """
    (folder,) = (folder for folder in _FOLDERS if (folder / f"{name}.py").is_file())
    return import_module(".".join([__name__, *folder.relative_to(_FOLDERS[0]).parts, name]))


def _place(name: str) -> tuple[int, str]:
    return (IN_ORDER.index(name) if name in IN_ORDER else len(IN_ORDER), name)
