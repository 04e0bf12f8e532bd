"""When the validation loss has turned: a paired sequential test on log-ratios to step 0.

The rule reads the validation log-ratios of all checks so far and asks, in this order:

- *no gain*: has it left step 0, the base model, without ever having surely fallen?
- *divergence*: has it left its lowest stretch for good? The rise since then, less a share of the gain that is not worth
  stopping for, must be significant over all rows; it must have lasted a share of the time that it took to get there,
  still grow, and hold across recordings, since clips of one recording are not independent;
- *plateau*: does it no longer improve while the training subset's still falls?

The rule sees means of the checks over 16 to 32 even intervals (:mod:`vidlit.stopping.rows`); the best check is one of
the checks themselves. Everything is a pure function of the history, so a resumed run decides as the uninterrupted one.

Fewer than four validation recordings are too few to tell whether a rise holds for others. The rule then asks that all
of them agree and that the rise lasts twice as long, and says so in its reason.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from vidlit.stopping import curves, rows
from vidlit.stopping.rule import CASES, MIN_VIDEOS, DivergenceSettings, assess
from vidlit.stopping.verdict import Action, Verdict

__all__ = [
    "DivergenceHistory",
    "DivergenceSettings",
    "best_check",
    "check_scores",
    "conservative_check",
    "judge_divergence",
]


@dataclass(frozen=True)
class DivergenceHistory:
    """Paired log-ratios to step 0 at every check so far; the first check is step 0.

    Args:
        steps: Optimizer steps of the checks (J,), starting with 0, increasing.
        val: Log-ratio of each validation clip (J, N); the first row is zeros; negative is better.
        train_eval: Log-ratio of each scored training clip (J, M), scored alike; with M = 0 no plateau can be told.
        val_videos: Recording of each validation clip (N,).
        train_eval_videos: Recording of each scored training clip (M,).

    Raises:
        ValueError: If the shapes disagree, or the first check is not step 0.
    """

    steps: NDArray[np.int64]
    val: NDArray[np.floating]
    train_eval: NDArray[np.floating]
    val_videos: tuple[str, ...]
    train_eval_videos: tuple[str, ...]

    def __post_init__(self) -> None:
        checks = len(self.steps)
        for name, values, videos in (
            ("val", self.val, self.val_videos),
            ("train_eval", self.train_eval, self.train_eval_videos),
        ):
            if values.shape != (checks, len(videos)):
                raise ValueError(f"{name} is {values.shape}, expected {checks} checks x {len(videos)} labelled clips")
        if not self.val_videos:
            raise ValueError("there is no validation clip: at least one is needed")
        if checks == 0 or self.steps[0] != 0 or np.any(self.val[0]) or np.any(self.train_eval[0]):
            raise ValueError("the first check must be step 0, where every log-ratio is zero")
        if np.any(np.diff(self.steps) <= 0):
            raise ValueError("steps must increase")

    def first(self, num_checks: int) -> DivergenceHistory:
        """What was known after so many checks."""
        curves = {name: getattr(self, name)[:num_checks] for name in ("steps", "val", "train_eval")}
        return replace(self, **curves)


def check_scores(history: DivergenceHistory) -> NDArray[np.float64]:
    """What checks are ranked by (J,): the mean validation log-ratio without the jumps of single recordings.

    See :func:`vidlit.stopping.curves.without_jumps`. Infinite where a clip's loss was not finite. A score never
    changes with later checks.
    """
    usable = np.isfinite(history.val).all(axis=1)
    val = history.val[usable].astype(np.float64)
    scores = np.full(len(history.val), np.inf)
    scores[usable] = curves.without_jumps(val.mean(axis=1), curves.by_video(val, history.val_videos))
    return scores


def best_check(history: DivergenceHistory) -> int:
    """Index of the check with the lowest score; 0 is the base model."""
    return int(check_scores(history).argmin())


def conservative_check(history: DivergenceHistory, share: float = 0.1) -> int:
    """Index of the earliest check whose gain, by score, is within ``share`` of the best gain."""
    scores = check_scores(history)
    return int(np.argmax(scores <= (1.0 - share) * scores.min()))


def judge_divergence(
    history: DivergenceHistory,
    settings: DivergenceSettings | None = None,
    *,
    warmup_steps: int = 0,
) -> Verdict:
    """Judges the validation loss after the latest check. How many steps are planned changes nothing.

    Args:
        history: Log-ratios of all checks so far, step 0 included, at any steps.
        settings: Numbers of the rule.
        warmup_steps: Optimizer steps until the learning-rate warm-up is over.

    Returns:
        A verdict with evidence: case ("learning", "still improving" where the latest check is the best, "warm-up",
        "no gain", "divergence", "plateau", or "not finite", which no mode hides), best_step and best_check (0 for "no
        gain"), gain and gap (log-ratios), the numbers of recordings and, after the warm-up, statistic, threshold,
        jitter, excess, train_eval_excess and p_value.
    """
    videos = len(set(history.val_videos))
    step = int(history.steps[-1])
    if not (np.isfinite(history.val[-1]).all() and np.isfinite(history.train_eval[-1]).all()):
        return Verdict(
            "divergence",
            "stop",
            f"At step {step} the loss of a validation clip, or of the training subset, is no longer a finite number: "
            "training has become unstable; lower the learning rate.",
            {"case": "not finite", "step": step, "held_out_videos": videos},
            fatal=True,
        )
    # A check that was not finite (the user went on) says nothing about any trend.
    usable = np.isfinite(history.val).all(axis=1) & np.isfinite(history.train_eval).all(axis=1)
    val = history.val[usable].astype(np.float64)
    train_eval = history.train_eval[usable].astype(np.float64)
    row = rows.row_numbers(history.steps)[usable]
    val_rows = rows.condense(val, row)
    findings = assess(
        curves.by_video(val_rows, history.val_videos)[None],
        curves.by_video(rows.condense(train_eval, row), history.train_eval_videos)[None],
        settings or DivergenceSettings(),
        warmup_rows=-(-warmup_steps // rows.row_length(history.steps)),
        curve=val_rows.mean(axis=1)[None],
    )
    case, action = CASES[int(findings.case[0])]
    best = 0 if case == "no gain" else best_check(history)
    if case == "learning" and best == len(history.steps) - 1 > 0:
        case = "still improving"
    now = float(val[-1].mean())
    of_training: dict[str, float] = {}
    if history.train_eval_videos:
        now_train_eval = float(train_eval[-1].mean())
        of_training = {"gap": now - now_train_eval, "train_eval_log_ratio": now_train_eval}
    evidence: dict[str, float | int | str] = {
        "case": case,
        "step": step,
        "best_step": int(history.steps[best]),
        "best_check": best,
        "gain": 0.0 - float(history.val[best].mean()),
        "val_log_ratio": now,
        **of_training,
        "held_out_videos": videos,
        "train_eval_videos": len(set(history.train_eval_videos)),
        **{name: float(values[0]) for name, values in findings.numbers.items()},
    }
    return Verdict("divergence", action, _reason(case, action, evidence), evidence)


def _reason(case: str, action: Action, evidence: dict[str, float | int | str]) -> str:
    """The sentence for the user: what happened, in the words and with the numbers of the report's first chart."""
    number = {name: float(value) for name, value in evidence.items() if name != "case"}
    val = _percent(number["val_log_ratio"])
    lowest = f"its lowest at step {evidence['best_step']} ({_percent(-number['gain'])} against the base model)"
    train_eval = f"the training subset's loss {{}} ({_percent(number.get('train_eval_log_ratio', 0.0))})"
    videos = int(number["held_out_videos"])
    few = "" if videos >= MIN_VIDEOS else _few(videos, case)
    match case, action:
        case "no gain", _:
            return (
                f"No gain: the validation loss is {val} against the base model and not falling; the learning rate may "
                f"be too high, or there is nothing to learn from these clips.{few}"
            )
        case "divergence", _:
            across = "" if few else f" (p = {number['p_value']:.1g} over {videos} recordings)"
            rise = (
                f"the validation loss has risen from {_percent(-number['gain'])} against the base model at step "
                f"{evidence['best_step']} to {val}{across}"
            )
            if "train_eval_log_ratio" not in number:
                return f"Overfitting: {rise}.{few}"
            if number["train_eval_excess"] > 0.5 * number["excess"]:
                return (
                    f"Unstable training: {rise}, and the training subset's loss rose with it; the learning rate may be "
                    f"too high.{few}"
                )
            return f"Overfitting: {rise}, while {train_eval.format('did not rise')}.{few}"
        case "plateau", "stop":
            return (
                f"Plateau: the validation loss has stopped improving since {lowest}, while "
                f"{train_eval.format('is still falling')}: more steps would memorise, not teach.{few}"
            )
        case "plateau", _:
            return (
                f"The validation loss may have stopped improving since {lowest}, while "
                f"{train_eval.format('is still falling')}."
            )
        case "warm-up", _:
            return f"Too early to judge the validation loss ({val} against the base model)."
        case "still improving", _:
            return f"Still improving: the validation loss is at its lowest, {val} against the base model."
        case _:
            return f"Still learning: the validation loss is {val} against the base model, {lowest}."


def _few(videos: int, case: str) -> str:
    count = "1 validation recording" if videos == 1 else f"{videos} validation recordings"
    remark = f" Only {count}: too few to tell whether this holds for others"
    return remark + (", so the rise had to last twice as long." if case == "divergence" else ".")


def _percent(log_ratio: float) -> str:
    return f"{100.0 * math.expm1(log_ratio):+.1f} %"
