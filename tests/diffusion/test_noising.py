import numpy as np
import pytest
import torch
from scipy import stats

from vidlit.diffusion.noising import NUM_LEVELS, keyed_generator, stratum_noise, stratum_sigmas
from vidlit.diffusion.rectified_flow import RectifiedFlow, ResolutionShift


def test_keyed_generators_depend_on_the_key_and_on_nothing_else():
    before = torch.random.get_rng_state()
    first = torch.randn(8, generator=keyed_generator("train", 0, 5, 1))
    torch.manual_seed(123)
    assert torch.equal(first, torch.randn(8, generator=keyed_generator("train", 0, 5, 1)))
    keys = [("train", 0, 5, 1), ("train", 0, 51), ("train", 5, 0, 1), ("paired", 0, 5, 1), ("train", "0", 5, 1), ()]
    assert len({keyed_generator(*key).initial_seed() for key in keys}) == len(keys)
    torch.random.set_rng_state(before)


def test_keyed_generators_are_the_same_in_every_version():
    """A changed stream would make old checkpoints' validation curves incomparable: change it knowingly."""
    assert keyed_generator("paired", 0, 1, 2).initial_seed() == 3149941192678364432


def test_keyed_noise_leaves_the_global_generator_alone():
    torch.manual_seed(7)
    expected = torch.randn(3)
    torch.manual_seed(7)
    stratum_noise(0, torch.tensor([1, 2]), 0, (2, 1, 2, 2))
    RectifiedFlow().sample_sigmas(4, keyed_generator("train", 0))
    assert torch.equal(torch.randn(3), expected)


@pytest.mark.parametrize("num_strata", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("flow", [RectifiedFlow(), RectifiedFlow("uniform"), RectifiedFlow(min_sigma=0.4)])
def test_strata_are_mid_quantiles_and_clips_together_cover_all_levels(flow, num_strata):
    keys = torch.arange(NUM_LEVELS)
    sigmas = stratum_sigmas(flow, keys, [60] * NUM_LEVELS, num_strata)
    assert sigmas.shape == (NUM_LEVELS, num_strata)
    assert (sigmas.diff(dim=1) > 0).all()
    share = flow.share_below(torch.tensor([flow.min_sigma, *sigmas.flatten().tolist()], dtype=torch.float64)).numpy()
    probability = ((share[1:] - share[0]) / (1 - share[0])).reshape(sigmas.shape)
    assert (np.floor(probability * num_strata) == np.arange(num_strata)).all()  # one in each stratum
    levels, counts = np.unique(np.round(probability * NUM_LEVELS - 0.5, 3), return_counts=True)
    np.testing.assert_allclose(levels, np.arange(NUM_LEVELS), atol=1e-3)
    assert len(set(counts)) == 1


def test_stratum_sigmas_of_a_clip_depend_on_its_key_and_its_size_alone():
    flow = RectifiedFlow(shift=ResolutionShift())
    keys, sizes = torch.tensor([2**63 - 1, 17, 3, 3]), [256, 4096, 256, 4096]
    together = stratum_sigmas(flow, keys, sizes, 4)
    for row, (key, size) in enumerate(zip(keys, sizes, strict=True)):
        assert torch.equal(stratum_sigmas(flow, key[None], [size], 4)[0], together[row])
        assert torch.equal(stratum_sigmas(flow.at(size), key[None], [size], 4)[0], together[row])
    assert (together[3] > together[2]).all()  # larger videos need more noise


def test_neighbouring_strata_mirror_their_noise():
    keys, shape = torch.tensor([5, 9]), (2, 1, 3, 3)
    noise = [stratum_noise(0, keys, stratum, shape) for stratum in range(4)]
    assert torch.equal(noise[1], -noise[0])
    assert torch.equal(noise[3], -noise[2])
    assert not torch.equal(noise[2].abs(), noise[0].abs())


def test_stratum_noise_of_a_clip_depends_on_seed_clip_and_stratum_alone():
    shape = (3, 2, 4, 4)
    keys = torch.tensor([5, 2**63 - 1, 9])
    together = stratum_noise(0, keys, 1, shape)
    assert together.shape == (3, *shape)
    reversed_order = stratum_noise(0, keys.flip(0), 1, shape)
    assert torch.equal(together, reversed_order.flip(0))
    for row, key in enumerate(keys):
        assert torch.equal(stratum_noise(0, key[None], 1, shape)[0], together[row])
    others = [stratum_noise(1, keys, 1, shape), stratum_noise(0, keys, 2, shape), stratum_noise(0, keys + 1, 1, shape)]
    assert all(not torch.equal(together[0], other[0]) for other in others)
    assert stats.kstest(stratum_noise(0, torch.arange(50), 0, shape).flatten().numpy(), "norm").pvalue > 0.01
