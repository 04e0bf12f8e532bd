"""Diversity: how many clearly different clips a set holds, in effect.

Renyi kernel entropy of order 2 (https://arxiv.org/abs/2307.09037): ``RKE = 1 / ||K / n||_F^2`` with a Gaussian kernel
K. It is 1 when all clips are alike and n when none is like another.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat


def rke(features: Tensor, bandwidth: float) -> Tensor:
    """Effective number of different clips.

    Args:
        features: (n, D), n >= 1.
        bandwidth: of the Gaussian kernel, in units of the features.

    Returns:
        Scalar float64 in [1, n].
    """
    distance = torch.cdist(features.double(), features.double(), compute_mode="donot_use_mm_for_euclid_dist")
    return _rke(_kernel(distance, bandwidth))


def kernel_bandwidth(real: Tensor) -> float:
    """Half the median distance between real clips (N, D): most pairs of them then count as different.

    0 where they do not differ: diversity has no scale there.
    """
    distances = torch.pdist(_thinned(real).double())
    return float(distances.median()) / 2 if len(distances) else 0.0


def subset_bound(real: Tensor, bandwidth: float, num_clips: int, share: float = 0.05, seed: int = 0) -> float:
    """RKE that a share of real subsets of a size stay below: fewer different clips than chance picks of real ones.

    Args:
        real: (N, D) features of real clips.
        bandwidth: of the kernel.
        num_clips: size of the subsets, drawn without replacement; at most N are drawn.
        share: quantile of the subsets.
        seed: of the 1,000 subsets.
    """
    real = _thinned(real).double()
    kernel = _kernel(torch.cdist(real, real), bandwidth).cpu()
    generator = torch.Generator().manual_seed(seed)
    subsets = torch.rand(1000, len(real), generator=generator).argsort(1)[:, :num_clips]
    values = _rke(kernel[subsets[:, :, None], subsets[:, None, :]])
    return float(values.quantile(share))


class Diversity(Metric):
    """:func:`rke` of generated clips over batches and ranks.

    Args:
        num_features: D.
        bandwidth: of the kernel, in units of the features; see :func:`kernel_bandwidth`.

    Example:
        >>> metric = Diversity(num_features=1, bandwidth=1.0)
        >>> metric.update(torch.tensor([[0.0], [0.0]]))
        >>> metric.update(torch.tensor([[50.0], [50.0]]))
        >>> metric.compute().item()
        2.0
    """

    full_state_update = False
    higher_is_better = True
    is_differentiable = False
    features: list[Tensor]

    def __init__(self, num_features: int, bandwidth: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_features = num_features
        self.bandwidth = bandwidth
        # Flat and float32, as torchmetrics fills in for a rank without samples.
        self.add_state("features", [], dist_reduce_fx="cat")

    def update(self, features: Tensor) -> None:
        """Adds features (B, D) of clips."""
        self.features.append(features.float().flatten())

    def compute(self) -> Tensor:
        """Scalar float64 in [1, n] over all n clips."""
        return rke(dim_zero_cat(self.features).view(-1, self.num_features), self.bandwidth)


def _kernel(distance: Tensor, bandwidth: float) -> Tensor:
    return torch.exp(-distance.square() / (2 * bandwidth**2))


def _rke(kernel: Tensor) -> Tensor:
    """Of kernels (..., n, n)."""
    return 1 / (kernel / kernel.shape[-1]).square().sum((-2, -1))


def _thinned(real: Tensor, most: int = 1024) -> Tensor:
    """Evenly spaced rows, so that pairs stay countable."""
    if len(real) <= most:
        return real
    return real[torch.linspace(0, len(real) - 1, most).long().to(real.device)]
