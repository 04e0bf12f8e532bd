"""Where the transformers of a pair are, and which of them are loaded."""

import pytest
import torch
from torch import nn

from tests.models import bases
from vidlit.__main__ import main
from vidlit.training.expert_weights import ExpertWeights
from vidlit.training.memory import Memory
from vidlit.training.module import VideoDiffusionModule


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return str(bases.wan_pair(tmp_path_factory.mktemp("pair") / "base"))


@pytest.fixture
def moves(monkeypatch):
    """Which transformers were moved to where."""
    found, to = [], nn.Module.to

    def remember(self, *where, **options):
        found.append((id(self), str(where[0])))
        return to(self, *where, **options)

    monkeypatch.setattr(nn.Module, "to", remember)
    return found


def test_the_expert_that_is_not_trained_is_loaded_when_a_sample_asks_it(pair):
    module = VideoDiffusionModule(pair, expert="low")
    module.configure_model()
    assert [name.split(".")[0] for name in module.state_dict()] == ["transformer_2"] * len(module.state_dict())
    frozen = module.experts["transformer"]
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    assert module.experts["transformer"] is frozen
    assert "transformer" not in dict(module.named_children())
    assert module.experts["transformer_2"] is module.transformer_2


def test_only_the_expert_that_is_asked_is_on_the_device(pair, moves):
    module = VideoDiffusionModule(pair, memory=Memory(offload_experts=True))
    module.configure_model()
    assert [module.experts.device_of(name).type for name in module.expert_names] == ["cpu", "cpu"]  # all that is here
    moves.clear()
    high, low = module.transformer, module.transformer_2
    assert module.experts["transformer"] is high
    assert moves == [(id(high), "cpu")]
    moves.clear()
    assert module.experts["transformer_2"] is low
    assert moves == [(id(high), "cpu"), (id(low), "cpu")]  # the first waits, the second comes to the device, a CPU here


def test_a_waiting_expert_stays_where_it_is_when_the_module_moves(pair):
    module = VideoDiffusionModule(pair, memory=Memory(offload_experts=True))
    module.configure_model()
    names = list(module.state_dict())
    module.to(torch.float64)  # as a move to a device, which there is none of here
    assert module.transformer.patch_embedding.weight.dtype == torch.float64
    assert module.transformer_2.patch_embedding.weight.dtype == torch.float32
    assert list(module.state_dict()) == names
    assert module.experts["transformer_2"] is module.transformer_2
    module.to(torch.float64)
    assert module.transformer_2.patch_embedding.weight.dtype == torch.float64


def test_the_start_of_an_adapter_is_kept_where_it_is_trained_alone(quickstart, tmp_path, monkeypatch):
    made, fresh = [], ExpertWeights.fresh

    def watched(self, name):
        made.append(self)
        return fresh(self, name)

    monkeypatch.setattr(ExpertWeights, "fresh", watched)
    words = ["--model.adapter.rank=4"]
    assert main([*quickstart(trainer__max_steps=4), *words]) == 0
    checkpoint = tmp_path / "runs" / "quickstart" / "0" / "checkpoints" / "best.ckpt"
    assert main([*quickstart("validate"), *words, f"--ckpt_path={checkpoint}"]) == 0
    assert [bool(experts.starts) for experts in made] == [True, False]
