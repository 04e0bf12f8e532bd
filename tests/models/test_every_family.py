"""What must hold in every family, whatever its conventions."""

import pytest
import torch

from tests.models import bases
from vidlit.data.batch import Conditioning, LatentBatch
from vidlit.diffusion.loss import denoising_loss
from vidlit.models.adapters import LoRA
from vidlit.models.family import known_families, open_family


@pytest.fixture(scope="module", params=bases.EVERY)
def family(request, tmp_path_factory):
    return open_family(bases.EVERY[request.param](tmp_path_factory.mktemp(request.param) / "base"))


@pytest.fixture(scope="module")
def batch(family):
    shape = family.latent_shape(*bases.size_of(family))
    latents = torch.randn(2, *shape, generator=torch.Generator().manual_seed(3))
    return LatentBatch(latents, bases.conditioning_of(family), torch.arange(2), torch.arange(2))


def loss_of(family, transformer, batch):
    """At fixed noise."""
    noising = family.noising().at(batch.latents[0, 0].numel())
    noise = torch.randn(batch.latents.shape, generator=torch.Generator().manual_seed(4))
    sigmas = noising.quantile(torch.tensor([0.3, 0.7]))
    return denoising_loss(lambda *inputs: family.velocity(transformer, *inputs), noising, batch, noise, sigmas)


def test_no_family_is_forgotten():
    files = {family.__module__.rsplit(".", 1)[1] for family in known_families().values()}
    assert files == {name.split("-")[0] for name in bases.EVERY}


@torch.no_grad()
def test_samples_of_a_batch_do_not_touch_each_other(family, batch):
    transformer = family.load_transformer().eval()
    sigmas = torch.tensor([0.2, 0.9])
    together = family.velocity(transformer, batch.latents, sigmas, batch.conditioning)
    for row in range(2):
        one = slice(row, row + 1)
        extras = {name: value[one] for name, value in batch.conditioning.extras.items()}
        alone = Conditioning(*(part[one] for part in batch.conditioning[:2]), extras)
        velocity = family.velocity(transformer, batch.latents[one], sigmas[one], alone)
        torch.testing.assert_close(velocity, together[one], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_bfloat16_weights_give_nearly_the_same_velocities(family, batch):
    sigmas = torch.tensor([0.2, 0.9])
    full, half = (
        family.velocity(family.load_transformer(dtype).eval(), batch.latents, sigmas, batch.conditioning).float()
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert ((half - full).square().mean() / full.square().mean()).sqrt() < 0.05


def test_checkpointed_activations_give_the_same_gradients(family, batch):
    gradients = []
    for checkpointing in (False, True):
        transformer = family.load_transformer().train()
        if checkpointing:
            transformer.enable_gradient_checkpointing()
        loss_of(family, transformer, batch).mean().backward()
        gradients.append({name: p.grad for name, p in transformer.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() != set()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-5, rtol=1e-4)


def test_a_lora_learns(family, batch):
    """Two clips at fixed noise can be learnt by heart, if sign, target and gradients are right."""
    transformer = family.load_transformer()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LoRA(rank=16, alpha=32.0).apply(transformer, family)
    optimizer = torch.optim.Adam([p for p in transformer.parameters() if p.requires_grad], lr=2e-2)
    losses = []
    for _ in range(12):
        loss = loss_of(family, transformer, batch).mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.97 * losses[0]
