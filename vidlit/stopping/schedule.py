"""How often to check and to audit: from counts alone, so that runs repeat to the digit.

The unit of cost is one evaluation of the transformer, forward only. A training step of ``B`` samples costs ``3 B`` (the
backward pass costs about twice the forward one), a check ``2 N K``: ``N`` validation clips and as many training clips
at ``K`` noise levels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

TRAINING_EVALUATIONS = 3
MAX_SHARE = 0.05
"""Of the cost of training that checks add, where the user does not say how often to check."""
MIN_CHECKS = 16
"""Within the planned steps: the rule decides nothing in the first 8, and a rise takes some to be confirmed."""
MIN_CLIPS = 8
"""Validation clips that are scored at least, where there are as many."""
MIN_AUDITS = 2
"""After step 0's: what two alarms in a row take, in runs too short for the share as well."""
DECODE_EVALUATIONS = 2
"""What decoding a sampled clip is counted as."""


@dataclass(frozen=True)
class CheckSchedule:
    """When validation clips are scored, and how many of them.

    Args:
        interval: Optimizer steps from one check to the next.
        num_clips: Validation clips scored at each.
        share: Of the cost of training that the checks add.
    """

    interval: int
    num_clips: int
    share: float


def check_schedule(max_steps: int, batch_size: float, num_clips: int, num_strata: int) -> CheckSchedule:
    """Chooses the interval of checks so that they add 5 % to the cost of training, but are 16 at least.

    Where 16 checks of all validation clips would cost more, fewer clips are scored, eight at least. Only where this is
    not enough do checks cost more than their share: fewer than 16 would not let the rule decide in time.

    Args:
        max_steps: Planned optimizer steps; not positive for a run without an end.
        batch_size: Samples per optimizer step, over all ranks and accumulated micro-batches.
        num_clips: Validation clips, at least one.
        num_strata: Noise levels for each.
    """
    step = TRAINING_EVALUATIONS * batch_size
    each = 2 * num_strata  # a validation clip and one of the training subset
    scored = num_clips
    longest = max_steps // MIN_CHECKS if max_steps > 0 else math.inf
    if max_steps > 0:
        affordable = math.floor(MAX_SHARE * step * max_steps / (MIN_CHECKS * each))
        scored = min(scored, max(affordable, MIN_CLIPS))
    interval = max(1, min(math.ceil(scored * each / (MAX_SHARE * step)), longest))
    return CheckSchedule(int(interval), scored, check_share(int(interval), batch_size, scored, num_strata))


def check_share(interval: int, batch_size: float, num_clips: int, num_strata: int) -> float:
    """Share of the cost of training that checks add: ``2 N K / (3 B M)``.

    Args:
        interval: Optimizer steps M from one check to the next.
        batch_size: Samples B per optimizer step.
        num_clips: Validation clips N that are scored, and as many of the training subset.
        num_strata: Noise levels K for each.
    """
    return 2 * num_clips * num_strata / (TRAINING_EVALUATIONS * batch_size * interval)


def audit_evaluations(num_clips: int, num_steps: int) -> float:
    """Cost of one audit: clips sampled in ``num_steps`` without guidance, and decoded."""
    return num_clips * (num_steps + DECODE_EVALUATIONS)


def audit_interval(audit_cost: float, step_cost: float, max_steps: int, max_share: float) -> int:
    """Optimizer steps between audits so that they add a share of the cost of training.

    A run too short for two of them in its share has two all the same, after step 0's: an alarm takes two to be sure.

    Args:
        audit_cost: Of one audit.
        step_cost: Of one optimizer step, in the same unit.
        max_steps: Planned optimizer steps; not positive for a run without an end.
        max_share: Of the cost of training.
    """
    affordable = max(1, math.ceil(audit_cost / (max_share * step_cost)))
    return min(affordable, max(1, max_steps // MIN_AUDITS)) if max_steps > 0 else affordable
