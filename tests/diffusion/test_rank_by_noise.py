"""T-LoRA: which ranks a sample has, in a call and in what is recomputed of it."""

import pytest
import torch

from tests.models import bases
from tests.models.batches import batch_of
from vidlit.diffusion.rank_by_noise import RankByNoise
from vidlit.models.adapters import LoRA
from vidlit.models.family import open_family
from vidlit.training.blocks.recompute import recompute_blocks
from vidlit.training.blocks.repeated import repeated_blocks


def test_half_of_the_ranks_are_left_where_all_is_noise():
    ranks = RankByNoise(16, 8).ranks(torch.tensor([0.0, 0.1, 0.5, 0.99, 1.0]))
    assert ranks.tolist() == [16, 15, 12, 8, 8]


@pytest.fixture(scope="module")
def wan(tmp_path_factory):
    return open_family(bases.wan(tmp_path_factory.mktemp("wan") / "base"))


def adapted(family, variant="tlora"):
    transformer = family.load_transformer()
    LoRA(rank=4, variant=variant).apply(transformer, family)
    generator = torch.Generator().manual_seed(1)
    for parameter in transformer.parameters():
        if parameter.requires_grad:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    return transformer


def predict(family, transformer, batch, sigmas):
    return family.predict({"transformer": transformer}, batch.latents, torch.tensor(sigmas), batch.conditioning)


@torch.no_grad()
def test_a_sample_has_the_ranks_of_its_own_noise_level(wan):
    batch = batch_of(wan, bases.size_of(wan))
    masked, plain = adapted(wan), adapted(wan, "lora")
    few = adapted(wan, "lora")
    for name, parameter in few.named_parameters():
        if "lora_A" in name:
            parameter[2:] = 0
    sigmas = [0.0, 1.0]
    made = predict(wan, masked, batch, sigmas)
    torch.testing.assert_close(made[0], predict(wan, plain, batch, sigmas)[0], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(made[1], predict(wan, few, batch, sigmas)[1], atol=1e-6, rtol=1e-5)
    assert (made[1] - predict(wan, plain, batch, sigmas)[1]).abs().max() > 1e-4


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_what_is_recomputed_has_the_ranks_of_its_own_call(wan, compiled):
    """Two calls, then one backward pass of both: the second call's mask must not reach the first one's gradients."""
    batch = batch_of(wan, bases.size_of(wan))
    found = []
    for recomputed in (False, True):
        transformer = adapted(wan)
        if recomputed:
            recompute_blocks(transformer, True)
        if compiled:
            for block in repeated_blocks(transformer):
                block.compile(backend="aot_eager")
        calls = [predict(wan, transformer, batch, sigmas) for sigmas in ([0.0, 0.3], [1.0, 0.9])]
        sum(each.square().mean() for each in calls).backward()
        found.append([parameter.grad for parameter in transformer.parameters() if parameter.grad is not None])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)
