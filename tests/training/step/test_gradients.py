"""What becomes of gradients when a step is over, in a real fit."""

import weakref

import pytest

from vidlit.__main__ import main
from vidlit.training.module import VideoDiffusionModule


@pytest.mark.parametrize("accumulate", [1, 2])
def test_gradients_are_gone_before_the_next_forward_pass(accumulate, quickstart, monkeypatch):
    """A forward pass needs their memory; Lightning would free them after it, before the backward pass."""
    left, seen, alive = [], [], []
    step, clip = VideoDiffusionModule.training_step, VideoDiffusionModule.configure_gradient_clipping

    def training_step(self, batch, batch_idx):
        there = [parameter.grad for parameter in self.parameters() if parameter.grad is not None]
        left.append(len(there))
        alive.append(sum(gradient() is not None for gradient in seen))
        return step(self, batch, batch_idx)

    def configure_gradient_clipping(self, *args, **kwargs):
        clip(self, *args, **kwargs)
        seen[:] = [weakref.ref(parameter.grad) for parameter in self.parameters()]
        assert self.grad_norm > 0

    monkeypatch.setattr(VideoDiffusionModule, "training_step", training_step)
    monkeypatch.setattr(VideoDiffusionModule, "configure_gradient_clipping", configure_gradient_clipping)
    words = quickstart(trainer__max_steps=3, trainer__val_check_interval=6, trainer__accumulate_grad_batches=accumulate)
    assert main(words) == 0
    every = len(seen)
    assert every > 10
    assert left == [0 if number % accumulate == 0 else every for number in range(3 * accumulate)]
    assert not any(alive)
