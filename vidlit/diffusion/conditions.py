"""Conditions: latent frames that a share of the samples is given without noise, and learns to go on from.

A given frame is at sigma 0 in place, as the image-to-video pipelines of these families put it, and has no loss. A
reference is another video, given beside the noisy one: in-context LoRA, as video-to-video and control are trained.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from vidlit.errors import UserError

REFERENCE = "reference"
"""Latents (B, C, F, H, W) among the conditioning's extras, of the videos that clips are made from."""


@dataclass(frozen=True)
class Condition:
    """What a share of the samples is given.

    Args:
        frames: latent frames without noise: the ``first``; the ``last``; ``first_last``, both; a number, as many at the
            beginning; or ``any``, a number of them and places drawn at random, but never all. A clip of which nothing
            would be left to make is given none. ``reference`` is none of the clip's own frames, but the video or image
            that the column ``reference`` of its row names: every sample has it, with other conditions or alone.
        share: of the samples, from 0 to 1; a sample has one condition at most beside its reference, so the shares of
            all others sum to 1 or less.

    Raises:
        UserError: an option is out of range.
    """

    frames: Literal["first", "last", "first_last", "any", "reference"] | int = "first"
    share: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise UserError(f"model.conditions: the share of {self.frames} is {self.share:g}: it must be from 0 to 1.")
        if isinstance(self.frames, int) and self.frames < 1:
            raise UserError(f"model.conditions: frames is {self.frames}: a number of latent frames is at least 1.")
        if self.frames == REFERENCE and self.share != 1:
            raise UserError(
                f"model.conditions: the share of reference is {self.share:g}: every sample has its reference, so leave "
                "the share out."
            )

    def given(self, num_frames: int, places: Tensor | None) -> Tensor:
        """Which of a sample's latent frames are given.

        Args:
            num_frames: F.
            places: (B, 1 + F), numbers between 0 and 1 by which ``any`` chooses; the others need none.

        Returns:
            (B, F) bool; (1, F) where it is the same for all.
        """
        given = torch.zeros(1, num_frames, dtype=torch.bool)
        if self.frames == "any" and places is not None:
            number = 1 + (places[:, :1] * (num_frames - 1)).floor()
            given = places[:, 1:].argsort(dim=1).argsort(dim=1) < number
        elif isinstance(self.frames, int):
            given[:, : self.frames] = True
        else:
            given[:, 0] = self.frames in ("first", "first_last")
            given[:, -1] |= self.frames in ("last", "first_last")
        return given & ~given.all(dim=1, keepdim=True)


class GivenFrames(NamedTuple):
    """Clean latents that samples are made from."""

    latents: Tensor
    """(B, C, F, H, W), of which only given frames are read"""
    mask: Tensor
    """(B, F) bool, which are given"""

    def put_into(self, latents: Tensor) -> Tensor:
        """Latents (B, C, F, H, W) with the given frames in their places."""
        return torch.where(self.mask[:, None, :, None, None], self.latents.to(latents), latents)

    def to(self, device: torch.device | str) -> GivenFrames:
        """The same on another device."""
        return GivenFrames(self.latents.to(device), self.mask.to(device))


def reads_references(conditions: Sequence[Condition] | None) -> bool:
    """Whether samples are made from references."""
    return any(condition.frames == REFERENCE for condition in conditions or ())


def of_own_frames(conditions: Sequence[Condition] | None) -> tuple[Condition, ...]:
    """Those that give a sample frames of its own: what all other functions here are about."""
    return tuple(condition for condition in conditions or () if condition.frames != REFERENCE)


def check_conditions(conditions: Sequence[Condition]) -> None:
    """Refuse a list that gives samples more than one condition.

    Raises:
        UserError: its shares sum to more than 1.
    """
    total = sum(condition.share for condition in conditions)
    if total > 1 + 1e-6:
        raise UserError(
            f"model.conditions: the shares sum to {total:g}: a sample has one condition at most, so they must sum to 1 "
            "or less."
        )


def are_always_given(conditions: Sequence[Condition]) -> bool:
    """Whether every sample has a condition: the model is for that alone, and its samples start from given frames."""
    return sum(condition.share for condition in conditions) >= 1 - 1e-6


def given_frames(
    conditions: Sequence[Condition], chosen: Tensor, num_frames: int, draw: Callable[[int], Tensor]
) -> Tensor:
    """Which frames of each sample are given.

    Args:
        conditions: of which a sample has one or none.
        chosen: (B,), numbers between 0 and 1 that say which.
        num_frames: F, latent frames of a sample.
        draw: makes further such numbers (B, N), N of them; called where a condition leaves to chance what it gives.

    Returns:
        (B, F) bool.
    """
    places = draw(1 + num_frames) if any(condition.frames == "any" for condition in conditions) else None
    given = torch.zeros(len(chosen), num_frames, dtype=torch.bool, device=chosen.device)
    low = 0.0
    for number, condition in enumerate(conditions, start=1):
        # Shares that sum to 1 leave no number out, whatever rounding says.
        is_end = number == len(conditions) and are_always_given(conditions)
        high = 1.0 if is_end else low + condition.share
        has_it = (chosen >= low) & (chosen < high)
        given |= condition.given(num_frames, places).to(chosen.device, non_blocking=True) & has_it[:, None]
        low = high
    return given


def without_noise(sigmas: Tensor, given: Tensor) -> Tensor:
    """Noise levels (B, F) by frame of sigmas (B,), with none on given frames (B, F)."""
    return sigmas[:, None] * ~given
