"""Noise levels of a DDPM schedule, for models that were trained on one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vidlit.diffusion.rectified_flow import RectifiedFlow


@dataclass(frozen=True)
class DDPMTimesteps(RectifiedFlow):
    """The project's straight paths, at the noise levels of a schedule's timesteps, weighted as a loss on ``v``.

    What :class:`RectifiedFlow` says of sigma holds here for the time, timestep / number of timesteps; uniform time
    makes each timestep as likely as the others.

    Args:
        levels: sigma of each timestep, rising.
    """

    distribution: Literal["uniform", "logit_normal"] = "uniform"
    levels: tuple[float, ...] = ()

    def quantile(self, probability: Tensor) -> Tensor:
        """See :meth:`RectifiedFlow.quantile`; one of the levels."""
        timestep = (super().quantile(probability) * len(self.levels)).long().clamp(0, len(self.levels) - 1)
        levels = torch.tensor(self.levels, dtype=probability.dtype)
        return levels.to(probability.device, non_blocking=True)[timestep]

    def weight(self, sigmas: Tensor) -> Tensor:
        """Turns the squared error of ``noise - latents`` into that of ``v``.

        With ``n^2 = (1 - sigma)^2 + sigma^2`` an error of ``v`` is ``n`` times the error of the velocity. Where a
        ``weighting`` is named it takes the place of that.
        """
        if self.weighting != "none":
            return super().weight(sigmas)
        return (1 - sigmas) ** 2 + sigmas**2
