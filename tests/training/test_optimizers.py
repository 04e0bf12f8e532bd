"""With the real packages: what each optimizer trains, what its checkpoint gives back, what a step left out changes."""

import io
from types import SimpleNamespace

import prodigyopt
import pytest
import schedulefree
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torchao.optim import AdamW8bit

from vidlit.training.optimizers import (
    MuonAdamW,
    apply_changes,
    hyperparameters,
    is_schedule_free,
    unscale,
    with_warmup,
)

OPTIMIZERS = {
    "fused AdamW": lambda parameters: torch.optim.AdamW(parameters, lr=1e-2, fused=True),
    "Muon with AdamW": lambda parameters: MuonAdamW(parameters, lr=1e-2),
    "Prodigy": lambda parameters: prodigyopt.Prodigy(parameters, d0=1e-3),
    "schedule-free AdamW": lambda parameters: schedulefree.AdamWScheduleFree(parameters, lr=1e-2),
    "8-bit AdamW": lambda parameters: AdamW8bit(parameters, lr=1e-2),
}


@pytest.fixture(autouse=True)
def eager():
    """torchao compiles its step, which takes a minute here."""
    with torch.compiler.set_stance("force_eager"):
        yield


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.proj_in = nn.Linear(8, 64)
        self.blocks = nn.ModuleList([nn.Linear(64, 64)])
        self.proj_out = nn.Linear(64, 8)

    def forward(self, x):
        return self.proj_out(self.blocks[0](self.proj_in(x)).tanh())


def train(model, optimizer, steps, first=0):
    if is_schedule_free_instance := hasattr(optimizer, "train"):
        optimizer.train()
    losses = []
    for step in range(first, first + steps):
        x = torch.randn(16, 8, generator=torch.Generator().manual_seed(step))
        loss = (model(x) - x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert is_schedule_free_instance == hasattr(optimizer, "eval")
    return losses


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_it_learns_and_goes_on_from_its_checkpoint_bit_for_bit(make):
    model = Model()
    optimizer = make(list(model.named_parameters()))
    losses = train(model, optimizer, 20)
    assert losses[-1] < 0.9 * losses[0]
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    ahead = train(model, optimizer, 3, first=20)

    file.seek(0)
    stored = torch.load(file, weights_only=True)  # as Lightning does
    again = Model()
    again.load_state_dict(stored["model"])
    resumed = make(list(again.named_parameters()))
    resumed.load_state_dict(stored["optimizer"])
    assert train(again, resumed, 3, first=20) == ahead
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_a_step_without_gradients_changes_no_weight(make):
    """What happens to a step that is left out."""
    model = Model()
    optimizer = make(list(model.named_parameters()))
    train(model, optimizer, 2)
    before = [parameter.clone() for parameter in model.parameters()]
    optimizer.zero_grad(set_to_none=True)
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_muon_gets_the_matrices_inside_blocks_and_adamw_the_rest():
    model = Model()
    optimizer = MuonAdamW(list(model.named_parameters()), lr=1e-2, weight_decay=0.0)
    muon, adamw = (group["param_names"] for group in optimizer.param_groups)
    assert muon == ["blocks.0.weight"]
    assert set(adamw) == {name for name, _ in model.named_parameters()} - set(muon)
    before = model.blocks[0].weight.detach().clone()
    train(model, optimizer, 1)
    # Muon gives all directions of an update nearly the same length (here there are 8, as many as outputs), scaled so
    # that a full one has AdamW's usual root mean square of 0.2 times the rate an element.
    change = model.blocks[0].weight.detach() - before
    singular = torch.linalg.svdvals(change) / (1e-2 * 0.2 * 64**0.5)
    assert 0.5 < singular[:8].min()
    assert singular.max() < 1.5


def test_muons_rates_follow_a_schedule_after_a_resume_too():
    model = Model()
    optimizer = MuonAdamW(list(model.named_parameters()), lr=1.0)
    optimizer.load_state_dict(MuonAdamW(list(Model().named_parameters()), lr=1.0).state_dict())
    schedule = with_warmup(optimizer, 4, None)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.25, 0.25])
    before = [parameter.clone() for parameter in model.parameters()]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    train(model, optimizer, 1)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert schedule is not None


def test_schedule_free_ones_are_recognised():
    assert is_schedule_free(OPTIMIZERS["schedule-free AdamW"])
    assert not any(is_schedule_free(make) for name, make in OPTIMIZERS.items() if "schedule" not in name)
    assert not is_schedule_free(torch.optim.Muon)


SCHEDULES = {
    "constant": lambda optimizer: None,
    "cosine": lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 40),
    "lambda": lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step)),
    "step": lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 3, 0.5),
}


def trained(rate, schedule, warmup_steps, num_steps, **numbers):
    """An optimizer and its schedule after some steps, the rate of each, and its numbers when it was made."""
    optimizer = torch.optim.AdamW([nn.Parameter(torch.ones(3))], rate, **numbers)
    asked = hyperparameters(optimizer)
    made = SCHEDULES[schedule]
    schedule = with_warmup(optimizer, warmup_steps, None if made(optimizer) is None else made)
    return optimizer, schedule, steps(optimizer, schedule, num_steps), asked


def steps(optimizer, schedule, count):
    rates = []
    for _ in range(count):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.param_groups[0]["params"][0].grad = torch.ones(3)
        optimizer.step()
        if schedule is not None:
            schedule.step()
    return rates


@pytest.mark.filterwarnings("ignore:Detected call of")
@settings(deadline=None, max_examples=40)
@given(
    schedule=st.sampled_from(sorted(SCHEDULES)),
    warmup_steps=st.sampled_from([0, 2, 5]),
    num_steps=st.integers(1, 12),
    rates=st.tuples(st.floats(1e-6, 1e-2), st.floats(1e-6, 1e-2)),
)
def test_a_changed_rate_goes_on_as_if_it_had_been_so_from_the_start(schedule, warmup_steps, num_steps, rates):
    before, after = rates
    old, old_schedule, _, had = trained(before, schedule, warmup_steps, num_steps)
    new, new_schedule, _, asked = trained(after, schedule, warmup_steps, 0, weight_decay=0.3)
    new.load_state_dict(old.state_dict())
    if new_schedule is not None:
        new_schedule.load_state_dict(old_schedule.state_dict())
    apply_changes(new, [new_schedule] if new_schedule is not None else [], had, asked)
    assert new.param_groups[0]["weight_decay"] == 0.3
    *_, whole, _ = trained(after, schedule, warmup_steps, num_steps + 8)
    assert steps(new, new_schedule, 8) == pytest.approx(whole[num_steps:], rel=1e-6)


def test_nothing_that_was_not_changed_is_touched():
    """A rate that a schedule, or the optimizer itself, has changed meanwhile is the checkpoint's."""
    old, schedule, _, had = trained(1e-3, "cosine", 0, 7)
    group = dict(old.param_groups[0])
    apply_changes(old, [schedule], had, [dict(each) for each in had])
    assert {k: v for k, v in old.param_groups[0].items() if k != "params"} == {
        k: v for k, v in group.items() if k != "params"
    }


@pytest.mark.parametrize("fused", [True, False])
def test_gradients_of_float16_are_clipped_by_their_own_size(fused):
    """Fused optimizers unscale when they step, which is after the norm of the gradient was looked at."""
    parameter, scaler = torch.nn.Parameter(torch.ones(3)), torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer = torch.optim.AdamW([parameter], lr=0.1, fused=fused)
    trainer = SimpleNamespace(precision_plugin=SimpleNamespace(scaler=scaler))
    scaler.scale(parameter.square().sum()).backward()
    if not fused:  # as Lightning does
        scaler.unscale_(optimizer)
    assert unscale(trainer, SimpleNamespace(optimizer=optimizer))
    assert parameter.grad.tolist() == [2.0, 2.0, 2.0]
    before = parameter.detach().clone()
    scaler.step(optimizer)
    torch.testing.assert_close(parameter.detach(), before * (1 - 0.1 * 0.01) - 0.1)
    assert not unscale(SimpleNamespace(precision_plugin=SimpleNamespace()), optimizer)
