import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from vidlit.training.averaging import EMA, AveragedWeights, kept_weights


def named(*values):
    return {f"block.{k}.weight": nn.Parameter(value) for k, value in enumerate(values)}


def test_against_torchs_own_average():
    model = nn.Linear(3, 2)
    reference = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    reference.update_parameters(model)  # its first call copies
    averaged = AveragedWeights(dict(model.named_parameters()))
    for _ in range(5):
        with torch.no_grad():
            model.weight.add_(torch.randn(2, 3))
        reference.update_parameters(model)
        averaged.update(EMA(0.9, warmup=False))
    torch.testing.assert_close(averaged.get_buffer("weight"), reference.module.weight.detach())


def test_the_warm_up_forgets_the_untrained_weights():
    assert [EMA(0.5).decay_at(n) for n in (0, 1, 8, 1000)] == pytest.approx([1 / 10, 2 / 11, 0.5, 0.5])
    assert EMA(0.5, warmup=False).decay_at(0) == 0.5


def test_it_stays_in_float32_where_the_weights_are_bfloat16():
    """An update of 2^-12 is lost in bfloat16, which has 8 digits."""
    parameters = named(torch.ones(4, dtype=torch.bfloat16))
    averaged = AveragedWeights(parameters)
    model = nn.ModuleDict({"averaged": averaged}).to(torch.bfloat16)
    with torch.no_grad():
        next(iter(parameters.values())).fill_(1.5)
    model["averaged"].update(EMA(1 - 2**-11, warmup=False))
    average = averaged.get_buffer("block/0/weight")
    assert average.dtype == torch.float32
    torch.testing.assert_close(average, torch.full((4,), 1 + 2**-12))
    assert averaged.num_updates == 1
    assert averaged.num_updates.dtype == torch.int64


def test_the_weights_are_not_its_own():
    averaged = AveragedWeights(named(torch.ones(2), torch.zeros(3)))
    assert list(averaged.parameters()) == []
    assert list(averaged.state_dict()) == ["num_updates", "block/0/weight", "block/1/weight"]


def test_kept_weights_take_the_averages_place():
    state = {
        "a.b": torch.zeros(1),
        "c": torch.zeros(1),
        "averaged.a/b": torch.ones(1),
        "averaged.num_updates": torch.tensor(3),
    }
    assert {name: float(value) for name, value in kept_weights(state).items()} == {"a.b": 1.0, "c": 0.0}
    assert kept_weights({"c": state["c"]}) == {"c": state["c"]}
