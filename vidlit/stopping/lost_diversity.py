"""When samples of different prompts grow alike, against how alike the prompts' own clips are.

With ``rho`` the mean cosine between videos of different held-out prompts (``vidlit.metrics.sample_distance``),

    E = log((1 - rho of the samples) / (1 - rho of the prompts' clips))

is 0 where samples are as varied as the clips and -0.7 where they are half as varied. The reference is the data's own
variety, so a subject or a style, whose clips are alike, does not alarm; a model that answers every prompt with one clip
does.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from vidlit.stopping.verdict import Action, Verdict

LIMIT = -0.35
"""Of ``E``: samples 30 % less varied than the clips. Chosen on 40 runs and reported on others (docs/science.md)."""
MIN_FALL = 0.15
"""Below the run's own highest ``E``: a base that has not learned the style yet begins low and rises."""


def log_variety(samples: float, clips: float) -> float:
    """``E`` from the mean cosines of samples and of clips; NaN where one is unknown."""
    tiny = 1e-6  # clips that are all the same have no variety to lose
    if np.isnan(samples) or np.isnan(clips):
        return float("nan")
    return float(np.log(max(1 - samples, tiny)) - np.log(max(1 - clips, tiny)))


def judge_diversity(steps: Sequence[int], varieties: ArrayLike, on_training_prompts: bool = False) -> Verdict:
    """Judges how varied the samples still are.

    An alarm is an ``E`` of -0.35 or less that is 0.15 below the highest of the run; two in a row stop.

    Args:
        steps: Optimizer steps of the audits (J,), the base model's first.
        varieties: ``E`` of each audit (J,); NaN where no two prompts can be compared.
        on_training_prompts: Whether training prompts had to be taken in, because held-out recordings are few.

    Returns:
        A verdict with evidence: step, log_ratio (``E``), highest, highest_step, limit and alarms (in a row).

    Raises:
        ValueError: If there is no audit, or one without a value.
    """
    values = np.asarray(varieties, dtype=np.float64)
    if values.shape != (len(steps),) or not values.size:
        raise ValueError(f"varieties are {values.shape} for {len(steps)} audits, at least one is needed")
    if np.isnan(values[-1]):
        reason = "Diversity cannot be measured: no two prompts of different recordings have clips of one size."
        return Verdict("diversity", "continue", reason, {"step": int(steps[-1])})
    highest = np.maximum.accumulate(np.where(np.isnan(values), -np.inf, values))
    alarms = (values <= LIMIT) & (values <= highest - MIN_FALL)
    in_a_row = int(np.cumprod(alarms[::-1]).sum())
    best = int(np.nanargmax(values))
    evidence: dict[str, float | int | str] = {
        "step": int(steps[-1]),
        "log_ratio": float(values[-1]),
        "highest": float(values[best]),
        "highest_step": int(steps[best]),
        "limit": LIMIT,
        "alarms": in_a_row,
    }
    action: Action = "stop" if in_a_row > 1 else "warn" if in_a_row else "continue"
    now, then = (_percent(float(value)) for value in (values[-1], values[best]))
    found = "Samples of different prompts are becoming alike" if in_a_row else "Samples stay varied"
    reason = f"{found}: their variety is {now} against that of the prompts' own clips at step {steps[-1]}"
    if in_a_row:
        reason += f", after {then} at step {steps[best]} (limit {_percent(LIMIT)})"
    reason += "; few validation recordings, so training prompts count, too." if on_training_prompts else "."
    return Verdict(
        "diversity", action, reason + (" Stop soon, or lower the learning rate." if in_a_row else ""), evidence
    )


def _percent(log_ratio: float) -> str:
    return f"{100.0 * np.expm1(log_ratio):+.0f} %"
