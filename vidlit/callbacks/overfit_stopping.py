"""One decision from all signals: stop, restore the best weights, and say why."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Callback, Trainer

from vidlit.callbacks.divergence import DivergenceMonitor
from vidlit.callbacks.exposure import ExposureLedger
from vidlit.callbacks.interrupt import Interrupted
from vidlit.callbacks.signal import Signal
from vidlit.run_directory import RunDirectory
from vidlit.stopping.divergence import best_check
from vidlit.stopping.exposure import band
from vidlit.stopping.verdict import Decision, Policy

if TYPE_CHECKING:
    from vidlit.module import VideoDiffusionModule


class OverfitStopping(Callback):
    """Asks every :class:`Signal` after each validation and stops the run when one that may says so.

    Writes ``decisions.jsonl`` (the numbers behind every check) and ``summary.json``; after training restores the best
    check's weights, which may be the base model's.

    Args:
        policy: what each signal may do: ``stop`` the run, at most ``warn``, or be ``off``.
        restore_best: put the best check's weights back after training; off keeps the last step's.
    """

    def __init__(self, policy: Policy = Policy(), restore_best: bool = True) -> None:  # noqa: B008 - frozen
        self.policy = policy
        self.restore_best = restore_best
        self.decision: Decision | None = None
        self.summary: dict[str, Any] = {}
        self._seconds = 0.0
        self._since = time.monotonic()
        self._warned: set[tuple[str, str]] = set()

    def on_train_start(self, trainer: Trainer, pl_module: VideoDiffusionModule) -> None:  # type: ignore[override]
        """Start the clock."""
        self._since = time.monotonic()

    def on_validation_end(self, trainer: Trainer, pl_module: VideoDiffusionModule) -> None:  # type: ignore[override]
        """Decide."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        verdicts = [signal.verdict(trainer, pl_module) for signal in _signals(trainer)]
        self.decision = self.policy.join(verdicts)
        # All ranks hold the same numbers; agreeing costs little and a rank that parts ways hangs the others.
        stop = trainer.strategy.reduce_boolean_decision(self.decision.action == "stop", all=False)
        trainer.should_stop = trainer.should_stop or stop
        if trainer.is_global_zero:
            _directory(trainer).append_decision(
                {
                    "step": trainer.global_step,
                    "action": self.decision.action,
                    "signals": list(self.decision.signals),
                    "reason": self.decision.reason,
                    "verdicts": [vars(verdict) for verdict in self.decision.verdicts],
                }
            )
            self._warn_once(self.decision)
            self._write_summary(trainer, "running", self.decision.reason)

    def _warn_once(self, decision: Decision) -> None:
        for verdict in decision.verdicts:
            kind = (verdict.signal, str(verdict.evidence.get("case", verdict.evidence.get("band", ""))))
            if verdict.action == "warn" and kind not in self._warned:
                self._warned.add(kind)
                print(f"step {decision.verdicts[0].evidence.get('step', '')}: {verdict.signal}: {verdict.reason}")

    # -- the end

    def on_fit_end(self, trainer: Trainer, pl_module: VideoDiffusionModule) -> None:  # type: ignore[override]
        """Restore the best weights; before the callbacks that export and sample them."""
        decision = self.decision
        stopped = decision is not None and decision.action == "stop"
        if decision is not None and stopped:
            stopped_by, reason = "+".join(decision.signals), decision.reason
        elif trainer.global_step < trainer.max_steps:
            stopped_by, reason = "other", "Another callback, or a limit of the Trainer, ended the run."
        else:
            stopped_by = "max_steps"
            reason = f"All {trainer.max_steps} planned steps were trained; no signal asked to stop."
        restored = False
        best_step = self._best_step(trainer)
        checked = len(_one(trainer, DivergenceMonitor).steps) > 1  # else there is nothing to prefer the base by
        if self.restore_best and checked and best_step != trainer.global_step:
            self._restore(trainer, pl_module, best_step)
            restored = True
        if trainer.is_global_zero:
            self._write_summary(trainer, stopped_by, reason, restored=restored)

    def on_exception(self, trainer: Trainer, pl_module: Any, exception: BaseException) -> None:
        """Leave a summary of an interrupted or crashed run."""
        if trainer.state.fn != "fit" or not trainer.is_global_zero or not _directory(trainer).path.is_dir():
            return
        if isinstance(exception, (Interrupted, KeyboardInterrupt)):
            self._write_summary(trainer, "interrupted", f"The run was {exception or 'interrupted'}.")
        else:
            self._write_summary(trainer, "error", f"{type(exception).__name__}: {exception}")

    def _restore(self, trainer: Trainer, pl_module: VideoDiffusionModule, step: int) -> None:
        if step == 0:  # best.ckpt may hold a check that was low by luck
            pl_module.load_base()
            return
        checkpoint = torch.load(_directory(trainer).best_checkpoint, map_location="cpu", weights_only=True)
        assert checkpoint["global_step"] == step
        pl_module.load_state_dict(checkpoint["state_dict"], strict=False)

    def _best_step(self, trainer: Trainer) -> int:
        monitor = _one(trainer, DivergenceMonitor)
        return int(monitor.steps[self._best_check(trainer)])

    def _best_check(self, trainer: Trainer) -> int:
        """The check with the lowest held-out loss; step 0 where the rule found no gain, whatever one check says."""
        verdicts = self.decision.verdicts if self.decision is not None else ()
        if any(verdict.evidence.get("case") == "no gain" for verdict in verdicts):
            return 0
        return best_check(_one(trainer, DivergenceMonitor).history(trainer))

    def _write_summary(self, trainer: Trainer, stopped_by: str, reason: str, restored: bool = False) -> None:
        monitor, ledger = _one(trainer, DivergenceMonitor), _one(trainer, ExposureLedger)
        step = trainer.global_step
        self.summary = {
            "stopped_by": stopped_by,
            "reason": reason,
            "stop_step": step,
            "planned_steps": trainer.max_steps,
            "seconds": round(self._seconds + time.monotonic() - self._since, 1),
        }
        if monitor.references:
            best = self._best_check(trainer)
            best_step = monitor.steps[best]
            exposures = ledger.statistics(trainer)
            self.summary |= {
                "best_step": best_step,
                "restored": restored,
                "kept_step": best_step if restored else step,
                "gain": -float(monitor.curves["val"][best].mean()),
                "val_log_ratio": float(monitor.curves["val"][-1].mean()),
                "probe_log_ratio": float(monitor.curves["probe"][-1].mean()),
                "exposures": {**exposures, "band": band(exposures["mean"])},
                "exposures_at_best": ledger.statistics_at(best_step),
                "num_clips": {
                    split: len(getattr(trainer.datamodule, f"{split}_clips"))  # type: ignore[attr-defined]
                    for split in ("train", "val", "test")
                },
            }
        _directory(trainer).write_summary(self.summary)

    def state_dict(self) -> dict[str, Any]:
        """Time trained so far, over resumes."""
        return {"seconds": self._seconds + time.monotonic() - self._since}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        self._seconds = state_dict["seconds"]


def _directory(trainer: Trainer) -> RunDirectory:
    return RunDirectory(Path(trainer.default_root_dir))


def _signals(trainer: Trainer) -> list[Signal]:
    return [callback for callback in trainer.callbacks if isinstance(callback, Signal)]  # type: ignore[attr-defined]


def _one(trainer: Trainer, kind: type[Any]) -> Any:
    return next(callback for callback in trainer.callbacks if isinstance(callback, kind))  # type: ignore[attr-defined]
