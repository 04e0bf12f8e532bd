"""What a run will do and take, before it does anything: clips, steps, memory, time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vidlit.lazy import attach

if TYPE_CHECKING:
    from vidlit.forecast.run_plan import RunPlan as RunPlan
    from vidlit.forecast.run_plan import make_plan as make_plan

__getattr__, __dir__, __all__ = attach(__name__, __file__)
