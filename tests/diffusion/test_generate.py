import itertools

import diffusers
import pytest
import torch

from vidlit.diffusion.batch import Conditioning
from vidlit.diffusion.generate import generate

SHAPE = (2, 3, 2, 4, 4)


def scheduler(num_steps):
    made = diffusers.FlowMatchEulerDiscreteScheduler()
    made.set_timesteps(num_steps)
    return made


def prompts(value, batch=2):
    return Conditioning(torch.full((batch, 3, 5), value), torch.ones(batch, 3, dtype=torch.bool), {})


@pytest.mark.parametrize("num_steps", [1, 7])
def test_the_true_velocity_leads_to_the_latents(num_steps):
    """On a straight path every Euler step is exact, whatever their number."""
    noise, latents = torch.randn(SHAPE), torch.randn(SHAPE)
    made = generate(lambda *_: noise - latents, scheduler(num_steps), noise, prompts(0.0))
    torch.testing.assert_close(made, latents, atol=1e-5, rtol=1e-5)


def test_the_walk_is_euler_from_sigma_one_to_zero():
    sigmas_asked = []

    def model(noisy, sigmas, conditioning):
        assert sigmas.shape == (2,)
        assert (sigmas == sigmas[0]).all()
        sigmas_asked.append(float(sigmas[0]))
        return noisy + conditioning.prompt_embeds.mean()

    made = generate(model, scheduler(5), noise := torch.randn(SHAPE), prompts(0.5))
    schedule = scheduler(5).sigmas.tolist()
    assert sigmas_asked == pytest.approx(schedule[:-1])
    assert sigmas_asked[0] == 1.0
    assert schedule[-1] == 0.0
    x = noise.clone()
    for now, after in itertools.pairwise(schedule):
        x = x + (after - now) * (x + 0.5)
    torch.testing.assert_close(made, x)
    assert len(sigmas_asked) == 5


class Halves:
    """A scheduler of its own kind, in this project's coordinates: what a family may wrap."""

    init_noise_sigma = 2.0
    timesteps = torch.tensor([900, 400])
    sigmas = torch.tensor([0.8, 0.4])

    def step(self, velocity, timestep, latents, *, return_dict):
        assert not return_dict
        return (latents + velocity * timestep, "what else a scheduler gives")


def test_any_scheduler_with_timesteps_sigmas_and_a_step_will_do():
    noise = torch.randn(SHAPE)
    made = generate(
        lambda noisy, sigmas, _: sigmas.view(-1, 1, 1, 1, 1).expand_as(noisy), Halves(), noise, prompts(0.0)
    )
    torch.testing.assert_close(made, 2 * noise + 900 * 0.8 + 400 * 0.4)


def test_guidance_is_the_extrapolation_from_the_null_prompt():
    def model(noisy, sigmas, conditioning):
        return noisy * 0.1 + conditioning.prompt_embeds.mean(dim=(1, 2)).view(-1, 1, 1, 1, 1)

    noise = torch.randn(SHAPE)
    null = prompts(0.2, batch=1)
    guided = generate(model, scheduler(4), noise, prompts(1.0), null_conditioning=null, guidance_scale=3.0)
    # v_null + 3 (v - v_null) of this model is the model at the extrapolated prompt
    torch.testing.assert_close(guided, generate(model, scheduler(4), noise, prompts(0.2 + 3 * 0.8)))
    unguided = generate(model, scheduler(4), noise, prompts(1.0), null_conditioning=null)
    assert torch.equal(unguided, generate(model, scheduler(4), noise, prompts(1.0)))


def test_guidance_without_a_null_prompt_is_refused():
    with pytest.raises(ValueError, match=r"guidance_scale 3\.0"):
        generate(lambda x, *_: x, scheduler(2), torch.randn(SHAPE), prompts(0.0), guidance_scale=3.0)


def test_no_gradients_are_kept():
    weight = torch.ones((), requires_grad=True)
    made = generate(lambda x, *_: x * weight, scheduler(2), torch.randn(SHAPE), prompts(0.0))
    assert not made.requires_grad
