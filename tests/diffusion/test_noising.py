import diffusers
import numpy as np
import pytest
import torch
from scipy import stats

from vidlit.diffusion.noising import (
    NUM_LEVELS,
    RectifiedFlow,
    ResolutionShift,
    keyed_generator,
    stratum_noise,
    stratum_sigmas,
)

DISTRIBUTIONS = [
    RectifiedFlow(),
    RectifiedFlow(mean=-0.7, std=1.6),
    RectifiedFlow("uniform"),
    RectifiedFlow(shift=3.0),
    RectifiedFlow("uniform", shift=5.0, min_sigma=0.1, max_sigma=0.8),
]


def cdf(flow, sigma):
    """The distribution function from its definition: undo range and shift, then scipy."""
    inner = (sigma - flow.min_sigma) / (flow.max_sigma - flow.min_sigma)
    unshifted = inner / (flow.shift - (flow.shift - 1) * inner)
    if flow.distribution == "uniform":
        return unshifted
    return stats.norm(flow.mean, flow.std).cdf(np.log(unshifted / (1 - unshifted)))


def test_the_path_ends_in_latents_and_in_noise():
    flow = RectifiedFlow()
    latents, noise = torch.randn(2, 3, 4, 2, 5, 6).unbind()
    noisy = flow.add_noise(latents, noise, torch.tensor([0.0, 1.0, 0.25]))
    assert torch.equal(noisy[0], latents[0])
    assert torch.equal(noisy[1], noise[1])
    torch.testing.assert_close(noisy[2], 0.75 * latents[2] + 0.25 * noise[2])


def test_target_is_the_derivative_of_the_path():
    flow = RectifiedFlow()
    latents, noise = torch.randn(2, 2, 3, 2, 4, 4, dtype=torch.float64).unbind()
    low, high = torch.full((2,), 0.3, dtype=torch.float64), torch.full((2,), 0.7, dtype=torch.float64)
    slope = (flow.add_noise(latents, noise, high) - flow.add_noise(latents, noise, low)) / 0.4
    torch.testing.assert_close(flow.target(latents, noise), slope)


def test_each_frame_may_have_a_noise_level_of_its_own():
    flow = RectifiedFlow()
    latents, noise = torch.randn(2, 2, 3, 2, 5, 6).unbind()
    noisy = flow.add_noise(latents, noise, torch.tensor([[0.0, 0.25], [0.5, 0.5]]))
    assert torch.equal(noisy[0, :, 0], latents[0, :, 0])
    torch.testing.assert_close(noisy[0, :, 1], 0.75 * latents[0, :, 1] + 0.25 * noise[0, :, 1])
    torch.testing.assert_close(noisy[1], 0.5 * latents[1] + 0.5 * noise[1])


def test_a_shift_by_resolution_is_that_of_diffusers():
    """What its samplers do with mu, training does with the sigmas that it draws."""
    line = ResolutionShift(0.95, 2.05, 1024, 4096)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    probability = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    for num_tokens in (256, 1024, 3000):
        mu = 0.95 + (2.05 - 0.95) * (num_tokens - 1024) / (4096 - 1024)
        expected = scheduler.time_shift(mu, 1.0, RectifiedFlow().quantile(probability))
        shifted = RectifiedFlow(shift=line).at(num_tokens)
        torch.testing.assert_close(shifted.quantile(probability), expected)
    assert RectifiedFlow(shift=3.0).at(1024) == RectifiedFlow(shift=3.0)


@pytest.mark.parametrize("flow", DISTRIBUTIONS)
def test_quantile_inverts_the_distribution_function(flow):
    probability = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    np.testing.assert_allclose(cdf(flow, flow.quantile(probability).numpy()), probability.numpy(), atol=1e-9)


@pytest.mark.parametrize("flow", DISTRIBUTIONS)
def test_sampled_sigmas_have_that_distribution(flow):
    sigmas = flow.sample_sigmas(20_000, torch.Generator().manual_seed(0)).double().numpy()
    assert stats.kstest(sigmas, lambda sigma: cdf(flow, sigma)).pvalue > 0.01
    assert flow.min_sigma <= sigmas.min()
    assert sigmas.max() <= flow.max_sigma


def test_extreme_probabilities_stay_finite():
    ends = RectifiedFlow(shift=5.0).quantile(torch.tensor([0.0, 1.0]))
    assert torch.isfinite(ends).all()
    assert 0 <= ends[0] < 0.1
    assert 0.9 < ends[1] <= 1


def test_the_shift_moves_towards_noise():
    probability = torch.linspace(0.05, 0.95, 19)
    assert (RectifiedFlow(shift=3.0).quantile(probability) > RectifiedFlow().quantile(probability)).all()
    assert RectifiedFlow("uniform", shift=3.0).quantile(torch.tensor(0.5)) == pytest.approx(0.75)  # 3 s / (1 + 2 s)


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
@pytest.mark.parametrize("flow", DISTRIBUTIONS[:3])
def test_strata_are_mid_quantiles_and_clips_together_cover_all_levels(flow, num_strata):
    keys = torch.arange(NUM_LEVELS)
    sigmas = stratum_sigmas(flow, keys, [60] * NUM_LEVELS, num_strata)
    assert sigmas.shape == (NUM_LEVELS, num_strata)
    assert (sigmas.diff(dim=1) > 0).all()
    probability = cdf(flow, sigmas.double().numpy())
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


def test_weights_against_their_sources():
    from diffusers.training_utils import compute_loss_weighting_for_sd3

    sigmas = torch.linspace(0.05, 0.95, 19)
    assert torch.equal(RectifiedFlow().weight(sigmas), torch.ones(19))
    cosmap = RectifiedFlow(weighting="cosmap")
    torch.testing.assert_close(cosmap.weight(sigmas), compute_loss_weighting_for_sd3("cosmap", sigmas))
    # Min-SNR weights the clean latents' error; with x = noisy - sigma * velocity that is sigma^2 times the velocity's.
    snr = ((1 - sigmas) / sigmas) ** 2
    min_snr = RectifiedFlow(weighting="min_snr", snr_gamma=3.0)
    torch.testing.assert_close(min_snr.weight(sigmas), snr.clamp(max=3.0) * sigmas**2)
    assert torch.equal(min_snr.unweighted().weight(sigmas), torch.ones(19))
