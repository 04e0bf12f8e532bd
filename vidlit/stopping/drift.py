"""How much a model has forgotten: its predictions at captions that are not the clips', against its base's."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from vidlit.stopping.verdict import Verdict

LIMIT = 0.1
"""Drift from which on a run is told that it forgets: in the demo's runs (`benchmarks/preservation.py`) the loss on the
base's own kind of clips had risen by a tenth beyond it, and by 2 to 5 % at drifts of 4 to 8 %."""


def relative_drift(velocities: ArrayLike, base_velocities: ArrayLike) -> float:
    """The squared distance of predictions to the base's, as a share of the base's square.

    Args:
        velocities: Of the trained model, at fixed noise (K, ...).
        base_velocities: Of its base, the same shape.

    Raises:
        ValueError: If the shapes differ, or the base predicts nothing but zeros.
    """
    made, base = np.asarray(velocities, dtype=np.float64), np.asarray(base_velocities, dtype=np.float64)
    if made.shape != base.shape:
        raise ValueError(f"velocities of shape {made.shape} against the base's {base.shape}")
    square = float(np.square(base).sum())
    if square == 0:
        raise ValueError("the base predicts nothing but zeros")
    return float(np.square(made - base).sum()) / square


def judge_drift(drifts: ArrayLike, limit: float = LIMIT) -> Verdict:
    """Judges how far the model has moved where it had nothing to learn.

    Args:
        drifts: Of each check so far (J,), as :func:`relative_drift` gives them; the last one is judged.
        limit: Drift at which it asks to stop.

    Raises:
        ValueError: If there is no check, or the limit is not positive.
    """
    curve = np.asarray(drifts, dtype=np.float64)
    if curve.size == 0:
        raise ValueError("there is no check to judge")
    if not limit > 0:
        raise ValueError(f"the limit must be positive, got {limit}")
    last = float(curve[-1])
    if not np.isfinite(last):
        return Verdict("drift", "continue", "Predictions are not finite numbers.", {"case": "not finite"})
    evidence: dict[str, float | int | str] = {"drift": last, "limit": float(limit), "checks": int(curve.size)}
    moved = f"At captions that are not the clips', predictions have moved by {100 * last:.2g} % from the base model's"
    if last < limit:
        return Verdict("drift", "continue", f"{moved} (limit {100 * limit:g} %).", evidence)
    reason = (
        f"{moved}, more than {100 * limit:g} %: the model forgets. A lower learning rate, fewer steps or "
        "model.preservation keep more."
    )
    return Verdict("drift", "stop", reason, {**evidence, "case": "forgetting"})
