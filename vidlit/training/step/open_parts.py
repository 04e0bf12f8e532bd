"""Which parts of a model are still trained, and which of them a step trains."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import nn

from vidlit.diffusion.noising import keyed_generator
from vidlit.diffusion.rectified_flow import RectifiedFlow
from vidlit.models.parts import Part

if TYPE_CHECKING:
    from vidlit.diffusion.loss import VelocityModel
    from vidlit.training.module import VideoDiffusionModule

_POSITIONS = 4096
"""Latent positions of a video of middling size: where a shift depends on the size, turns go by this one."""
TURN = 10
"""Optimizer steps that an expert trains in a row where the others wait on the CPU: moving 14 billion weights in
bfloat16 there and back takes about as long as a step (28 GB at 25 GB/s each way)."""


class OpenParts:
    """The parts of a model that are trained.

    Args:
        parts: of the model that take part in the run.
        seed: of the run.
        turn: optimizer steps that an expert trains in a row.
    """

    def __init__(self, parts: Sequence[Part], seed: int, turn: int = 1) -> None:
        self.parts = tuple(parts)
        self.seed, self.turn = seed, turn
        self.done: set[str] = set()
        """Names of parts that are trained no more."""

    @property
    def open(self) -> list[Part]:
        """Those that are still trained."""
        return [part for part in self.parts if part.name not in self.done]

    @property
    def scored(self) -> list[Part]:
        """Those that checks score: the open ones; all, when none is."""
        return self.open or list(self.parts)

    @property
    def take_turns(self) -> bool:
        """Whether a step trains one part alone: experts have noise levels of their own, streams share all of them."""
        return len({part.expert for part in self.parts}) > 1

    def of_step(self, step: int, noising: RectifiedFlow) -> list[Part]:
        """The parts that an optimizer step trains: all, or of those that take turns one, the same on every rank.

        Which one is drawn by the share of the noise levels that are its own, so that over the run each level is trained
        as often as if one transformer were asked at all of them. All batches of a step get the same answer, whatever
        their size.

        Args:
            step: number of the optimizer step.
            noising: how training draws sigmas.
        """
        parts = self.scored
        if not self.take_turns:
            return parts
        noising = noising.at(_POSITIONS)
        shares = torch.stack([noising.share_below(torch.tensor(part.sigmas).double()).diff()[0] for part in parts])
        draw = torch.rand(1, generator=keyed_generator("part", self.seed, step // self.turn), dtype=torch.float64)
        chosen = int(torch.searchsorted(shares.cumsum(0) / shares.sum(), draw).clamp(max=len(parts) - 1))
        return [parts[chosen]]

    def drop_gradients(self, parameters: Iterable[tuple[str, nn.Parameter]]) -> None:
        """Take the gradients of parts that are done, which other parts' losses reach, too: no step moves them.

        Args:
            parameters: of the module, with their names.
        """
        done = [part for part in self.parts if part.name in self.done]
        for name, parameter in parameters if done else ():
            if any(part.owns(name) for part in done):
                parameter.grad = None


def as_expert(module: VideoDiffusionModule, expert: str) -> VelocityModel:
    """A module as one of its experts, for all samples; as it is where it has one transformer."""
    return partial(module, expert=expert) if module.parts.take_turns else module
