"""When to check and what is scored: from counts alone, so that runs repeat to the digit.

The unit of cost is one evaluation of the transformer, forward only. A training step of ``B`` samples costs ``3 B`` (the
backward pass costs about twice the forward one), a check ``E = (N + M) K``: ``N`` validation clips and ``M`` training
clips at ``K`` noise levels.

Nobody knows where a loss will turn, so checks begin dense and the spacing doubles as the run goes on: 32 checks, then
16 for every doubling of the steps. A turn at step 300 is seen as early, as a share of 300, as one at 30,000, and
``max_steps`` decides nothing. Searched over constant, geometric and square-root spacings, 16 to 240 checks and
8 to 64 evaluations each, on simulated runs (``benchmarks/stopping``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

TRAINING_EVALUATIONS = 3
FIRST_SHARE = 0.3
"""Of the cost of training that checks add before the spacing doubles for the first time; half of it by then, a quarter
one doubling later. Half of it finds the turn of a short run too late: 78 % of the worst cell's overfit runs are missed
instead of 18, and all costs more; twice as much costs 4 points more."""
MAX_ROWS = 32
"""Spacings after which the spacing doubles. 48 cost 3 points more, 24 miss half as many plateaus again."""
MIN_VAL_CLIPS, MAX_VAL_CLIPS = 4, 16
"""Validation clips that are scored: one of each recording between these. The number of recordings decides how good the
kept check is: 16 lose 1 % of the gain on real runs, 8 lose 3 %; more clips of the same ones change nothing."""
MIN_TRAIN_EVAL_CLIPS = 4
"""Training clips that are scored: what a test across recordings takes. Their fall is far larger than its jitter."""
MIN_AUDITS = 2
"""After step 0's: what two alarms in a row take, in runs too short for the share as well."""
DECODE_EVALUATIONS = 2
"""What decoding a sampled clip is counted as."""


def scored_val_clips(num_groups: int) -> int:
    """Validation clips to score at a check, where there are as many, of so many recordings."""
    return min(max(num_groups, MIN_VAL_CLIPS), MAX_VAL_CLIPS)


def scored_train_clips(num_val_clips: int) -> int:
    """Training clips to score beside so many validation clips: a quarter of them, four at least."""
    return max(num_val_clips // 4, MIN_TRAIN_EVAL_CLIPS)


@dataclass(frozen=True)
class CheckSchedule:
    """The steps at which a run is checked.

    Args:
        first: Optimizer steps from one check to the next, at the beginning.
        doubles: Whether the spacing doubles at step ``32 first`` and whenever the run has doubled since.
    """

    first: int
    doubles: bool = True

    def spacing(self, step: int) -> int:
        """Steps from a check at this step to the next one, or between the checks around it.

        Every check is a multiple of the spacing at the step before it.
        """
        spacing = self.first
        while self.doubles and step >= MAX_ROWS * spacing:
            spacing *= 2
        return spacing

    def checks(self, until: int) -> list[int]:
        """The steps of all checks of a run of so many steps, without step 0: its last step is always checked."""
        found = []
        step = self.spacing(0)
        while step < until:
            found.append(step)
            step += self.spacing(step)
        return [*found, until]

    def share(self, evaluations: float, batch_size: float, max_steps: int) -> float:
        """Share of the cost of training that checks add, step 0's not counted.

        Args:
            evaluations: E of one check.
            batch_size: Samples B per optimizer step.
            max_steps: Planned optimizer steps; where not positive, the share before the first doubling.
        """
        each = evaluations / (TRAINING_EVALUATIONS * batch_size)
        return each * len(self.checks(max_steps)) / max_steps if max_steps > 0 else each / self.first


def check_schedule(batch_size: float, evaluations: float) -> CheckSchedule:
    """Chooses the first spacing: checks add 30 % to the cost of training until it doubles.

    Args:
        batch_size: Samples per optimizer step, over all ranks and accumulated micro-batches.
        evaluations: Of one check: clips scored, times noise levels.
    """
    return CheckSchedule(max(1, math.ceil(evaluations / (TRAINING_EVALUATIONS * batch_size * FIRST_SHARE) - 1e-9)))


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
