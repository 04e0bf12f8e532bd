"""How a run ended, in plain words."""

from __future__ import annotations

import math
from typing import Any

from vidlit.run_directory import RunDirectory


def closing_paragraph(summary: dict[str, Any], directory: RunDirectory) -> str:
    """The run in plain words: why it stopped, which step is kept, how often videos were seen, where things lie."""
    if summary["stopped_by"] in ("interrupted", "error"):
        return (
            f"{summary['reason']} Step {summary['stop_step']} of {summary['planned_steps']} is saved. Go on with "
            f"--ckpt_path {directory.last_checkpoint}"
        )
    seen, best = summary["exposures"], summary["exposures_at_best"]
    if summary["kept_step"] == 0:
        kept = "The base model itself is kept (step 0): no check was better."
    else:
        change = -100 * math.expm1(-summary["gain"])
        kept = (
            f"Step {summary['kept_step']} is kept: its held-out loss is {change:.1f} % below the base model's, and "
            f"each video had been seen {best['mean']:.0f} times by then."
        )
    return (
        f"Stopped at step {summary['stop_step']} of {summary['planned_steps']} after {summary['seconds']:.0f} s by "
        f"{summary['stopped_by']}. {summary['reason']} {kept} At the end each video had been seen {seen['mean']:.0f} "
        f"times on average ({seen['min']} to {seen['max']}): {seen['band']}. Weights: {directory.weights}. Samples, "
        f"curves and decisions: {directory.path}"
    )
