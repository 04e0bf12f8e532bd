"""Paired validation: each clip's loss at its own fixed noise and sigmas, as a log-ratio to the base model's.

A log-ratio does not change under per-sigma loss weights, nor between predicting noise, v or velocity, so one number
serves every family. Negative is better; 0 is the base model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

HIGH_SIGMA = 0.7
HIGH_SIGMA_WEIGHT = 0.25
"""Of levels above ``HIGH_SIGMA``. On 40 runs on real clips (``python -m benchmarks.stopping --real``) the best check of
training from scratch is found best without them, that of LoRA at half their weight and badly without: between the two.

Weights do not follow the variances that a run shows. On real tiny runs (``python -m benchmarks.stopping.strata``) the
regret of the best check was that of even weights, the jitter a little lower in fine-tuning and no lower elsewhere: too
little for a curve whose meaning would change from check to check.
"""


class PairedLoss(Metric):
    """Collects the losses of a fixed set of clips at fixed strata, exactly, over any number of batches and ranks.

    The states are sums over ranks of a table in which every clip has its own row, so neither the order of clips nor
    how they are spread over ranks can change the result.

    Args:
        num_clips: rows of the table.
        num_strata: evaluations of each clip.

    Example:
        >>> metric = PairedLoss(num_clips=2, num_strata=2)
        >>> metric.update(torch.tensor([1, 0]), torch.tensor([[3.0, 4.0], [1.0, 2.0]]))
        >>> metric.compute().tolist()
        [[1.0, 2.0], [3.0, 4.0]]
    """

    full_state_update = False
    higher_is_better = False
    is_differentiable = False
    total: Tensor
    count: Tensor

    def __init__(self, num_clips: int, num_strata: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("total", torch.zeros(num_clips, num_strata, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros(num_clips, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, indices: Tensor, losses: Tensor) -> None:
        """Add clips by their rows (B,), on any device, with their losses (B, num_strata)."""
        indices = indices.to(self.total.device)
        self.total.index_add_(0, indices, losses.to(self.total))
        self.count.index_add_(0, indices, torch.ones_like(indices, dtype=self.count.dtype))

    def compute(self) -> Tensor:
        """(num_clips, num_strata) float64; NaN for a clip that was not scored."""
        return self.total / self.count[:, None]


def scored_rows(losses: Tensor) -> Tensor:
    """Rows of the clips that were scored, ascending, in what a :class:`PairedLoss` computed."""
    return (~losses.isnan().all(dim=1)).nonzero()[:, 0]


def log_ratio(losses: Tensor, reference: Tensor, sigmas: Tensor) -> Tensor:
    """Weighted mean over strata of ``log(loss / reference)``, for each clip.

    Args:
        losses: (N, K) now.
        reference: (N, K) at step 0.
        sigmas: (N, K) where they were taken.

    Returns:
        (N,) with the dtype of ``losses``.
    """
    weight = torch.where(sigmas > HIGH_SIGMA, HIGH_SIGMA_WEIGHT, 1.0).to(losses)
    return ((losses / reference).log() * weight).sum(1) / weight.sum(1)


@dataclass(frozen=True)
class PairedSummary:
    """A set of clips under two models, in the numbers that one would print.

    Args:
        clips: scored.
        videos: recordings they come from.
        reference: mean loss of the base model.
        loss: mean loss now.
        log_ratio: mean over clips of the weighted ``log(loss / reference)``; negative is better.
        standard_error: of its mean over recordings; NaN for a single one.
        log_ratio_bins: mean ``log(loss / reference)`` in each stratum, lowest noise first.
    """

    clips: int
    videos: int
    reference: float
    loss: float
    log_ratio: float
    standard_error: float
    log_ratio_bins: tuple[float, ...]


def summarise(losses: Tensor, reference: Tensor, sigmas: Tensor, videos: Sequence[str]) -> PairedSummary:
    """What changed between the base model and now.

    Args:
        losses: (N, K) now.
        reference: (N, K) of the base model.
        sigmas: (N, K) where they were taken.
        videos: Recording of each clip (N,): clips of one recording say the same thing twice.
    """
    ratios = log_ratio(losses, reference, sigmas)
    numbers = {video: number for number, video in enumerate(dict.fromkeys(videos))}
    member = torch.tensor([numbers[video] for video in videos])
    by_video = torch.stack([ratios[member == number].mean() for number in range(len(numbers))])
    return PairedSummary(
        clips=len(videos),
        videos=len(numbers),
        reference=float(reference.mean()),
        loss=float(losses.mean()),
        log_ratio=float(ratios.mean()),
        standard_error=float(by_video.std() / len(numbers) ** 0.5) if len(numbers) > 1 else float("nan"),
        log_ratio_bins=tuple((losses / reference).log().mean(0).tolist()),
    )
