import diffusers
import numpy as np
import pytest
import torch
from scipy import stats

from vidlit.diffusion.rectified_flow import RectifiedFlow, ResolutionShift
from vidlit.errors import UserError

DISTRIBUTIONS = [
    RectifiedFlow(),
    RectifiedFlow(mean=-0.7, std=1.6),
    RectifiedFlow("uniform"),
    RectifiedFlow(shift=3.0),
    RectifiedFlow("uniform", shift=5.0, min_sigma=0.1, max_sigma=0.8),
    RectifiedFlow(shift=12.0, min_sigma=0.875),
    RectifiedFlow(shift=5.0, max_sigma=0.9, uniform_share=0.2),
]
LTX2 = RectifiedFlow(shift=ResolutionShift(0.95, 2.05, 1024, 4096), stretch=(0.005, 0.999), uniform_share=0.1)


def whole_cdf(flow, sigma):
    """The distribution function before it is cut off, from its definition: undo the shift, then scipy."""
    unshifted = sigma / (flow.shift - (flow.shift - 1) * sigma)
    drawn = unshifted
    if flow.distribution == "logit_normal":
        drawn = stats.norm(flow.mean, flow.std).cdf(np.log(unshifted / (1 - unshifted)))
    return flow.uniform_share * sigma + (1 - flow.uniform_share) * drawn


def cdf(flow, sigma):
    """The distribution function: what lies between the bounds, as a share of all that does."""
    with np.errstate(divide="ignore"):
        low, high, below = (whole_cdf(flow, np.asarray(each)) for each in (flow.min_sigma, flow.max_sigma, sigma))
    return (below - low) / (high - low)


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


def test_bounds_cut_the_distribution_off_as_drawing_again_would():
    """Rejection is what other trainers do; squeezing all draws between the bounds would be another distribution."""
    whole = RectifiedFlow(shift=5.0)
    draws = whole.sample_sigmas(400_000, torch.Generator().manual_seed(1))
    probability = torch.tensor([0.05, 0.5, 0.95])
    for low, high in ((0.0, 0.875), (0.875, 1.0)):
        kept = draws[(draws >= low) & (draws < high)]
        torch.testing.assert_close(
            whole.between(low, high).quantile(probability), kept.quantile(probability), atol=2e-3, rtol=0
        )
        share = whole.share_below(torch.tensor([low, high])).diff()
        assert float(share) == pytest.approx(len(kept) / len(draws), abs=2e-3)


def test_between_narrows_what_is_cut_off_already():
    flow = RectifiedFlow(min_sigma=0.2, max_sigma=0.9)
    assert flow.between(0.0, 0.5) == RectifiedFlow(min_sigma=0.2, max_sigma=0.5)
    assert flow.between(0.5, 1.0) == RectifiedFlow(min_sigma=0.5, max_sigma=0.9)


def official_draws(num_tokens, num_draws):
    """Sigmas as the trainer of LTX-2 draws them, written down from its description."""
    generator = torch.Generator().manual_seed(0)
    normal = torch.distributions.Normal(0.95 + (2.05 - 0.95) * (num_tokens - 1024) / (4096 - 1024), 1.0)
    drawn = torch.sigmoid(normal.mean + torch.randn(num_draws, generator=generator))
    first, last = torch.sigmoid(normal.icdf(torch.tensor([0.005, 0.999])))
    stretched = (drawn - first) / (last - first)
    stretched = torch.where(stretched < 1e-3, 2e-3 - stretched, stretched).clamp(max=1.0)
    uniform = torch.rand(num_draws, generator=generator)
    return torch.where(torch.rand(num_draws, generator=generator) < 0.1, uniform, stretched)


@pytest.mark.parametrize("num_tokens", [1024, 6144, 12240])
def test_stretch_and_uniform_share_are_those_of_the_trainer_of_ltx2(num_tokens):
    probability = torch.tensor([0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99])
    expected = official_draws(num_tokens, 400_000).quantile(probability)
    torch.testing.assert_close(LTX2.at(num_tokens).quantile(probability), expected, atol=3e-3, rtol=0)


def test_a_mixture_is_inverted_and_rises():
    flow = LTX2.at(6144)
    probability = torch.linspace(0.001, 0.999, 999, dtype=torch.float64)
    sigmas = flow.quantile(probability)
    assert (sigmas.diff() > 0).all()
    torch.testing.assert_close(flow.share_below(sigmas), probability, atol=1e-9, rtol=0)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"min_sigma": 0.5, "max_sigma": 0.4}, "min_sigma 0.5"),
        ({"max_sigma": 1.5}, "max_sigma 1.5"),
        ({"stretch": (0.9, 0.1)}, "stretch"),
        ({"uniform_share": 1.5}, "uniform_share"),
    ],
)
def test_options_out_of_range_are_refused_by_name(options, named):
    with pytest.raises(UserError, match=named):
        RectifiedFlow(**options)


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
