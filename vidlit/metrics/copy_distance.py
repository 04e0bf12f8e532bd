"""Copies: how much nearer a generated clip is to a training clip than other clips are.

``d1`` is the distance to the nearest training clip, ``d2`` to the nearest one of a *different* recording: clips of one
recording are near each other, so that against all clips an exact copy of one of two such clips would score 1. Where the
nearest clip's recording has other clips, it matters how far these are from it: who prompts with a training caption asks
for another video of its scene, and a good one is nearer to that scene than to others, yet no copy. So

    ratio = d1 / t,  t at least d2 / 3 and at most d2

with ``t`` the distance from the nearest training clip to the nearest other clip of its recording. Clips of a recording
without movement are nearly the same; the lower bound keeps them from hiding copies. Where a recording has a single clip
``t`` is not known and is set to 7/9 of ``d2``. The ratio is 0 for an exact copy and about 1 for another video of the
scene, whatever the features' scale.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

MIN_TAKE, UNKNOWN_TAKE = 1 / 3, 7 / 9
"""Distance between clips of one recording, as a share of the distance to another: the least, and where not known."""


class NearestTrain(NamedTuple):
    """What is nearest to each of B clips in the training set."""

    ratio: Tensor
    """(B,) float32 from 0; NaN where it has no meaning: one recording only, or no distance at all"""
    clip: Tensor
    """(B,) int64, row of the nearest training clip"""


def nearest_train(features: Tensor, train: Tensor, groups: Tensor, takes: Tensor | None = None) -> NearestTrain:
    """Compares clips with the training set.

    Args:
        features: (B, D) of the clips.
        train: (N, D) of the training clips.
        groups: (N,) int64 number of each training clip's recording, from 0.
        takes: (N,) from :func:`take_distances`; computed where not given.

    Returns:
        Ratio and nearest clip of each.
    """
    distance = _distance(features, train)
    num_groups = max(2, int(groups.max()) + 1)
    of_group = distance.new_full((len(features), num_groups), torch.inf)
    of_group.scatter_reduce_(1, groups.expand(len(features), -1), distance, "amin")
    d1, d2 = of_group.topk(2, largest=False).values.unbind(1)
    clip = distance.argmin(1)
    take = (take_distances(train, groups) if takes is None else takes)[clip]
    take = torch.where(take.isinf(), UNKNOWN_TAKE * d2, take.clamp(MIN_TAKE * d2, d2))
    return NearestTrain(torch.where(d2.isinf(), torch.nan, d1 / take), clip)


def take_distances(train: Tensor, groups: Tensor) -> Tensor:
    """Distance from each training clip to the nearest other clip of its recording.

    Args:
        train: (N, D).
        groups: (N,) int64.

    Returns:
        (N,) float32; infinite for the only clip of a video.
    """
    nearest = train.new_full((len(train),), torch.inf, dtype=torch.float32)
    for rows in torch.split(groups.argsort(), groups.bincount().tolist()):
        if len(rows) > 1:
            nearest[rows] = _distance(train[rows], train[rows]).fill_diagonal_(torch.inf).min(1).values
    return nearest


def copy_ratio(content: Tensor, motion: Tensor) -> Tensor:
    """A copy repeats both what is seen and how it moves, so the larger of both ratios (B,) counts.

    A NaN (stills have no motion) is passed over.
    """
    return torch.fmax(content, motion)


class CopyDistance(Metric):
    """Collects :func:`nearest_train` of generated clips over batches and ranks.

    Args:
        train: (N, D) features of the training clips.
        groups: (N,) int64 number of each training clip's recording, from 0.

    Example:
        >>> metric = CopyDistance(train=torch.tensor([[0.0], [1.0], [9.0]]), groups=torch.tensor([0, 0, 1]))
        >>> metric.update(torch.tensor([1, 0]), torch.tensor([[2.0], [9.0]]))
        >>> ratio, clip = metric.compute()
        >>> ratio.tolist(), clip.tolist()
        ([0.0, 0.4285714030265808], [2, 1])
    """

    full_state_update = False
    higher_is_better = True
    is_differentiable = False
    found: list[Tensor]
    train_features: Tensor
    groups: Tensor
    takes: Tensor

    def __init__(self, train: Tensor, groups: Tensor, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.register_buffer("train_features", train, persistent=False)
        self.register_buffer("groups", groups, persistent=False)
        self.register_buffer("takes", take_distances(train, groups), persistent=False)
        # One flat float32 state of (row, ratio, clip): for a rank without samples torchmetrics gathers an empty tensor
        # of one dimension and that dtype, and would hang or fail on any other state. Rows are exact below 2**24.
        self.add_state("found", [], dist_reduce_fx="cat")

    def update(self, rows: Tensor, features: Tensor) -> None:
        """Adds clips by their rows (B,), which :meth:`compute` orders by, with their features (B, D)."""
        ratio, clip = nearest_train(features, self.train_features, self.groups, self.takes)
        self.found.append(torch.stack([rows.to(ratio), ratio, clip.to(ratio)], dim=1).flatten())

    def compute(self) -> NearestTrain:
        """Of all clips, by row."""
        found = dim_zero_cat(self.found).view(-1, 3)
        found = found[found[:, 0].argsort()]
        return NearestTrain(found[:, 1], found[:, 2].long())


def _distance(left: Tensor, right: Tensor) -> Tensor:
    # The faster matrix form loses the digits of small distances, and copies are at small distances.
    return torch.cdist(left.float(), right.float(), compute_mode="donot_use_mm_for_euclid_dist")
