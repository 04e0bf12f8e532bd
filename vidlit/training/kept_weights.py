"""Which check's weights a run ends with, and where they wait until then."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from lightning.pytorch import Trainer
from torch.distributed.tensor import DTensor

from vidlit.runs.checkpoint_files import load_weights, remove_checkpoint
from vidlit.runs.directory import RunDirectory
from vidlit.stopping.divergence import DivergenceHistory, best_check, conservative_check
from vidlit.training.blocks.sharding import copy_whole

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from vidlit.models.parts import Part
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
    such check from the present one on are kept as ``candidate_<step>.ckpt``, older ones are dropped. Parts of a model
    have best checks of their own, which are kept in the same way.

    Args:
        restore: which check is wanted.
    """

    def __init__(self, restore: Restore) -> None:
        self.restore = restore

    def choose(
        self, run: RunDirectory, step: int, history: DivergenceHistory | None, no_gain: bool, parts: int = 1
    ) -> Kept:
        """What to keep of the checks of a part so far.

        The best stands in for a conservative check that was not kept: the run had begun with another ``restore``.

        Args:
            run: where candidates wait.
            step: at which training ended.
            history: the checks; ``None`` without validation clips to choose by.
            no_gain: the rule found that training gained nothing, whatever one check says.
            parts: that the model has.
        """
        if self.restore == "last" or history is None or len(history.steps) < 2:
            return Kept("last", None)
        best = best_check(history)
        if no_gain or best == 0:
            return Kept("base model", 0)
        there = {step, *run.candidates()}
        if self.restore == "conservative":
            check = conservative_check(history)
            if int(history.steps[check]) in there:
                return Kept("conservative", check)
        return Kept("best", best) if parts == 1 or int(history.steps[best]) in there else Kept("last", None)

    def after_check(self, trainer: Trainer, run: RunDirectory, histories: Mapping[str, DivergenceHistory]) -> None:
        """Keep the latest check's weights where it is a candidate; drop those that no longer are.

        A candidate is dropped only when the check that overtook it has been saved in ``last.ckpt``, one check later:
        a run that is killed before that goes on from where the older one still counts.

        Args:
            trainer: of the run.
            run: where candidates wait.
            histories: of each part; none without validation clips.
        """
        if self.restore == "last" or (self.restore == "best" and len(histories) < 2):
            return
        step = trainer.global_step
        if any(best_check(each) == len(each.steps) - 1 and each.steps[-1] == step > 0 for each in histories.values()):
            trainer.save_checkpoint(run.candidate(step), weights_only=True)
        if trainer.is_global_zero and step > 0:
            needed = [self._first_needed(each, step) for each in histories.values()]
            for kept, path in run.candidates().items():
                passed = kept < min(needed) if self.restore == "conservative" else kept not in (*needed, step)
                if passed or kept > step:  # later ones are left over from before a resume
                    remove_checkpoint(path)

    def _first_needed(self, history: DivergenceHistory, step: int) -> int:
        """Step of the check that would be put back if the latest one had not been saved."""
        saved = history.first(len(history.steps) - 1) if history.steps[-1] == step else history
        check = conservative_check(saved) if self.restore == "conservative" else best_check(saved)
        return int(saved.steps[check])

    def put_back(
        self, pl_module: VideoDiffusionModule, run: RunDirectory, kept: Kept, step: int, part: Part | None = None
    ) -> None:
        """Load the weights that the check at a step was scored with into the model; every rank calls it.

        Args:
            pl_module: the model.
            run: where they are.
            kept: which check it is.
            step: of that check.
            part: whose weights alone are put back; ``None`` for all.
        """
        mine = part.owns if part is not None else None
        if step == 0:  # best.ckpt may hold a check that was low by luck
            start_again(pl_module, mine or (lambda name: True))
            return
        from_candidate = part is not None or kept.name == "conservative"
        found = load_weights(pl_module, run.candidate(step) if from_candidate else run.best_checkpoint, mine)
        assert found == step, (found, step)
        if pl_module.averaged is not None:
            pl_module.averaged.copy_to_parameters(mine)


@contextmanager
def as_base(pl_module: VideoDiffusionModule) -> Iterator[None]:
    """The base in the trained model's place while this is open, for validation alone; never both on the device.

    A LoRA is switched off. Weights that are trained themselves wait in main memory, or, of sharded ones, each rank's.
    """
    if pl_module.adapter is not None:
        with pl_module.base_only():
            yield
        return
    trained = {name: value.detach() for name, value in pl_module.trainable_state().items()}
    kept = {name: each.clone() if isinstance(each, DTensor) else each.cpu() for name, each in trained.items()}
    del trained
    pl_module.load_base()
    pl_module.eval()
    try:
        yield
    finally:  # whatever is exported after an error is what was trained
        pl_module.load_state_dict(kept, strict=False)
        pl_module.eval()


@torch.no_grad()
def start_again(pl_module: VideoDiffusionModule, wanted: Callable[[str], bool]) -> None:
    """Put some of the trained weights back to what they were at the start.

    In place, for an optimizer holds them: with the base's beside them there would be two models on the device.

    Args:
        pl_module: the model.
        wanted: which weights, by name.
    """
    for expert, transformer in pl_module.transformers.items():
        trained = {name: each for name, each in transformer.named_parameters() if each.requires_grad}
        mine = {name: each for name, each in trained.items() if wanted(f"{expert}.{name}")}
        if mine:
            start = pl_module.experts.starts.get(expert)
            if start is None:
                start = {name: each.detach() for name, each in pl_module.experts.fresh(expert).named_parameters()}
            for name, parameter in mine.items():
                copy_whole(start[name], parameter)
    if pl_module.averaged is not None:
        pl_module.averaged.begin_again(wanted)
