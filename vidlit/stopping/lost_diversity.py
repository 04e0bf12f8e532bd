"""When generated clips lose diversity, measured on the same prompts and noise at every audit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from vidlit.stopping.verdict import Action, Verdict

MIN_SHARE = 0.7
"""Of the base model's diversity; less is an alarm where real clips are more diverse."""


def judge_diversity(steps: Sequence[int], diversity: ArrayLike, real_bound: float) -> Verdict:
    """Judges how different the generated clips still are.

    An alarm is a diversity below 0.7 of the base model's that is also below what all but 5 % of real subsets of the
    same size have: fine-tuning on few subjects is meant to narrow the samples. Two alarms in a row stop.

    Args:
        steps: Optimizer steps of the audits (J,), the base model's first.
        diversity: Effective number of different clips at each audit (J,).
        real_bound: 5 % bound of real subsets.

    Returns:
        A verdict with evidence: step, rke, base_rke, ratio, real_bound, alarms (in a row).

    Raises:
        ValueError: If there is no audit, or one without a value.
    """
    values = np.asarray(diversity, dtype=np.float64)
    if values.shape != (len(steps),) or not values.size:
        raise ValueError(f"diversity is {values.shape} for {len(steps)} audits, at least one is needed")
    alarms = (values < MIN_SHARE * values[0]) & (values < real_bound)
    in_a_row = int(np.cumprod(alarms[::-1]).sum())
    ratio = float(values[-1] / values[0])
    evidence: dict[str, float | int | str] = {
        "step": int(steps[-1]),
        "rke": float(values[-1]),
        "base_rke": float(values[0]),
        "ratio": ratio,
        "real_bound": float(real_bound),
        "alarms": in_a_row,
    }
    action: Action = "stop" if in_a_row > 1 else "warn" if in_a_row else "continue"
    found = "Samples lose diversity" if in_a_row else "Samples stay diverse"
    reason = (
        f"{found}: an effective number of {values[-1]:.3g} different samples at step {steps[-1]}, {100 * ratio:.3g} % "
        f"of the {values[0]:.3g} at step {steps[0]}; as many real clips reach {real_bound:.3g} or more."
    )
    return Verdict("diversity", action, reason, evidence)
