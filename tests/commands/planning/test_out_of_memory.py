"""What a fit says that ran out of memory."""

from functools import partial

import pytest
import torch

from vidlit.__main__ import main
from vidlit.commands.planning import out_of_memory
from vidlit.forecast import remedies
from vidlit.training.module import VideoDiffusionModule


@pytest.fixture
def full(monkeypatch):
    """Memory that is full at the third step."""
    step, failed = VideoDiffusionModule.training_step, []

    def training_step(self, batch, batch_idx):
        if batch_idx == 2 and not failed:
            failed.append(batch_idx)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return step(self, batch, batch_idx)

    monkeypatch.setattr(VideoDiffusionModule, "training_step", training_step)


def test_it_ends_in_one_line_with_what_a_step_holds_and_what_would_save_most(quickstart, full, capsys, monkeypatch):
    changes = [partial(remedies._recompute, share) for share in (0.5, 1.0)]  # two of all, for time
    monkeypatch.setattr(remedies, "ladder", lambda run: iter(changes))
    assert main(quickstart()) == 2
    error = capsys.readouterr().err
    assert "vidlit: error: out of memory at step 2. A step with 2 clips of 17x64x64 holds about" in error
    for part in ("trained weights 5.0 MB", "moments 10.1 MB", "activations "):
        assert part in error
    options = error.split("What would save most: ")[1].split("; ")
    options[-1] = options[-1].split(". ")[0]
    assert [option.split(" (about")[0] for option in options] == [
        f"--model.memory.gradient_checkpointing {share}" for share in ("true", "0.5")
    ]
    saved = [float(option.split("(about ")[1].split(" MB")[0]) for option in options]
    assert saved[0] > saved[1] > 0
    assert "A LoRA (--model.adapter.rank 16)" in error
    assert "Traceback" not in error


def test_without_a_forecast_the_options_are_said_in_general(quickstart, full, capsys, monkeypatch):
    def run_of(*_):
        raise RuntimeError("no forecast")

    monkeypatch.setattr(out_of_memory, "run_of", run_of)
    assert main(quickstart()) == 2
    error = capsys.readouterr().err
    assert "out of memory at step 2. Less would take --trainer.precision bf16-mixed" in error
    assert "no forecast" not in error
