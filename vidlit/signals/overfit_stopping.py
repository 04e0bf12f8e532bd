"""One decision from all signals: stop, restore the best weights, and say why."""

from __future__ import annotations

import difflib
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from lightning.pytorch import LightningModule, Trainer

from vidlit.errors import Interrupted, UserError, is_lost_rank
from vidlit.runs.logged_names import AUDIT_SHARE, RUN_SECONDS, VALIDATION_SHARE
from vidlit.runs.signal_words import REQUEST, save_signals
from vidlit.runs.wording import say
from vidlit.signals.divergence_monitor import DivergenceMonitor
from vidlit.signals.exposure_ledger import ExposureLedger
from vidlit.signals.signal import Signal, known_signals
from vidlit.stopping.divergence import best_check
from vidlit.stopping.exposure import band
from vidlit.stopping.verdict import Decision, Mode, join_verdicts
from vidlit.training.kept_weights import Kept, KeptWeights, Restore
from vidlit.training.run_callback import RunCallback


class OverfitStopping(RunCallback):
    """Asks every :class:`Signal` after each validation and stops the run when one that may says so.

    Writes ``decisions.jsonl`` (the numbers behind every check) and ``summary.json``; after training puts back the
    weights of the check that is kept.

    Args:
        policy: mode of each signal, by name: ``stop`` the run, at most ``warn``, or ``off``. A signal that is not named
            keeps its own default, ``stop`` for all that come with vidlit but ``drift``, which warns.
        restore: weights to keep: ``best``, of the check with the lowest validation loss; ``conservative``, of the
            earliest check within a tenth of the best gain, which has seen each video less often; or ``last``. Where no
            check was better than it, ``best`` and ``conservative`` keep the base model.
        parts: what happens when one part of a model of several (two experts, video and sound) is found to overfit:
            ``freeze`` puts its best weights back, and the others train on until the last one is done; ``stop`` ends the
            run; ``warn`` lets all train on until the last one is done.

    Raises:
        UserError: the policy names a signal that there is not, or a mode that there is not.
    """

    section = "overfit_stopping"

    def __init__(
        self,
        policy: dict[str, Mode | bool] | None = None,
        restore: Restore = "best",
        parts: Literal["freeze", "stop", "warn"] = "freeze",
    ) -> None:
        self.policy = check_policy(policy or {})
        self.parts = parts
        self._to_put_back: list[str] = []
        self.kept_weights = KeptWeights(restore)
        self.decision: Decision | None = None
        self.summary: dict[str, Any] = {}
        """What ``summary.json`` holds; on rank 0."""
        self.was_asked = False
        """Whether the user has asked for the end: with ``vidlit stop``."""
        self.kept_step = 0
        """Of the weights that the run ends with, when training is over."""
        self._seconds = 0.0
        self._since = time.monotonic()
        self._warned: set[tuple[str, str]] = set()

    def on_train_start(self, *_: Any) -> None:
        """Start the clock, and write down what the signals say of themselves."""
        self._since = time.monotonic()
        # A checkpoint of the check at which a part was done holds the weights from before they were put back.
        self._to_put_back = sorted(self._monitor.done)
        if self.trainer.is_global_zero:
            save_signals(self.run, (signal.words() for signal in self.others(Signal)))
            if self.trainer.ckpt_path is not None and (ended := self.run.read_summary()):
                reason = f"It goes on from step {self.trainer.global_step}."
                self.run.write_summary(ended | {"stopped_by": "running", "reason": reason})

    def on_validation_epoch_end(self, *_: Any) -> None:
        """Log how long the run has taken so far: an axis of charts."""
        if self.is_checking:
            logged = {RUN_SECONDS.name: self._run_seconds(), "step": float(self.trainer.global_step)}
            self.module.log_dict(logged, batch_size=1, rank_zero_only=False)

    def on_validation_end(self, *_: Any) -> None:
        """Decide."""
        if not self.is_checking:
            return
        self.kept_weights.after_check(self.trainer, self.run, self._monitor.histories())
        signals = self.others(Signal)
        modes = {signal.name: self._mode_of(signal) for signal in signals}
        self._monitor.stop_at = "first" if self.parts == "stop" else "last"
        self.decision = join_verdicts((signal.verdict() for signal in signals), modes)
        # All ranks hold the same numbers; agreeing costs little and a rank that parts ways hangs the others.
        stop = self.trainer.strategy.reduce_boolean_decision(self.decision.action == "stop", all=False)
        self.trainer.should_stop = self.trainer.should_stop or stop
        if not stop and self.parts == "freeze" and modes[self._monitor.name] == "stop":
            self._freeze()
        if self.trainer.is_global_zero:
            self.run.append_decision(
                {
                    "step": self.trainer.global_step,
                    "action": self.decision.action,
                    "signals": list(self.decision.signals),
                    "reason": self.decision.reason,
                    "verdicts": [vars(verdict) for verdict in self.decision.verdicts],
                }
            )
            self._warn_once(self.decision)
            self._write_summary("running", self.decision.reason)

    def _freeze(self) -> None:
        """Train parts no more that are done, while others are not."""
        monitor = self._monitor
        for name, verdict in monitor.judged.items():
            if verdict.action == "stop" and name not in monitor.done:
                monitor.done[name] = verdict
                self.module.parts.done.add(name)
                self._to_put_back.append(name)
                left = " and ".join(part.name for part in self.module.parts.open)
                if self.trainer.is_global_zero:
                    say(f"step {self.trainer.global_step}: {name} is done, {left} trains on. {verdict.reason}")

    def on_train_batch_start(self, *_: Any) -> None:
        """Put the best weights of parts that are done back, when no check holds averages in the place of weights."""
        while self._to_put_back:
            self._put_back(self._to_put_back.pop())

    def _put_back(self, name: str) -> Kept:
        """Put what is kept of a part back, unless it is there."""
        kept, step = self._kept(name), self.trainer.global_step
        several = len(self.module.parts.parts) > 1
        part = next(each for each in self.module.parts.parts if each.name == name) if several else None
        kept_step = self._step_of(name, kept)
        if kept_step != step:
            self.kept_weights.put_back(self.module, self.run, kept, kept_step, part)
        return kept

    def _step_of(self, name: str, kept: Kept) -> int:
        return self.trainer.global_step if kept.check is None else self._monitor.parts[name].steps[kept.check]

    def _warn_once(self, decision: Decision) -> None:
        for verdict in decision.verdicts:
            kind = (verdict.signal, str(verdict.evidence.get("case", verdict.evidence.get("band", ""))))
            if verdict.action == "warn" and kind not in self._warned:
                self._warned.add(kind)
                title = known_signals()[verdict.signal].title
                say(f"step {self.trainer.global_step}: {title}: {verdict.reason}")

    # -- the end

    def on_fit_end(self, *_: Any) -> None:
        """Restore the best weights; before the callbacks that export and sample them."""
        decision = self.decision
        stopped = decision is not None and decision.action == "stop"
        if decision is not None and stopped:
            stopped_by, reason = "+".join(decision.signals), decision.reason
        elif self.was_asked:
            stopped_by, reason = REQUEST, "No signal had asked to stop."
            if self._still_improving():
                reason += " Still improving at the last check."
        elif self.trainer.global_step < self.trainer.max_steps:
            stopped_by, reason = "other", "Another callback, or a limit of the Trainer, ended the run."
        else:
            stopped_by, reason = "max_steps", "No signal asked to stop."
            if self._still_improving():
                reason += " Still improving at the last check: raise --trainer.max_steps."
        kept = {name: self._put_back(name) for name in self._monitor.parts}
        self.kept_step = max(self._step_of(name, each) for name, each in kept.items())
        if len(kept) > 1 and self._monitor.histories():  # what best.ckpt held was of one part's best check
            self.trainer.save_checkpoint(self.run.best_checkpoint)
        if self.trainer.is_global_zero:
            self._write_summary(stopped_by, reason, kept)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave a summary of an interrupted or crashed run."""
        self.attach(trainer, pl_module)
        if trainer.state.fn != "fit" or not trainer.is_global_zero or not self.run.path.is_dir():
            return
        if isinstance(exception, (Interrupted, KeyboardInterrupt)):
            self._write_summary("interrupted", f"The run was {exception or 'interrupted'}.")
        elif is_lost_rank(exception):
            self._write_summary("error", "Another rank died.")
        else:
            self._write_summary("error", f"{type(exception).__name__}: {exception}")

    def _no_gain(self, part: str) -> bool:
        if self._mode_of(self._monitor) == "off":
            return False
        judged = self._monitor.done.get(part) or self._monitor.judged.get(part)
        return judged is not None and judged.evidence["case"] == "no gain"

    def _mode_of(self, signal: Signal) -> Mode:
        return self.policy.get(signal.name, signal.default_mode)

    def _still_improving(self) -> bool:
        """Whether the last check is the best of any part, in a run too short to be judged, too."""
        histories = self._monitor.histories()
        return any(
            best_check(each) == len(each.steps) - 1 > 0 and not self._no_gain(n) for n, each in histories.items()
        )

    def _kept(self, part: str) -> Kept:
        history = self._monitor.histories().get(part)
        of = len(self.module.parts.parts)
        return self.kept_weights.choose(self.run, self.trainer.global_step, history, self._no_gain(part), of)

    # -- the summary

    def _write_summary(self, stopped_by: str, reason: str, kept: Mapping[str, Kept] | None = None) -> None:
        """Write ``summary.json``; what is kept is known when training is over."""
        self.summary = {
            "stopped_by": stopped_by,
            "reason": reason,
            "stop_step": self.trainer.global_step,
            "planned_steps": self.trainer.max_steps,
            "seconds": round(self._run_seconds(), 1),
            **{
                share.name.removeprefix("perf/"): float(self.trainer.callback_metrics[share.name])  # as measured
                for share in (VALIDATION_SHARE, AUDIT_SHARE)
                if share.name in self.trainer.callback_metrics
            },
        }
        if self.decision is not None and self.decision.signals:
            fired = {verdict.signal: verdict.evidence for verdict in self.decision.verdicts}
            self.summary["evidence"] = {signal: fired[signal] for signal in self.decision.signals}
        if any(curves.steps for curves in self._monitor.parts.values()) or kept is not None:
            self.summary |= self._measured(kept or dict.fromkeys(self._monitor.parts, Kept("last", None)))
        self.run.write_summary(self.summary)

    def _measured(self, kept: Mapping[str, Kept]) -> dict[str, Any]:
        """The part of the summary that needs a first check."""
        parts = {name: self._measured_part(name, each) for name, each in kept.items()}
        exposures = self.others(ExposureLedger)[0].statistics()
        return {
            **(joined_parts(list(parts.values())) if len(parts) > 1 else next(iter(parts.values()))),
            **({"parts": parts} if len(parts) > 1 else {}),
            "still_improving": self._still_improving(),
            "exposures": {**exposures, "band": band(exposures["mean"])},
            "num_clips": {side: len(clips) for side, clips in self.data.split._asdict().items()},
        }

    def _measured_part(self, name: str, kept: Kept) -> dict[str, Any]:
        curves, ledger, last = self._monitor.parts[name], self.others(ExposureLedger)[0], self.trainer.global_step
        kept_step = self._step_of(name, kept)
        history = self._monitor.histories().get(name)
        held_out: dict[str, Any] = {"best_step": None, "gain": None, "val_log_ratio": None, "exposures_at_best": None}
        kept_gain = None
        if history is not None:
            best = 0 if self._no_gain(name) else best_check(history)
            best_step = int(history.steps[best])
            gains = -history.val.mean(axis=1)
            held_out = {
                "best_step": best_step,
                "gain": float(gains[best]),
                "val_log_ratio": -float(gains[-1]),
                "exposures_at_best": ledger.statistics_at(best_step),
            }
            kept_gain = float(gains[-1 if kept.check is None else kept.check])
        return {
            **held_out,
            "restored": kept_step != last,
            "kept": kept.name,
            "kept_step": kept_step,
            "kept_gain": kept_gain,
            "train_eval_log_ratio": float(curve[-1].mean()) if (curve := curves.curves.get("train_eval")) else None,
            "exposures_at_kept": ledger.statistics() if kept.check is None else ledger.statistics_at(kept_step),
        }

    def _run_seconds(self) -> float:
        return self._seconds + time.monotonic() - self._since

    @property
    def _monitor(self) -> DivergenceMonitor:
        return self.others(DivergenceMonitor)[0]

    def state_dict(self) -> dict[str, Any]:
        """Time trained so far, over resumes."""
        return {"seconds": self._run_seconds()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        self._seconds = state_dict["seconds"]


def joined_parts(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What a summary says of a model of several parts in one number each: means of losses, the latest of steps."""
    latest = max(parts, key=lambda part: part["kept_step"])
    joined = dict(latest)
    for name in ("gain", "val_log_ratio", "kept_gain", "train_eval_log_ratio"):
        values = [part[name] for part in parts if part[name] is not None]
        joined[name] = sum(values) / len(values) if values else None
    best = max(parts, key=lambda part: -1 if part["best_step"] is None else part["best_step"])
    return joined | {name: best[name] for name in ("best_step", "exposures_at_best")}


def check_policy(policy: Mapping[str, Mode | bool]) -> dict[str, Mode]:
    """The modes of a policy by signal; YAML reads ``off`` as false.

    Raises:
        UserError: it names a signal that there is not, or a mode that there is not.
    """
    known = known_signals()
    checked: dict[str, Mode] = {}
    for name, given in policy.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            meant = f" Did you mean {near[0]}?" if near else ""
            raise UserError(
                f"overfit_stopping.policy.{name}: there is no such signal.{meant} "
                f"Signals: {', '.join(sorted(known))}; for those of a plugin, add its --plugin."
            )
        mode = "off" if given is False else given
        if mode is True or mode not in get_args(Mode):
            raise UserError(f"overfit_stopping.policy.{name} is {given!r}: it must be stop, warn or off.")
        checked[name] = mode
    return checked
