"""The order of callbacks: one list, each place with its reason, and what the Trainer really gets."""

import importlib
import inspect
import pkgutil
import random

import pytest
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import Checkpoint

import vidlit.callbacks
import vidlit.signals
from vidlit.callbacks.averaged_validation import AveragedValidation
from vidlit.callbacks.evaluation import Evaluation, ValidationTable
from vidlit.callbacks.graceful_interrupt import GracefulInterrupt
from vidlit.callbacks.logger_record import LoggerRecord
from vidlit.callbacks.order import ORDER, callbacks_for, in_order
from vidlit.callbacks.run_checkpoints import RunCheckpoints
from vidlit.callbacks.weight_export import ModelCard, WeightExport
from vidlit.signals.divergence_monitor import DivergenceMonitor
from vidlit.signals.exposure_ledger import ExposureLedger
from vidlit.signals.overfit_stopping import OverfitStopping
from vidlit.signals.sample_videos import SampleVideos
from vidlit.signals.signal import Signal

KINDS = [place.kind for place in ORDER]


class Grain(Signal):
    """A signal that the package knows nothing of."""

    def verdict(self):
        raise AssertionError


class Notes(Callback):
    """Neither does it know this."""


@pytest.fixture
def configured():
    return [LoggerRecord(), WeightExport(), SampleVideos(), OverfitStopping(), ExposureLedger(), DivergenceMonitor()]


def kinds(callbacks):
    return [type(callback) for callback in callbacks]


def test_each_place_says_why():
    assert all(len(place.why) > 20 for place in ORDER)
    assert len({place.why for place in ORDER}) == len({*KINDS}) == len(ORDER)


def test_every_callback_of_the_package_has_its_place():
    found = set()
    for package in (vidlit.callbacks, vidlit.signals):
        for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            members = vars(importlib.import_module(module.name)).values()
            found |= {each for each in members if inspect.isclass(each) and each.__module__ == module.name}
    callbacks = {each for each in found if issubclass(each, Callback) and not issubclass(each, Signal)}
    assert len(callbacks) > 10
    assert callbacks <= {*KINDS}


def test_a_fit_has_them_in_this_order(configured):
    callbacks = kinds(callbacks_for("fit", configured))
    places = [KINDS.index(next(kind for kind in each.__mro__ if kind in KINDS)) for each in callbacks]
    assert places == sorted(places)
    assert len(callbacks) == 10 + len(configured) + 3
    assert callbacks[0] is AveragedValidation
    assert issubclass(callbacks[-1], Checkpoint)
    for earlier, later in (
        (DivergenceMonitor, OverfitStopping),
        (OverfitStopping, WeightExport),
        (WeightExport, SampleVideos),
        (SampleVideos, ModelCard),
        (ModelCard, LoggerRecord),
        (ExposureLedger, GracefulInterrupt),
        (GracefulInterrupt, RunCheckpoints),
    ):
        assert callbacks.index(earlier) < callbacks.index(later), (earlier, later)


def test_what_a_plugin_brings_is_put_where_it_works(configured):
    callbacks = kinds(callbacks_for("fit", [Notes(), *configured, Grain()]))
    assert callbacks.index(ExposureLedger) < callbacks.index(Grain) < callbacks.index(OverfitStopping)
    assert callbacks.index(WeightExport) < callbacks.index(Notes) < callbacks.index(LoggerRecord)


def test_the_order_given_counts_for_nothing_but_equals(configured):
    first, second = Notes(), Notes()
    expected = in_order([*configured, first, second])
    random.Random(0).shuffle(configured)
    assert in_order([first, *configured, second]) == expected


def test_other_commands_get_what_they_need(configured):
    assert kinds(callbacks_for("validate", configured)) == [AveragedValidation, DivergenceMonitor, ValidationTable]
    assert kinds(callbacks_for("test", configured)) == [Evaluation]
    assert callbacks_for("predict", configured) == []
