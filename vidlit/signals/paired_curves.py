"""The curves of one part of a model: validation clips and a training subset, scored at every check against step 0."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vidlit.diffusion.batch import clip_key
from vidlit.errors import UserError
from vidlit.metrics.paired_loss import PairedLoss, PairedSummary, log_ratio, scored_rows, summarise
from vidlit.runs.logged_name import LoggedName
from vidlit.runs.logged_names import (
    TRAIN_EVAL_LOG_RATIO,
    TRAIN_EVAL_LOG_RATIO_BIN,
    TRAIN_EVAL_LOSS,
    VAL_LOG_RATIO,
    VAL_LOG_RATIO_BIN,
    VAL_LOG_RATIO_BUCKET,
    VAL_LOSS,
    VAL_SCORE,
)
from vidlit.signals.scored_clips import ScoredClip, worst_first
from vidlit.stopping.divergence import DivergenceHistory, check_scores

if TYPE_CHECKING:
    from vidlit.video.sources import Clip

SETS = ("val", "train_eval")
"""Validation clips and training clips scored alike: the order of the validation dataloaders."""
LOSS = {"val": VAL_LOSS, "train_eval": TRAIN_EVAL_LOSS}
LOG_RATIO = {"val": VAL_LOG_RATIO, "train_eval": TRAIN_EVAL_LOG_RATIO}
LOG_RATIO_BIN = {"val": VAL_LOG_RATIO_BIN, "train_eval": TRAIN_EVAL_LOG_RATIO_BIN}
"""What is logged of each set."""


class PairedCurves:
    """Log-ratios to step 0 of one part's losses, at every check, clip by clip.

    Args:
        clips: scored ones by set; a set without clips is left out.
        sigmas: (N, K) noise levels that they are scored at, by set.
        partial: clips that step 0 does not score are no examples for the part, and left out from then on.
    """

    def __init__(
        self, clips: Mapping[str, Sequence[Clip]], sigmas: Mapping[str, Tensor], *, partial: bool = False
    ) -> None:
        self.clips = {name: clips[name] for name in SETS if clips[name]}
        self.sigmas = sigmas
        self.partial = partial
        self.rows = {name: torch.arange(len(each)) for name, each in self.clips.items()}
        """Of each set the clips that are examples, ascending, once step 0 is known."""
        self.steps: list[int] = []
        self.curves: dict[str, list[Tensor]] = {name: [] for name in self.clips}
        self.references: dict[str, Tensor] = {}
        self._keys = {name: _keys(each) for name, each in self.clips.items()}
        self._tables = {name: PairedLoss(len(each), sigmas[name].shape[1]) for name, each in self.clips.items()}

    # -- one check

    def begin(self, device: torch.device) -> None:
        """Start each table empty, where the model is."""
        for table in self._tables.values():
            table.to(device).reset()

    def add(self, name: str, rows: Tensor, losses: Tensor) -> None:
        """Feed the losses (B, K) of some rows (B,) of a set."""
        self._tables[name].update(rows, losses)

    def begin_at(self, step: int) -> dict[LoggedName, float]:
        """Take what was scored for the base model's.

        Returns:
            What to log of it.
        """
        self.steps, self.references = [step], {}
        losses = self._computed()
        self.references = {name: each for name, each in losses.items() if len(each)}
        self.curves = {name: [torch.zeros(len(each), dtype=torch.float64)] for name, each in self.references.items()}
        means = {LOSS[name]: float(losses.mean()) for name, losses in self.references.items()}
        return means | {LOG_RATIO[name]: 0.0 for name in self.references}

    def finish(self, step: int | None) -> dict[str, float]:
        """Turn the tables into log-ratios.

        Args:
            step: to remember them at; ``None`` for a look that is no check of a fit.

        Returns:
            What to log of it, by name; the loss alone where no step 0 is known.
        """
        losses = self._computed()
        logged = {LOSS[name].name: float(each.mean()) for name, each in losses.items() if len(each)}
        for name, reference in self.references.items():
            ratio = log_ratio(losses[name], reference, self.sigmas[name][self.rows[name]])
            bins = (losses[name] / reference).log().mean(0)
            logged[LOG_RATIO[name].name] = float(ratio.mean())
            logged |= {LOG_RATIO_BIN[name].at(k): float(value) for k, value in enumerate(bins)}
            if name == "val":
                logged |= self._by_bucket(ratio)
            if step is not None:
                self.curves[name].append(ratio)
        if step is not None:
            self.steps.append(step)
        return logged

    def _by_bucket(self, ratio: Tensor) -> dict[str, float]:
        """Means of the validation clips' log-ratios (N,), by the name of each bucket; nothing where there is one."""
        ratios: dict[str, list[float]] = {}
        for row, value in zip(self.rows["val"].tolist(), ratio.tolist(), strict=True):
            ratios.setdefault(str(self.clips["val"][row].bucket), []).append(value)
        several = ratios if len(ratios) > 1 else {}
        return {VAL_LOG_RATIO_BUCKET.at(bucket): math.fsum(each) / len(each) for bucket, each in several.items()}

    def latest(self) -> dict[str, float]:
        """Log-ratios of the last check, by the names that they are logged under."""
        found = {LOG_RATIO[name].name: float(curve[-1].mean()) for name, curve in self.curves.items() if curve}
        return found | ({VAL_SCORE.name: float(check_scores(self.history())[-1])} if self.has_validation else {})

    def _computed(self) -> dict[str, Tensor]:
        """Losses (N, K) of each set's examples, which are those that were scored where no step 0 has told yet."""
        computed = {name: table.compute().cpu() for name, table in self._tables.items()}
        if self.partial and not self.references:
            self.rows = {name: scored_rows(losses) for name, losses in computed.items()}
        return {name: losses[self.rows[name]] for name, losses in computed.items()}

    # -- all checks

    @property
    def has_validation(self) -> bool:
        """Whether any clips are held out, and step 0 is known."""
        return "val" in self.references

    def history(self) -> DivergenceHistory:
        """All checks so far, step 0 included."""
        val, train_eval = (
            torch.stack(self.curves[name]).numpy() if name in self.curves else torch.zeros(len(self.steps), 0).numpy()
            for name in SETS
        )
        groups = {name: tuple(self._groups(name)) for name in self.curves}
        return DivergenceHistory(
            steps=torch.tensor(self.steps).numpy(),
            val=val,
            train_eval=train_eval,
            val_videos=groups.get("val", ()),
            train_eval_videos=groups.get("train_eval", ()),
        )

    def summaries(self) -> dict[str, PairedSummary]:
        """The latest check of each set against step 0; empty where no step 0 is known."""
        found = {}
        for name, reference in self.references.items():
            rows = self.rows[name]
            losses = self._tables[name].compute().cpu()[rows]
            found[name] = summarise(losses, reference, self.sigmas[name][rows], self._groups(name))
        return found

    def scored_clips(self, exposures: Mapping[int, int]) -> dict[str, list[ScoredClip]]:
        """The latest look at each set, clip by clip, those that gained least first.

        Args:
            exposures: of training clips, by their keys.
        """
        found = {}
        for name, losses in self._computed().items():
            reference, rows = self.references.get(name), self.rows[name]
            means = losses.mean(1).tolist()
            base: list[Any] = [None] * len(means) if reference is None else reference.mean(1).tolist()
            sigmas = self.sigmas[name][rows]
            ratios: list[Any] = (
                [None] * len(means) if reference is None else log_ratio(losses, reference, sigmas).tolist()
            )
            clips = [self.clips[name][row] for row in rows.tolist()]
            keys = self._keys[name][rows].tolist()
            seen = [exposures.get(key) if name == "train_eval" else None for key in keys]
            found[name] = [
                ScoredClip(clip.clip_id, clip.source.group, 1, *numbers)
                for clip, *numbers in zip(clips, means, base, ratios, seen, strict=True)
            ]
            found[name].sort(key=worst_first)
        return found

    def _groups(self, name: str) -> list[str]:
        """Recordings that the examples of a set are of."""
        return [self.clips[name][row].source.group for row in self.rows[name].tolist()]

    # -- state: tensors and numbers only, so that checkpoints load with weights_only

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed run needs to decide as the uninterrupted one."""
        if not self.references:
            return {}
        return {
            "steps": self.steps,
            **{f"{name}_curves": torch.stack(curve) for name, curve in self.curves.items()},
            **{f"{name}_reference": reference for name, reference in self.references.items()},
            **{f"{name}_keys": self._keys[name] for name in self.clips},
            **{f"{name}_sigmas": self.sigmas[name] for name in self.clips},
            **{f"{name}_rows": self.rows[name] for name in self.clips if self.partial},
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take up the history of a checkpoint.

        Raises:
            UserError: it scored other clips, or at other noise levels.
        """
        for name in SETS:
            here = self._keys.get(name, torch.zeros(0, dtype=torch.int64))
            there = state_dict.get(f"{name}_keys", torch.zeros(0, dtype=torch.int64))
            if not torch.equal(there, here):
                raise UserError(
                    f"The checkpoint was made with other {name} clips ({len(there)} there, "
                    f"{len(here)} here, or others): its curve cannot be continued. Use the same "
                    "data and split options, or start a new run."
                )
            sigmas = state_dict.get(f"{name}_sigmas")  # runs of earlier versions do not say
            if sigmas is not None and sigmas.shape == self.sigmas[name].shape:
                if not torch.allclose(sigmas, self.sigmas[name]):
                    raise UserError(
                        f"The checkpoint scored its {name} clips at other noise levels than this version would: its "
                        "curve cannot be continued. Start a new run."
                    )
            reference = state_dict.get(f"{name}_reference")
            if reference is not None and (levels := reference.shape[1]) != self.sigmas[name].shape[1]:
                raise UserError(
                    f"The checkpoint scored its {name} clips at {levels} noise levels, here it is "
                    f"{self.sigmas[name].shape[1]}: its curve cannot be continued. Set "
                    f"--model.noise.num_strata={levels}, or start a new run."
                )
        self.steps = list(state_dict["steps"])
        self.rows = {name: state_dict.get(f"{name}_rows", rows) for name, rows in self.rows.items()}
        scored = [name for name in self.clips if f"{name}_reference" in state_dict]
        self.curves = {name: list(state_dict[f"{name}_curves"]) for name in scored}
        self.references = {name: state_dict[f"{name}_reference"] for name in scored}


def _keys(clips: Sequence[Clip]) -> Tensor:
    return torch.tensor([clip_key(clip.clip_id) for clip in clips], dtype=torch.int64)
