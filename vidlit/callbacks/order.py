"""The order in which callbacks act, as one list: Lightning calls each hook of all callbacks in the order of a list."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from lightning.pytorch import Callback

from vidlit.callbacks.averaged_validation import AveragedValidation
from vidlit.callbacks.bad_steps import BadSteps
from vidlit.callbacks.continuation import Continuation
from vidlit.callbacks.evaluation import Evaluation, ValidationTable
from vidlit.callbacks.graceful_interrupt import GracefulInterrupt
from vidlit.callbacks.logger_record import LoggerRecord
from vidlit.callbacks.optimizer_record import OptimizerRecord
from vidlit.callbacks.run_checkpoints import RunCheckpoints
from vidlit.callbacks.run_overview import RunOverview
from vidlit.callbacks.step_progress import StepProgress
from vidlit.callbacks.throughput import Throughput
from vidlit.callbacks.weight_export import ModelCard, WeightExport
from vidlit.runs.resumes import Change
from vidlit.signals.divergence_monitor import DivergenceMonitor
from vidlit.signals.drift_monitor import DriftMonitor
from vidlit.signals.exposure_ledger import ExposureLedger
from vidlit.signals.overfit_stopping import OverfitStopping
from vidlit.signals.sample_videos import SampleVideos
from vidlit.signals.signal import Signal
from vidlit.signals.validation_schedule import ValidationSchedule


class Place(NamedTuple):
    """Where callbacks of a kind stand, and why not elsewhere."""

    kind: type[Callback]
    why: str


ORDER = (
    Place(AveragedValidation, "the average is in place before anything is scored, sampled or exported with it"),
    Place(RunOverview, "says what there is to train on before the bar opens"),
    Place(StepProgress, "shows the samples of a step as soon as it is over"),
    Place(Throughput, "stops its clock before what others do at a validation is counted as training"),
    Place(OptimizerRecord, "logs a step with the numbers of its speed"),
    Place(ValidationSchedule, "times a check before audits add to it"),
    Place(BadSteps, "names the clips of a bad step before anything is saved or counted on"),
    Place(DivergenceMonitor, "its curves are what the others' verdicts and the kept weights go by"),
    Place(ExposureLedger, "counts a batch before the checkpoint that holds it is saved"),
    Place(DriftMonitor, "measures with the weights that were scored, before the check is decided"),
    Place(Signal, "all signals, a plugin's too, hold their check when it is decided"),
    Place(OverfitStopping, "decides when all have judged, and puts the kept weights back before these are used"),
    Place(WeightExport, "exports these weights before anything else that can fail"),
    Place(SampleVideos, "samples with the weights that were put back"),
    Place(ModelCard, "shows their samples, and uploads card and weights"),
    Place(ValidationTable, "prints what the monitor has scored"),
    Place(Evaluation, "audits once the losses are there"),
    Place(Callback, "a plugin's: they find decision, samples and weights made"),
    Place(LoggerRecord, "sends decision, samples and weights as they are in the end"),
    Place(Continuation, "cuts files back when whatever was said at the start of training has been said"),
    Place(GracefulInterrupt, "saves at the end of a step when all callbacks have counted it"),
    Place(RunCheckpoints, "saves a check when all callbacks hold it; Lightning puts it here in any case"),
)  # fmt: skip
"""From the first to act at each hook to the last."""


def in_order(callbacks: Iterable[Callback]) -> list[Callback]:
    """Callbacks by their place: that of the nearest kind they derive from; as given where they share one."""
    places = {place.kind: number for number, place in enumerate(ORDER)}
    return sorted(callbacks, key=lambda callback: next(places[k] for k in type(callback).__mro__ if k in places))


def callbacks_for(
    command: str, configured: Sequence[Callback], changes: Sequence[Change] = (), *, ignore_forecast: bool = False
) -> list[Callback]:
    """All callbacks of a command, in order, besides those that the Trainer is given by name.

    Args:
        command: ``fit``, ``validate``, ``test`` or another, which needs none.
        configured: those with a section in the config; what judges, keeps or exports is for fits alone.
        changes: options of a fit that goes on that were changed since.
        ignore_forecast: begin a fit whose memory will not do by the forecast.
    """
    samples = [callback for callback in configured if isinstance(callback, SampleVideos)]
    monitors = [callback for callback in configured if isinstance(callback, DivergenceMonitor)]
    match command:
        case "fit":
            always = (
                AveragedValidation(),
                RunOverview(),
                StepProgress(),
                Throughput(ignore_forecast),
                OptimizerRecord(),
                ValidationSchedule(),
                BadSteps(),
                Continuation(changes),
                GracefulInterrupt(),
                RunCheckpoints(),
            )
            exports = [callback for callback in configured if isinstance(callback, WeightExport)]
            signals = [signal for each in samples for signal in each.signals()]
            return in_order([*always, *configured, *signals, *map(ModelCard, exports)])
        case "validate":
            return in_order([AveragedValidation(), *monitors, *map(ValidationTable, monitors)])
        case "test":
            return in_order(map(Evaluation, samples))
        case _:
            return []
