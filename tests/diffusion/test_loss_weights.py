"""Masks in the loss: pooled as latents are, and weights of a mean."""

import pytest
import torch

from tests.diffusion.test_loss import FLOW, Recorder, make_batch
from vidlit.diffusion.batch import LatentSample, collate
from vidlit.diffusion.loss import denoising_loss, paired_losses
from vidlit.diffusion.loss_weights import latent_mask, loss_weights
from vidlit.diffusion.streams import LATENTS


def test_a_mask_is_pooled_over_what_each_latent_position_covers():
    mask = torch.rand(2, 9, 8, 12)
    pooled = latent_mask(mask, (3, 2, 3), temporal=4)
    assert pooled.shape == (2, 1, 3, 2, 3)
    for frame, frames in enumerate((slice(0, 1), slice(1, 5), slice(5, 9))):
        for y in range(2):
            for x in range(3):
                covered = mask[:, frames, 4 * y : 4 * y + 4, 4 * x : 4 * x + 4]
                torch.testing.assert_close(pooled[:, 0, frame, y, x], covered.mean((1, 2, 3)))


def test_frames_of_padding_repeat_the_first():
    """As CogVideoX 1.5 fills up its patches in time."""
    mask = torch.rand(1, 9, 4, 4)
    padded, plain = (latent_mask(mask, (frames, 2, 2), temporal=4) for frames in (4, 3))
    torch.testing.assert_close(padded[:, :, 1:], plain)
    torch.testing.assert_close(padded[:, :, 0], plain[:, :, 0])


def test_an_image_has_one_frame():
    assert latent_mask(torch.ones(1, 1, 4, 4), (1, 2, 2), temporal=8).tolist() == [[[[[1, 1], [1, 1]]]]]


def masked_batch(unmasked_weight=0.1):
    batch = make_batch()
    mask = torch.zeros(3, 1, *batch.latents.shape[2:])
    mask[0, :, 1, 2, 3], mask[1, :, :, :2] = 1, 0.5
    return batch._replace(weights=loss_weights(mask, unmasked_weight))


@pytest.mark.parametrize("sigmas", [[0.1, 0.5, 0.9], [[0.0, 0.4], [0.7, 0.7], [0.0, 0.9]]])
def test_the_loss_is_a_weighted_mean_over_the_places_that_are_learned(sigmas):
    batch, sigmas = masked_batch(), torch.tensor(sigmas)
    noise = torch.randn(batch.latents.shape)
    losses = denoising_loss(Recorder(), FLOW, batch, noise, sigmas)
    noisy = FLOW.add_noise(batch.latents, noise, sigmas)
    errors = Recorder()(noisy, sigmas, batch.conditioning) - (noise - batch.latents)
    for row in range(3):
        total = count = 0.0
        for frame in range(batch.latents.shape[2]):
            if sigmas.dim() == 2 and sigmas[row, frame] == 0:
                continue
            weights = batch.weights[row, 0, frame]
            total += float((errors[row, :, frame].square().mean(0) * weights).sum())
            count += float(weights.sum())
        assert float(losses[row]) == pytest.approx(total / count, rel=1e-5)


def test_places_of_one_weight_are_the_plain_mean():
    batch = make_batch()
    noise, sigmas = torch.randn(batch.latents.shape), torch.tensor([0.1, 0.5, 0.9])
    plain = denoising_loss(Recorder(), FLOW, batch, noise, sigmas)
    alike = batch._replace(weights=torch.full((3, 1, *batch.latents.shape[2:]), 0.1))
    torch.testing.assert_close(denoising_loss(Recorder(), FLOW, alike, noise, sigmas), plain)


def test_paired_validation_is_weighted_too():
    batch = masked_batch(1e-6)
    inside = paired_losses(Recorder(), FLOW, batch, 0, 2)[LATENTS]
    changed = batch.latents.clone()
    changed[0, :, 0] += 7  # outside of the first clip's mask
    outside = paired_losses(Recorder(), FLOW, batch._replace(latents=changed), 0, 2)[LATENTS]
    torch.testing.assert_close(outside, inside, rtol=1e-2, atol=0)
    plain = paired_losses(Recorder(), FLOW, batch._replace(latents=changed, weights=None), 0, 2)[LATENTS]
    assert (plain[0] > 2 * inside[0]).all()


def test_clips_without_a_mask_count_everywhere():
    latents, prompt = torch.randn(4, 2, 3, 5), torch.randn(2, 6)
    mask = torch.rand(1, 2, 3, 5)
    batch = collate([LatentSample(latents, prompt, 0, 0, weights=mask), LatentSample(latents, prompt, 1, 1)])
    assert torch.equal(batch.weights, torch.stack([mask, torch.ones(1, 2, 3, 5)]))
    assert batch.to("cpu").weights is not None
    assert collate([LatentSample(latents, prompt, 0, 0)]).weights is None
