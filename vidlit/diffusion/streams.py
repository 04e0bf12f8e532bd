"""Several streams that one transformer denoises together: the picture, and for example the sound that goes with it.

What there is one of for each stream (noise, noise level, velocity, loss) is a Tensor where the picture is the only
stream, and a dict by the streams' names where there are several: what a function makes comes as its noise came.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor

LATENTS = "latents"
"""Name of the stream that every family has, the picture."""

Given = TypeVar("Given", Tensor, dict[str, Tensor])


@dataclass(frozen=True)
class Stream:
    """One of the things that a family's transformer denoises together, each at a noise level of its own in training.

    Args:
        name: ``latents``, the picture, or the one of the family's ``clip_extras`` that holds its clean latents.
        loss_weight: of its loss in training; each is validated by itself.
        title: what people call it.
        weights: pattern that finds the names of the parameters that make it; all others make the picture.
        marker: name of the clip extra (B, 1) that is 0 where a clip has no such stream; none where all have.
    """

    name: str = LATENTS
    loss_weight: float = 1.0
    title: str = ""
    weights: str = ""
    marker: str = ""


def by_stream(given: Tensor | Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A dict by the streams' names of what may be of the picture alone."""
    return {LATENTS: given} if isinstance(given, Tensor) else dict(given)


def as_given(made: dict[str, Tensor], given: Given) -> Given:
    """What was made of each stream, in the form in which something else was given."""
    return made[LATENTS] if isinstance(given, Tensor) else made
