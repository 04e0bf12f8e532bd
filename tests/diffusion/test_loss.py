import math

import pytest
import torch

from vidlit.diffusion.batch import LatentSample, collate
from vidlit.diffusion.conditions import Condition
from vidlit.diffusion.loss import denoising_loss, paired_losses
from vidlit.diffusion.noising import stratum_noise, stratum_sigmas
from vidlit.diffusion.rectified_flow import RectifiedFlow, ResolutionShift
from vidlit.diffusion.streams import LATENTS

FLOW = RectifiedFlow()


def make_batch(num_clips=3, shape=(4, 2, 3, 5)):
    generator = torch.Generator().manual_seed(num_clips)
    samples = [
        LatentSample(
            torch.randn(shape, generator=generator), torch.randn(2 + row, 6, generator=generator), row, 1000 + row
        )
        for row in range(num_clips)
    ]
    return collate(samples)


class Recorder:
    """Predicts a fixed function of its input, and remembers what it was asked."""

    def __init__(self):
        self.calls = []

    def __call__(self, noisy, sigmas, conditioning):
        self.calls.append((noisy, sigmas, conditioning))
        return 0.3 * noisy + sigmas.view(len(noisy), 1, -1, 1, 1)


def test_loss_against_a_loop_over_every_element():
    batch, model = make_batch(), Recorder()
    noise, sigmas = torch.randn(batch.latents.shape), torch.tensor([0.1, 0.5, 0.9])
    losses = denoising_loss(model, FLOW, batch, noise, sigmas)
    assert losses.shape == (3,)
    for row in range(3):
        total, count = 0.0, 0
        for x, e in zip(batch.latents[row].flatten().tolist(), noise[row].flatten().tolist(), strict=True):
            sigma = float(sigmas[row])
            noisy = (1 - sigma) * x + sigma * e
            total += (0.3 * noisy + sigma - (e - x)) ** 2
            count += 1
        assert float(losses[row]) == pytest.approx(total / count, rel=1e-5)


def test_a_perfect_model_has_no_loss():
    batch = make_batch()
    noise, sigmas = torch.randn(batch.latents.shape), torch.tensor([0.2, 0.5, 0.8])
    losses = denoising_loss(lambda *_: noise - batch.latents, FLOW, batch, noise, sigmas)
    assert torch.equal(losses, torch.zeros(3))


def test_a_frame_without_noise_is_given_clean_and_not_scored():
    """As an image-to-video model is trained: the first latent frame is the condition."""
    batch, model = make_batch(), Recorder()
    noise, sigmas = torch.randn(batch.latents.shape), torch.tensor([[0.0, 0.4], [0.7, 0.7], [0.0, 0.9]])
    losses = denoising_loss(model, FLOW, batch, noise, sigmas)
    noisy = model.calls[0][0]
    assert torch.equal(noisy[::2, :, 0], batch.latents[::2, :, 0])
    for row, scored in enumerate((slice(1, 2), slice(0, 2), slice(1, 2))):
        one = batch._replace(latents=batch.latents[row : row + 1, :, scored])
        alone = denoising_loss(model, FLOW, one, noise[row : row + 1, :, scored], sigmas[row : row + 1, -1])
        torch.testing.assert_close(losses[row], alone[0])


def test_one_noise_level_is_the_same_as_all_frames_at_it():
    batch = make_batch()
    noise, sigmas = torch.randn(batch.latents.shape), torch.tensor([0.1, 0.5, 0.9])
    by_frame = denoising_loss(Recorder(), FLOW, batch, noise, sigmas[:, None].expand(-1, 2))
    torch.testing.assert_close(by_frame, denoising_loss(Recorder(), FLOW, batch, noise, sigmas))


class Weighted(RectifiedFlow):
    def weight(self, sigmas):
        return 1 + sigmas


def test_the_weight_of_a_noise_level_multiplies_its_loss():
    batch = make_batch()
    noise, sigmas = torch.randn(batch.latents.shape), torch.tensor([0.1, 0.5, 0.9])
    weighted = denoising_loss(Recorder(), Weighted(), batch, noise, sigmas)
    torch.testing.assert_close(weighted, denoising_loss(Recorder(), FLOW, batch, noise, sigmas) * (1 + sigmas))


def test_paired_losses_are_at_the_sigmas_of_the_videos_size():
    flow = RectifiedFlow(shift=ResolutionShift(0.5, 1.5, base_tokens=10, max_tokens=50))
    batch, model = make_batch(), Recorder()
    paired_losses(model, flow, batch, seed=0, num_strata=2)[LATENTS]
    halfway = RectifiedFlow(shift=math.exp(1.0))  # the videos have 30 latent positions
    expected = stratum_sigmas(halfway, batch.keys, [30] * 3, 2)
    torch.testing.assert_close(torch.stack([call[1] for call in model.calls], dim=1), expected)


def test_the_model_gets_the_batchs_prompts_and_sigmas():
    batch, model = make_batch(), Recorder()
    sigmas = torch.tensor([0.2, 0.5, 0.8])
    denoising_loss(model, FLOW, batch, torch.randn(batch.latents.shape), sigmas)
    (_, asked, conditioning) = model.calls[0]
    assert torch.equal(asked, sigmas)
    assert conditioning is batch.conditioning


def test_half_precision_is_scored_in_single():
    batch = make_batch()._replace(latents=make_batch().latents.bfloat16())
    noise, sigmas = torch.randn(batch.latents.shape), torch.full((3,), 0.5)
    model = Recorder()
    losses = denoising_loss(lambda *a: model(*a).bfloat16(), FLOW, batch, noise, sigmas)
    assert losses.dtype == torch.float32
    assert model.calls[0][0].dtype == torch.float32


def test_paired_losses_against_single_evaluations():
    batch = make_batch()
    losses = paired_losses(Recorder(), FLOW, batch, seed=3, num_strata=4)[LATENTS]
    sigmas = stratum_sigmas(FLOW, batch.keys, [30] * 3, 4)
    assert losses.shape == (3, 4)
    for row in range(3):
        one = batch._replace(latents=batch.latents[row : row + 1], keys=batch.keys[row : row + 1])
        for stratum in range(4):
            noise = stratum_noise(3, one.keys, stratum, tuple(one.latents.shape[1:]))
            expected = denoising_loss(Recorder(), FLOW, one, noise, sigmas[row : row + 1, stratum])
            torch.testing.assert_close(losses[row, stratum], expected[0], rtol=1e-6, atol=0)


def test_paired_losses_repeat_and_change_with_the_seed():
    batch = make_batch()
    first = paired_losses(Recorder(), FLOW, batch, seed=0, num_strata=4)[LATENTS]
    torch.randn(5)  # another state of the global generator
    assert torch.equal(first, paired_losses(Recorder(), FLOW, batch, seed=0, num_strata=4)[LATENTS])
    assert not torch.equal(first, paired_losses(Recorder(), FLOW, batch, seed=1, num_strata=4)[LATENTS])


def test_pairing_is_what_makes_small_changes_visible():
    """The difference between two nearly equal models: hundreds of times less variance than with fresh draws."""
    batch = make_batch(num_clips=8, shape=(8, 2, 4, 4))

    def model_of(gain):
        return lambda noisy, sigmas, *_: (0.5 + gain) * noisy

    def score(gain, seed):
        return paired_losses(model_of(gain), FLOW, batch, seed, num_strata=4)[LATENTS].mean()

    paired = torch.stack([score(0.01, seed) - score(0.0, seed) for seed in range(30)])
    fresh = torch.stack([score(0.01, seed) - score(0.0, 1000 + seed) for seed in range(30)])
    assert fresh.var() > 100 * paired.var()


def test_a_share_of_the_evaluations_is_given_the_first_frame_always_the_same():
    batch = make_batch(num_clips=40, shape=(1, 3, 2, 2))
    calls = []
    for _ in range(2):
        model = Recorder()
        paired_losses(model, FLOW, batch, seed=0, num_strata=4, conditions=[Condition(share=0.3)])[LATENTS]
        calls.append(torch.stack([sigmas for _, sigmas, _ in model.calls], dim=1))
    assert torch.equal(*calls)
    given = calls[0][:, :, 0] == 0
    assert 0.2 < given.float().mean() < 0.4
    assert len({tuple(row) for row in given.tolist()}) > 4  # by stratum as well as by clip
    scored = stratum_sigmas(FLOW, batch.keys, [30] * len(batch.keys), 4)
    torch.testing.assert_close(calls[0][:, :, 1:], scored[..., None].expand(-1, -1, 2))
    alone = Recorder()
    one = batch._replace(latents=batch.latents[7:8], keys=batch.keys[7:8])
    paired_losses(alone, FLOW, one, seed=0, num_strata=4, conditions=[Condition(share=0.3)])[LATENTS]
    assert torch.equal(torch.stack([sigmas for _, sigmas, _ in alone.calls], dim=1), calls[0][7:8])


def test_a_clip_of_one_latent_frame_is_never_given_it():
    """There would be nothing left to score."""
    batch = make_batch(shape=(4, 1, 3, 5))
    given = paired_losses(Recorder(), FLOW, batch, seed=0, num_strata=4, conditions=[Condition()])[LATENTS]
    torch.testing.assert_close(given, paired_losses(Recorder(), FLOW, batch, seed=0, num_strata=4)[LATENTS])


def test_training_is_weighted_by_noise_level_and_validation_is_not():
    """So that curves of runs with other weights can be compared."""
    batch = make_batch()
    weighted = RectifiedFlow(weighting="cosmap")
    noise, sigmas = torch.randn(batch.latents.shape), torch.tensor([0.2, 0.5, 0.8])
    plain = denoising_loss(Recorder(), FLOW, batch, noise, sigmas)
    torch.testing.assert_close(
        denoising_loss(Recorder(), weighted, batch, noise, sigmas), plain * weighted.weight(sigmas)
    )
    scored = [paired_losses(Recorder(), flow, batch, seed=0, num_strata=2)[LATENTS] for flow in (FLOW, weighted)]
    assert torch.equal(*scored)
