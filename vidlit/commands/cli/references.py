"""Whether the data has references: what the options of the model say."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from vidlit.diffusion.conditions import REFERENCE

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser


def link_references(parser: ArgumentParser) -> None:
    """Have the data ask every row for a reference where ``model.conditions`` gives some."""
    parser.link_arguments("model.conditions", "data.references", compute_fn=asks_for_references)


def asks_for_references(conditions: Iterable[Any] | None) -> bool:
    """Whether one of the conditions, as the parser gives them, is a reference."""
    return any(given.get("init_args", given).get("frames") == REFERENCE for given in conditions or ())
