"""Every family there is: the classes of all files in ``families/``."""

from __future__ import annotations

import importlib
import pkgutil

from vidlit.models.family import Family


def known_families() -> dict[str, type[Family]]:
    """Every family, by the class name of its transformer; of one with variants, such as with sound, the plain one."""
    package = importlib.import_module("vidlit.models.families")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"vidlit.models.families.{module.name}")
    # A variant states no class of its own.
    return {family.transformer_class: family for family in _subclasses(Family) if "transformer_class" in vars(family)}


def _subclasses(family: type[Family]) -> list[type[Family]]:
    """All of them: one family may derive from another."""
    return [derived for child in family.__subclasses__() for derived in (child, *_subclasses(child))]
