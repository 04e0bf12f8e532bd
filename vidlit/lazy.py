"""Names of a package that are imported when they are first used, so that the package itself is there at once."""

from __future__ import annotations

import ast
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any


def attach(package: str, file: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """What a package's ``__init__`` takes as its ``__getattr__``, ``__dir__`` and ``__all__``.

    The names are those that its ``if TYPE_CHECKING:`` block imports: type checkers and editors read the same block.

    Args:
        package: ``__name__`` of the package.
        file: its ``__file__``.

    Example::

        if TYPE_CHECKING:
            from vidlit.models.family import open_family as open_family

        __getattr__, __dir__, __all__ = attach(__name__, __file__)
    """
    places = {
        alias.asname or alias.name: f"{statement.module}.{alias.name}"
        for block in ast.parse(Path(file).read_text(encoding="utf-8")).body
        if isinstance(block, ast.If) and isinstance(block.test, ast.Name) and block.test.id == "TYPE_CHECKING"
        for statement in block.body
        if isinstance(statement, ast.ImportFrom)
        for alias in statement.names
    }

    def get(name: str) -> Any:
        if name not in places:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module, _, attribute = places[name].rpartition(".")
        return getattr(import_module(module), attribute)

    return get, lambda: sorted(places), sorted(places)
