import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from tests.models.batches import batch_of
from vidlit.diffusion.loss import denoising_loss
from vidlit.models.family import open_family
from vidlit.training.blocks.compiling import compile_blocks
from vidlit.training.blocks.recompute import recompute_blocks
from vidlit.training.blocks.repeated import repeated_blocks
from vidlit.training.memory import Memory
from vidlit.training.module import VideoDiffusionModule


@pytest.fixture(scope="module")
def family(demo):
    return open_family(demo.dir / "base", 16)


@pytest.fixture(scope="module")
def batch(family):
    return batch_of(family, (9, 48, 80))


class Casts(TorchDispatchMode):
    """Counts weights of some shapes that are cast to bfloat16."""

    def __init__(self, shapes):
        super().__init__()
        self.shapes, self.at_a_use, self.at_once = shapes, 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default:
            self.at_a_use += made.dtype == torch.bfloat16 and made.shape in self.shapes
        if func is torch.ops.aten._foreach_copy_.default:
            self.at_once += len(args[0])
        return made


def linear_layers(transformer):
    return [each for block in repeated_blocks(transformer) for each in block.modules() if isinstance(each, nn.Linear)]


def loss_of(family, transformer, batch):
    noise = torch.randn(batch.latents.shape, generator=torch.Generator().manual_seed(1))
    sigmas = torch.full((len(noise),), 0.5)

    def model(*inputs):
        return family.velocity(transformer, *inputs)

    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):  # as Lightning's
        return denoising_loss(model, family.noising(), batch, noise, sigmas).mean()


def trained(family, batch, casts_once, compiled=False, fused=True):
    """Losses and gradients of three steps of two batches, and the casts of the second one."""
    transformer = family.load_transformer().train()
    layers = linear_layers(transformer)
    apart = [each.weight.shape for each in transformer.modules() if isinstance(each, nn.Linear)]
    shapes = {layer.weight.shape for layer in layers}
    if casts_once:
        Memory(cast_once=True, gradient_checkpointing=True).apply(
            transformer, torch.device("cpu"), trains_in_bfloat16=False, trains_whole=True
        )
    else:
        Memory(gradient_checkpointing=True).apply(transformer, torch.device("cpu"), trains_in_bfloat16=False)
    if compiled:
        torch._dynamo.reset()
        compile_blocks(transformer, "aot_eager")
    optimizer = torch.optim.AdamW(transformer.parameters(), lr=1e-2, fused=fused)
    made, counted = [], Casts(shapes)
    for step in range(3):
        with counted if step == 1 else torch.enable_grad():
            for _ in range(2):
                loss = loss_of(family, transformer, batch)
                loss.backward()
                made.append(loss.detach())
        made += [parameter.grad.clone() for parameter in transformer.parameters()]
        optimizer.step()
        optimizer.zero_grad()
    others = len([shape for shape in apart if shape in shapes]) - len(layers)
    return made, counted, len(layers), others


@pytest.mark.parametrize("fused", [True, False])
def test_weights_are_cast_once_a_step_and_losses_and_gradients_stay_to_the_bit(family, batch, fused):
    expected, at_every_use, layers, others = trained(family, batch, casts_once=False, fused=fused)
    found, once, *_ = trained(family, batch, casts_once=True, fused=fused)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert once.at_once == layers
    assert at_every_use.at_once == 0
    # Forward and recomputed, in two batches; what lies outside the blocks is cast as ever.
    assert at_every_use.at_a_use - once.at_a_use == 2 * 2 * layers
    assert once.at_a_use <= 2 * 2 * others + 2


@pytest.mark.slow
def test_compiled_blocks_read_the_copies(family, batch):
    expected, *_ = trained(family, batch, casts_once=False, compiled=True)
    found, once, layers, _ = trained(family, batch, casts_once=True, compiled=True)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert once.at_once == layers


@torch.no_grad()
def test_weights_that_something_else_changes_are_cast_anew(family, batch):
    """An average in their place, a checkpoint: before a pass without gradients, and after one."""
    transformer = family.load_transformer()
    memory = Memory(cast_once=True)
    memory.apply(transformer, torch.device("cpu"), trains_in_bfloat16=False, trains_whole=True)

    def losses():
        plain = family.load_transformer()
        Memory().apply(plain, torch.device("cpu"), trains_in_bfloat16=False)
        plain.load_state_dict(transformer.state_dict())
        return loss_of(family, transformer, batch), loss_of(family, plain, batch)

    with torch.enable_grad():
        loss_of(family, transformer, batch)
    for _ in range(2):
        for parameter in transformer.parameters():
            parameter.data.mul_(1.1)  # which counts no version
        found, expected = losses()
        assert torch.equal(found, expected)
    with torch.enable_grad():
        assert torch.equal(*losses())


def test_names_weights_and_moves_stay_and_without_autocast_nothing_is_copied(family, batch):
    transformer, plain = family.load_transformer(), family.load_transformer()
    Memory(cast_once=True).apply(transformer, torch.device("cpu"), trains_in_bfloat16=False, trains_whole=True)
    layers = linear_layers(transformer)
    loss_of(family, transformer, batch)
    assert all(layer.low.dtype == torch.bfloat16 for layer in layers)
    assert transformer.state_dict().keys() == plain.state_dict().keys()
    transformer.to(torch.float64).to(torch.float32)
    assert all(layer.low is None for layer in layers)
    noisy, sigmas = batch.latents.float(), torch.full((len(batch.latents),), 0.5)
    found, expected = (family.velocity(each, noisy, sigmas, batch.conditioning) for each in (transformer, plain))
    assert torch.equal(found, expected)
    assert all(layer.low is None for layer in layers)


@pytest.mark.parametrize(("option", "copies"), [(True, True), (False, False), ("auto", False)])
def test_the_module_asks_for_copies_where_weights_themselves_are_trained(demo, option, copies):
    module = VideoDiffusionModule(str(demo.dir / "base"), fps=16, memory=Memory(cast_once=option))
    module.configure_model()
    layers = linear_layers(module.transformer)
    assert all(("low" in vars(layer)) == copies for layer in layers)


def test_blocks_hand_on_bfloat16_under_autocast_alone(family, batch):
    transformer, dtypes = family.load_transformer(), []
    Memory(gradient_checkpointing=True).apply(transformer, torch.device("cpu"), trains_in_bfloat16=False)
    for block in repeated_blocks(transformer):
        block.register_forward_hook(lambda block, inputs, given: dtypes.append(given.dtype))
    loss_of(family, transformer, batch).backward()
    assert set(dtypes) == {torch.bfloat16}
    plain = family.load_transformer()
    assert torch.equal(
        *(
            family.velocity(each, batch.latents.float(), torch.full((len(batch.latents),), 0.5), batch.conditioning)
            for each in (plain, transformer)
        )
    )
    recompute_blocks(plain, True)
    wide = loss_of(family, plain, batch)
    torch.testing.assert_close(loss_of(family, transformer, batch), wide, rtol=2e-3, atol=0)
