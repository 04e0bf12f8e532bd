"""Drift in real runs: of a LoRA against its base, of whole weights against step 0, on through a resume."""

import csv
import json
from types import SimpleNamespace

import pytest
import torch

from vidlit.__main__ import main
from vidlit.errors import UserError
from vidlit.models.parts import Part
from vidlit.signals.drift_monitor import DriftMonitor, watched_captions
from vidlit.training.step.preservation import Preservation

LORA = {"model__adapter": "{rank: 4, alpha: 4}", "trainer__max_steps": 8}
PRESERVED = "{captions: [a disc on a plain ground], weight: 1.0, share: 1.0}"


def drifts(tmp_path, number=0):
    lines = (tmp_path / f"runs/quickstart/{number}/decisions.jsonl").read_text().splitlines()
    verdicts = [each for line in lines for each in json.loads(line)["verdicts"] if each["signal"] == "drift"]
    return verdicts, [each["evidence"]["drift"] for each in verdicts]


@pytest.fixture
def on(quickstart):
    """A small fit in which drift, which the quickstart switches off, may warn."""
    return lambda **options: quickstart(**{"overfit_stopping.policy.drift": "warn", **options})


def test_a_lora_drifts_from_its_base_and_less_where_it_is_preserved(on, tmp_path, monkeypatch, capsys):
    bases = []
    measured = DriftMonitor._velocities

    def remember(self):
        bases.append(measured(self))
        return bases[-1]

    monkeypatch.setattr(DriftMonitor, "_velocities", remember)
    assert main(on(**LORA, drift__limit=1e-9)) == 0
    verdicts, plain = drifts(tmp_path)
    assert [each["action"] for each in verdicts] == ["warn", "warn"]
    assert 0 < plain[0] < plain[1]
    assert bases[0].keys() == {"all"}
    capsys.readouterr()
    assert main(on(**LORA, **{"model.preservation": PRESERVED})) == 0
    verdicts, preserved = drifts(tmp_path, 1)
    assert 0 < preserved[-1] < plain[-1]
    told = "the captions watched are among those that model.preservation trains on"
    assert f"drift: {told}" in capsys.readouterr().out
    assert told in verdicts[0]["reason"]


def test_whole_weights_drift_from_step_0_and_go_on_after_a_resume(on, tmp_path):
    assert main(on(trainer__max_steps=8)) == 0
    _, whole = drifts(tmp_path)
    assert main(on(trainer__max_steps=4)) == 0
    run = tmp_path / "runs/quickstart/1"
    assert main([*on(trainer__max_steps=8), f"--ckpt_path={run}/checkpoints/last.ckpt"]) == 0
    _, resumed = drifts(tmp_path, 1)
    assert len(whole) == 2
    assert resumed == pytest.approx(whole, rel=1e-5)
    state = torch.load(run / "checkpoints/last.ckpt", weights_only=True)["callbacks"]["DriftMonitor"]
    assert state["watched"] == [""]
    assert state["base"].keys() == {"all"}


def test_a_policy_may_have_it_stop_the_run(on, tmp_path):
    assert main(on(**{**LORA, "overfit_stopping.policy.drift": "stop"}, drift__limit=1e-9)) == 0
    summary = json.loads((tmp_path / "runs/quickstart/0/summary.json").read_text())
    assert (summary["stopped_by"], summary["stop_step"]) == ("drift", 4)


def test_four_captions_at_most_are_watched():
    assert watched_captions([], []) == [""]
    assert watched_captions([], ["a", "b"]) == ["a", "b"]
    assert watched_captions(["c"], ["a", "b"]) == ["c"]
    assert watched_captions([f"{number}" for number in range(8)], []) == ["0", "2", "4", "6"]
    assert watched_captions(["", "a"], [], drops_captions=True) == ["a"]
    assert watched_captions([], [], drops_captions=True) == [""]
    with pytest.raises(UserError, match=r"drift\.limit is 0"):
        DriftMonitor(limit=0.0)


def test_captions_that_drift_watches_are_held_out_of_preservation_and_kept_over_a_resume(on, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(Preservation, "draw", lambda self, *_: drawn.append(set(self.trained)) or [])
    listed = tmp_path / "captions.txt"
    listed.write_text("\n".join(f"caption {number}" for number in range(8)))
    preserved = {**LORA, "model.preservation": f"{{captions: {listed}}}"}
    assert main(on(**{**preserved, "trainer__max_steps": 4})) == 0
    run = tmp_path / "runs/quickstart/0"
    state = torch.load(run / "checkpoints/last.ckpt", weights_only=True)["callbacks"]["DriftMonitor"]
    assert state["watched"] == [f"caption {number}" for number in (0, 2, 4, 6)]
    assert drawn == [{f"caption {number}" for number in (1, 3, 5, 7)}] * 4
    listed.write_text("\n".join(f"caption {number}" for number in (1, 0, *range(2, 8))))  # others would be watched
    assert main([*on(**preserved), f"--ckpt_path={run}/checkpoints/last.ckpt"]) == 0
    state = torch.load(run / "checkpoints/last.ckpt", weights_only=True)["callbacks"]["DriftMonitor"]
    assert state["watched"] == [f"caption {number}" for number in (0, 2, 4, 6)]
    assert drawn[-1] == {f"caption {number}" for number in (1, 3, 5, 7)}


def test_what_is_switched_off_is_neither_measured_nor_encoded(quickstart, tmp_path, capsys):
    options = {"data__store": tmp_path / "store", "trainer__max_steps": 2, "trainer__val_check_interval": 2}
    assert main(quickstart(**options)) == 0
    assert "12 clips and 6 captions encoded" in capsys.readouterr().out
    with (tmp_path / "runs/quickstart/0/metrics.csv").open(newline="") as file:
        assert "drift/velocity" not in next(csv.reader(file))
    training = {"model__caption_dropout": 0.5, "overfit_stopping.policy.drift": "warn"}
    assert main(quickstart("validate", **options, **training)) == 0
    assert "0 clips and 0 captions encoded" in capsys.readouterr().out


def test_the_parts_that_are_trained_are_watched(monkeypatch):
    monitor, asked = DriftMonitor(), []
    high, low = (Part(name, sigmas=sigmas, expert=name) for name, sigmas in (("high", (0.7, 1)), ("low", (0, 0.7))))
    sound = Part("audio", "audio_latents")

    def predict(number, expert, sigmas):
        asked.append((expert, sigmas))
        return {"latents": torch.zeros(1, 2), "audio_latents": torch.ones(1, 3)}

    monkeypatch.setattr(monitor, "_predict", predict)
    for parts, elements in (([sound], {"audio": 12}), ([high, low], {"high": 8, "low": 8}), ([low], {"low": 8})):
        monitor.module = SimpleNamespace(
            parts=SimpleNamespace(parts=parts), expert_names=list(dict.fromkeys(part.expert for part in parts))
        )
        found = monitor._velocities()
        assert {name: each.numel() for name, each in found.items()} == elements
        assert all(each.eq(name == "audio").all() for name, each in found.items())
    assert asked == [each for part in (sound, high, low, low) for each in [(part.expert, part.sigmas)] * 4]


def test_preservation_needs_an_adapter(on, capsys):
    assert main(on(**{"model.preservation": PRESERVED})) == 2
    assert "set model.adapter" in capsys.readouterr().err
