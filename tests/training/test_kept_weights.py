"""Putting weights back never needs a second model on the device."""

import gc
import weakref

import pytest
import torch

from vidlit.__main__ import main
from vidlit.models.adapters import LoRA
from vidlit.models.family import Family
from vidlit.training.kept_weights import Kept, KeptWeights, as_base
from vidlit.training.memory import Memory
from vidlit.training.module import VideoDiffusionModule


def trained_module(demo, **options):
    """As if trained: every trained weight is another one than at the start."""
    module = VideoDiffusionModule(str(demo.dir / "base"), fps=16, **options)
    module.configure_model()
    before = {name: value.detach().clone() for name, value in module.trainable_state().items()}
    for value in module.trainable_state().values():
        value.data.add_(1)
    return module, before


@pytest.mark.parametrize(
    "options", [{"adapter": LoRA(rank=4)}, {"adapter": LoRA(rank=4), "memory": Memory(base_dtype="bfloat16")}, {}]
)
def test_the_base_is_put_back_into_the_weights_that_an_optimizer_holds(demo, monkeypatch, options):
    module, before = trained_module(demo, **options)
    held = module.trainable_state()
    if options:  # the base itself has not changed
        monkeypatch.setattr(Family, "load_transformer", None)
    KeptWeights("best").put_back(module, None, Kept("base model", 0), 0)
    assert module.trainable_state().keys() == held.keys()
    for name, value in module.trainable_state().items():
        assert value is held[name]
        assert torch.equal(value, before[name])


@pytest.mark.parametrize("options", [{"adapter": LoRA(rank=4)}, {}])
def test_the_base_stands_in_and_the_trained_model_comes_back(demo, options):
    module, before = trained_module(demo, **options)
    trained = {name: value.detach().clone() for name, value in module.trainable_state().items()}
    seen = weakref.ref(module.transformer)
    with as_base(module):
        gc.collect()
        assert (seen() is None) == (not options)
        if not options:
            assert all(torch.equal(value, before[name]) for name, value in module.trainable_state().items())
    assert all(torch.equal(value, trained[name]) for name, value in module.trainable_state().items())


@pytest.mark.parametrize("words", [["--model.adapter.rank=4"], pytest.param([], marks=pytest.mark.slow)])
def test_no_command_holds_two_transformers(quickstart, tmp_path, monkeypatch, words):
    alive, load = [], Family.load_transformer

    def watched(self, *args, **kwargs):
        assert not any(each() is not None for each in alive)
        made = load(self, *args, **kwargs)
        alive.append(weakref.ref(made))
        return made

    monkeypatch.setattr(Family, "load_transformer", watched)
    options = {"trainer__max_steps": 4, "data__split__test_fraction": 0.34, "data__split__val_fraction": 0.2}
    assert main([*quickstart(**options), *words]) == 0
    gc.collect()
    checkpoint = tmp_path / "runs" / "quickstart" / "0" / "checkpoints" / "best.ckpt"
    assert main([*quickstart("test", **options), *words, f"--ckpt_path={checkpoint}"]) == 0
    assert len(alive) == (2 if words else 3)
