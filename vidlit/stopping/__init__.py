"""Pure decisions: numbers in, a verdict with its reason and evidence out. Useful alone: needs numpy only."""

from vidlit.stopping.divergence import DivergenceHistory, DivergenceSettings, best_check, judge_divergence
from vidlit.stopping.exposure import band, video_exposures
from vidlit.stopping.schedule import CheckSchedule, check_schedule
from vidlit.stopping.stopper import Stopper
from vidlit.stopping.verdict import Verdict, join_parts

__all__ = [
    "CheckSchedule",
    "DivergenceHistory",
    "DivergenceSettings",
    "Stopper",
    "Verdict",
    "band",
    "best_check",
    "check_schedule",
    "join_parts",
    "judge_divergence",
    "video_exposures",
]
