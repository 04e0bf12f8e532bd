"""The stop for a training loop of one's own: hand over each check's log-ratios, get a verdict back.

Needs numpy only. ``examples/stop_in_a_plain_loop.py`` is a whole loop around it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vidlit.stopping.divergence import DivergenceHistory, best_check, judge_divergence
from vidlit.stopping.rule import DivergenceSettings
from vidlit.stopping.verdict import Verdict


class Stopper:
    """Collects checks and judges the run after each, as ``vidlit fit`` does.

    A check is the log-ratio ``log(loss now / loss at step 0)`` of each validation clip and of as many training clips,
    each scored at noise and noise levels of its own that are the same at every check. Step 0 is known: every log-ratio
    is zero there. Checks may come at any steps: the rule sees means over even intervals. :class:`CheckSchedule`
    says when they serve it best.

    Args:
        val_groups: Recording of each validation clip (N,): clips of one recording say the same thing twice.
        train_eval_groups: The same of each scored training clip (M,).
        warmup_steps: Steps until the learning rate has reached its peak.
        settings: Numbers of the rule; ``None`` takes its defaults.

    Raises:
        ValueError: If there is no validation clip, or no training clip.

    Example:
        >>> stopper = Stopper(["a", "a", "b"], ["c", "d"])
        >>> stopper.update(100, val=[-0.02, -0.01, -0.03], train_eval=[-0.04, -0.05]).action
        'continue'
        >>> stopper.best_step
        100
    """

    def __init__(
        self,
        val_groups: Sequence[str],
        train_eval_groups: Sequence[str],
        *,
        warmup_steps: int = 0,
        settings: DivergenceSettings | None = None,
    ) -> None:
        self.warmup_steps = warmup_steps
        self.settings = settings
        self.verdict: Verdict | None = None
        """The latest one."""
        self.history = DivergenceHistory(
            steps=np.zeros(1, dtype=np.int64),
            val=np.zeros((1, len(val_groups))),
            train_eval=np.zeros((1, len(train_eval_groups))),
            val_videos=tuple(val_groups),
            train_eval_videos=tuple(train_eval_groups),
        )

    def update(self, step: int, val: ArrayLike, train_eval: ArrayLike) -> Verdict:
        """Adds a check and judges the run.

        Args:
            step: Optimizer steps taken so far.
            val: Log-ratio of each validation clip (N,); negative is better than at step 0.
            train_eval: Log-ratio of each scored training clip (M,).

        Raises:
            ValueError: If the shapes are not those of the groups, or the step is not later than the last one.
        """
        before = self.history
        self.history = DivergenceHistory(
            steps=np.append(before.steps, step),
            val=_with_row(before.val, val),
            train_eval=_with_row(before.train_eval, train_eval),
            val_videos=before.val_videos,
            train_eval_videos=before.train_eval_videos,
        )
        self.verdict = judge_divergence(self.history, self.settings, warmup_steps=self.warmup_steps)
        return self.verdict

    @property
    def best_step(self) -> int:
        """The step whose weights are worth keeping: 0, the model as it was, where training gained nothing."""
        no_gain = self.verdict is not None and self.verdict.evidence.get("case") == "no gain"
        return 0 if no_gain else int(self.history.steps[best_check(self.history)])


def _with_row(table: NDArray[np.floating], row: ArrayLike) -> NDArray[np.float64]:
    values = np.asarray(row, dtype=np.float64)
    if values.shape != table.shape[1:]:
        raise ValueError(f"expected one log-ratio for each of {table.shape[1]} clips, got shape {values.shape}")
    extended: NDArray[np.float64] = np.concatenate([table, values[None]])
    return extended
