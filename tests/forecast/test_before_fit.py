"""What a fit is refused for, and what is chosen for it, on a card that is small by decree."""

import json
import re
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from tests.forecast.test_step_memory import wan_of
from vidlit.__main__ import main
from vidlit.errors import UserError
from vidlit.forecast import before_fit, memory_forecast
from vidlit.forecast.before_fit import IGNORE, prepare_memory, refuse_early, refused, words
from vidlit.forecast.card import GraphicsCard, needs, parse_memory
from vidlit.forecast.memory_forecast import RunSetting
from vidlit.forecast.remedies import Option, _bfloat16_base, beyond, fit_to, resolved, single_changes
from vidlit.forecast.tensor_memory import FROZEN
from vidlit.models.adapters import LoRA
from vidlit.training.memory import Memory
from vidlit.training.module import VideoDiffusionModule
from vidlit.video.buckets import Bucket

BUCKETS = [Bucket(9, 64, 64), Bucket(9, 128, 128)]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    module = wan_of(tmp_path_factory.mktemp("base"), 2)
    module.optimizer = torch.optim.AdamW
    module.memory = Memory(gradient_checkpointing=False)  # what is left to the forecast counts as recomputed
    return Option(module, RunSetting(BUCKETS[-1], batch_size=2, clip_val=1.0, audits=False), BUCKETS)


def test_gigabytes_of_a_card_are_those_of_its_name():
    assert parse_memory("24GB").memory == pytest.approx(25.5e9, rel=0.01)
    assert parse_memory(" 8 gib ").memory == parse_memory("8g").memory
    assert parse_memory("25e9").memory == 25e9
    for text in ("much", "24 MB", "-1", "nan"):
        with pytest.raises(UserError, match="no size of a GPU's memory"):
            parse_memory(text)


@pytest.mark.slow
def test_changes_that_make_it_fit_are_as_few_as_needed(run):
    assert fit_to(run, run.needs).options == {}
    impossible = fit_to(run, 1.0)
    assert impossible.options["data.batches.size"] == 1
    assert impossible.needs < run.needs
    fitted = fit_to(run, needs(0.9 * run.peak))
    assert fitted.peak <= 0.9 * run.peak
    assert len(fitted.options) < len(impossible.options)


@pytest.mark.slow
def test_each_change_is_shown_with_what_it_needs(run):
    changes = {words(changed): needed for changed, needed in single_changes(run)}
    assert "--model.memory.gradient_checkpointing true" in changes
    assert f"--data.buckets [{BUCKETS[0]}]" in changes
    assert all(needed < run.needs for needed in changes.values())
    assert len(single_changes(run, memory=1e12)) == 3


@pytest.mark.slow
def test_a_roomy_card_could_hold_more(run):
    recomputed = run.with_memory("", gradient_checkpointing=True)
    assert [option for option, _ in beyond(recomputed, 1e12)] == [
        "--model.memory.gradient_checkpointing false",
        "--data.batches.size 4",
    ]
    assert beyond(recomputed, 1.0) == []


def test_a_frozen_base_takes_fewer_bits(tmp_path):
    module = wan_of(tmp_path, 2)
    lora = VideoDiffusionModule(module.base, LoRA(rank=4), memory=Memory())
    run = Option(lora, RunSetting(BUCKETS[0], precision="32-true", audits=False), BUCKETS[:1])
    lowered = _bfloat16_base(run)
    assert lowered.options == {"model.memory.base_dtype": "bfloat16"}
    # Half of nearly all: norms and times stay in float32.
    assert lowered.steps.peaks["check"].of(FROZEN) < 0.65 * run.steps.peaks["check"].of(FROZEN)


@pytest.mark.slow
def test_what_is_refused_is_told_what_would_fit(run):
    peaks = run.peaks()
    card = GraphicsCard("tiny", max(peaks.values()))
    said = refused(run, peaks, card)
    assert re.search(rf"this will not fit.*tiny.*--{IGNORE} true", said)
    assert "model.memory.gradient_checkpointing true" in said


def test_what_cannot_fit_is_refused(run, monkeypatch):
    monkeypatch.setattr(before_fit, "single_changes", lambda run, phases, memory: [])
    peaks = {"train": 30e9, "checks": 20e9}
    said = refused(run, peaks, parse_memory("24GB"))
    assert re.search(r"30\.0 GB are forecast for the phase 'train'.*a card of 24 GB", said)
    assert refused(run, peaks, parse_memory("48GB")) == ""


@pytest.fixture
def on_a_card(run, monkeypatch):
    """Prepares the run as a rank with a card of so much memory, beside one that has decided so."""

    def prepared(memory, *, first=True, sent=None, **options):
        monkeypatch.setattr(before_fit, "card_here", lambda device: GraphicsCard("a card", memory))
        monkeypatch.setattr(before_fit, "run_of", lambda trainer, module, data, audits: run)
        shared = []
        broadcast = lambda found: shared.append(found) or (found if first else sent)  # noqa: E731
        strategy = SimpleNamespace(root_device=torch.device("cuda"), broadcast=broadcast)
        module = SimpleNamespace(memory=run.module.memory)
        trainer = SimpleNamespace(strategy=strategy, is_global_zero=first, datamodule=None)
        peak = prepare_memory(trainer, module, **options)
        return module.memory, peak, shared[0]

    return prepared


def test_a_run_that_does_not_fit_is_refused_on_all_ranks_unless_told(run, on_a_card):
    memory, peak, decided = on_a_card(1e12)
    assert peak == max(run.peaks()["train"], run.peaks()["checks"])
    assert decided == (memory, peak, "")
    with pytest.raises(UserError, match="this will not fit"):
        on_a_card(peak)
    assert on_a_card(peak, ignore=True)[1] == peak
    with pytest.raises(UserError, match="too small there"):
        on_a_card(1e12, first=False, sent=(memory, peak, "too small there"))
    assert on_a_card(1.0, first=False, sent=(memory, peak, "")) == (memory, peak, None)


def test_what_does_not_fit_is_refused_before_clips_are_encoded(run, monkeypatch, quickstart, tmp_path, capsys):
    monkeypatch.setattr(before_fit, "card_here", lambda device: GraphicsCard("a card", run.peak))
    monkeypatch.setattr(before_fit, "run_of", lambda trainer, module, data, audits: run)
    given = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("cuda"))), run.module, None
    with pytest.raises(UserError, match="this will not fit"):
        refuse_early(*given)
    monkeypatch.setattr("vidlit.callbacks.throughput.refuse_early", lambda *_, audits: refuse_early(*given))
    words = quickstart(data__store=tmp_path / "store")
    assert main(words) == 2
    assert "this will not fit" in capsys.readouterr().err
    assert not (tmp_path / "store").exists()
    assert main([*words, "--run.ignore_memory_forecast=true", "--trainer.max_steps=2"]) == 0


def test_a_fit_on_a_cpu_has_no_forecast(quickstart, tmp_path, monkeypatch):
    monkeypatch.setattr(before_fit, "run_of", partial(pytest.fail, "was asked"))
    assert main(quickstart(trainer__max_steps=2, trainer__val_check_interval=2)) == 0
    logged = (tmp_path / "runs" / "quickstart" / "0" / "metrics.csv").read_text()
    assert "perf/memory_forecast_gb" not in logged


def test_a_plan_says_whether_it_fits(quickstart, capsys):
    words = quickstart("plan")
    assert main([*words, "--json", "--gpu-memory", "24GB"]) == 0
    memory = json.loads(capsys.readouterr().out)["memory"]
    assert memory["fits"] is True
    assert list(memory["phases"]) == ["encode captions", "encode clips", "train", "checks", "export"]
    held = memory["phases"]["train"]
    assert held["peak_gb"] == pytest.approx(sum(size for kind, size in held.items() if kind != "peak_gb"), rel=0.01)
    assert memory["needs_gb"] > memory["peak_gb"]


@pytest.mark.slow
def test_a_plan_writes_what_makes_it_fit(quickstart, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([*quickstart("plan"), "--fit-to", "0.0015GB"]) == 0
    shown = capsys.readouterr()
    assert "It does not fit a card of 0.0015 GB" in shown.out
    assert "fit_to_0.0015GB.yaml" in shown.err
    assert "class_path: torchao.optim.AdamW8bit" in (tmp_path / "fit_to_0.0015GB.yaml").read_text()


@pytest.mark.parametrize(("given", "name"), [("bf16", "bf16-mixed"), (16, "16-mixed"), ("32", "32-true")])
def test_older_names_of_a_precision_are_understood(given, name, monkeypatch):
    monkeypatch.setattr(memory_forecast, "largest", lambda data: (BUCKETS[0], 1, 1))
    data = SimpleNamespace(encoding=SimpleNamespace(with_std=False, tiled=False))
    assert memory_forecast.setting_of(data, precision=given, accumulate=1, clip_val=None).precision == name


def test_what_is_left_to_the_forecast_is_chosen(run):
    automatic = run.with_memory("", gradient_checkpointing="auto")
    assert resolved(automatic, 1e12).module.memory.gradient_checkpointing is False
    assert resolved(automatic, 1.0).module.memory.gradient_checkpointing is True
    assert resolved(automatic, None).module.memory.gradient_checkpointing is True
