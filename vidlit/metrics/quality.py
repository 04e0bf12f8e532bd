"""FID, KID and MIFID of torchmetrics over features of sets of clips (``vidlit.models.features``).

They compare two sets as a whole and need many clips: hundreds for KID, thousands for FID. All three are distances of
generated clips to training clips; FID and KID call a set of copies perfect, MIFID is divided by how near they are.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance
from torchmetrics.image.mifid import MemorizationInformedFrechetInceptionDistance

Quality = Literal["fid", "kid", "mifid"]


class Measured(nn.Module):
    """Hands features through that were extracted before: what torchmetrics takes as ``feature``.

    Args:
        num_features: their number.
    """

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        """(B, num_features) as they are."""
        return features


def quality(names: Sequence[Quality], generated: Tensor, real: Tensor, seed: int = 0) -> dict[str, float]:
    """Distances of generated clips to real ones; lower is better.

    Args:
        names: which.
        generated: (n, D) features, n >= 2.
        real: (N, D) features, N >= 2.
        seed: of KID's 100 pairs of subsets; the caller keeps the global generator.

    Returns:
        Each distance by name; KID is the mean over its subsets. Empty where there are fewer than two clips.

    Example:
        >>> real = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
        >>> copies, others = quality(["fid"], real, real), quality(["fid"], real + 3, real)
        >>> copies["fid"] < 0.01 < others["fid"]
        True
    """
    if min(len(generated), len(real)) < 2:
        return {}
    feature = Measured(real.shape[1])
    found: dict[str, float] = {}
    for name in names:
        metric: FrechetInceptionDistance | KernelInceptionDistance | MemorizationInformedFrechetInceptionDistance
        if name == "kid":
            torch.manual_seed(seed)
            with warnings.catch_warnings(action="ignore"):  # of the memory that features take
                metric = KernelInceptionDistance(feature=feature, subset_size=min(50, len(generated), len(real)))
        else:
            kind = FrechetInceptionDistance if name == "fid" else MemorizationInformedFrechetInceptionDistance
            metric = kind(feature=feature)
        metric.sync_on_compute = False  # every rank holds all features
        metric.update(real.cpu(), real=True)
        metric.update(generated.cpu(), real=False)
        value = metric.compute()
        found[name] = float(value[0] if isinstance(value, tuple) else value)
    return found
