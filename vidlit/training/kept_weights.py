"""Which check's weights a run ends with, and where they wait until then."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

from lightning.pytorch import Trainer

from vidlit.runs.checkpoint_files import load_weights, remove_checkpoint
from vidlit.runs.directory import RunDirectory
from vidlit.stopping.divergence import DivergenceHistory, best_check, conservative_check

if TYPE_CHECKING:
    from vidlit.training.module import VideoDiffusionModule

Restore = Literal["best", "conservative", "last"]


class Kept(NamedTuple):
    """What a run ends with."""

    name: Literal["best", "conservative", "last", "base model"]
    check: int | None
    """Index of the check; ``None`` for the weights that training ended with."""


class KeptWeights:
    """Keeps what ``restore`` may need while training goes on, and puts it back when it is over.

    The best check is in ``best.ckpt``. The conservative one is the earliest whose gain is within a tenth of the best
    gain: as the best improves, it moves on to a later check that was the best of its time. So the weights of every
    such check from the present one on are kept as ``candidate_<step>.ckpt``, older ones are dropped.

    Args:
        restore: which check is wanted.
    """

    def __init__(self, restore: Restore) -> None:
        self.restore = restore

    def choose(self, run: RunDirectory, step: int, history: DivergenceHistory | None, no_gain: bool) -> Kept:
        """What to keep of the checks so far.

        The best stands in for a conservative check that was not kept: the run had begun with another ``restore``.

        Args:
            run: where candidates wait.
            step: at which training ended.
            history: the checks; ``None`` without validation clips to choose by.
            no_gain: the rule found that training gained nothing, whatever one check says.
        """
        if self.restore == "last" or history is None or len(history.steps) < 2:
            return Kept("last", None)
        best = best_check(history)
        if no_gain or best == 0:
            return Kept("base model", 0)
        if self.restore == "conservative":
            check = conservative_check(history)
            if history.steps[check] == step or int(history.steps[check]) in run.candidates():
                return Kept("conservative", check)
        return Kept("best", best)

    def after_check(self, trainer: Trainer, run: RunDirectory, history: DivergenceHistory | None) -> None:
        """Keep the latest check's weights where it is a candidate; drop those that no longer are.

        A candidate is dropped only when the check that overtook it has been saved in ``last.ckpt``, one check later:
        a run that is killed before that goes on from where the older one still counts.
        """
        if self.restore != "conservative" or history is None:
            return
        latest = len(history.steps) - 1
        if best_check(history) == latest > 0:
            trainer.save_checkpoint(run.candidate(trainer.global_step), weights_only=True)
        if trainer.is_global_zero and latest > 0:
            saved = int(history.steps[conservative_check(_without_latest(history))])
            for step, path in run.candidates().items():
                if step < saved or step > trainer.global_step:  # later ones are left over from before a resume
                    remove_checkpoint(path)

    def put_back(self, pl_module: VideoDiffusionModule, run: RunDirectory, kept: Kept, step: int) -> None:
        """Load the weights that the check at a step was scored with into the model; every rank calls it."""
        if step == 0:  # best.ckpt may hold a check that was low by luck
            pl_module.load_base()
            return
        path = run.candidate(step) if kept.name == "conservative" else run.best_checkpoint
        found = load_weights(pl_module, path)
        assert found == step, (found, step)
        if pl_module.averaged is not None:
            pl_module.averaged.copy_to_parameters()


def _without_latest(history: DivergenceHistory) -> DivergenceHistory:
    return DivergenceHistory(
        history.steps[:-1], history.val[:-1], history.train_eval[:-1], history.val_videos, history.train_eval_videos
    )
