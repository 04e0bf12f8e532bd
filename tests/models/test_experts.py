"""Several transformers in one base, each for noise levels of its own; and transformers that cannot mask prompts.

The family is LTX-Video, told to be such a one: what is tested is the way through :class:`Family` and the module.
"""

import json
import shutil
from functools import partial

import diffusers
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from tests.models.batches import batch_of, whole_mask
from vidlit.__main__ import main
from vidlit.diffusion.batch import Conditioning
from vidlit.diffusion.loss import paired_losses
from vidlit.diffusion.streams import LATENTS
from vidlit.models.adapters import LoRA
from vidlit.models.families.ltx_video import LTXVideo
from vidlit.models.family import open_family
from vidlit.models.parts import Expert, rows_by_call
from vidlit.training.module import VideoDiffusionModule

BOUNDARY = 0.6


@pytest.fixture(scope="module")
def two_experts(demo, tmp_path_factory):
    """The demo's base with a second transformer, of other weights."""
    base = shutil.copytree(demo.dir / "base", tmp_path_factory.mktemp("experts") / "base")
    transformer = diffusers.LTXVideoTransformer3DModel.from_pretrained(base / "transformer")
    generator = torch.Generator().manual_seed(0)
    for parameter in transformer.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    transformer.save_pretrained(base / "transformer_2")
    return base


@pytest.fixture
def family(two_experts, monkeypatch):
    experts = Expert("transformer", BOUNDARY, "high"), Expert("transformer_2", title="low")
    monkeypatch.setattr(LTXVideo, "experts", experts)
    return open_family(two_experts)


def loaded(base, **options):
    module = VideoDiffusionModule(str(base), **options)
    module.configure_model()
    return module.eval()


@torch.no_grad()
def test_each_sample_goes_to_the_expert_of_its_noise_level(family):
    module = loaded(family.base)
    batch = batch_of(family, (5, 32, 32), ("A red disc.", "x", "A blue ring.", "y"))
    sigmas = torch.tensor([0.1, BOUNDARY, BOUNDARY - 1e-3, 1.0])
    made = module(batch.latents, sigmas, batch.conditioning)
    for row, name in enumerate(["transformer_2", "transformer", "transformer_2", "transformer"]):
        one = slice(row, row + 1)
        given = batch.latents[one], sigmas[one], batch.conditioning.of_rows([row])
        velocities = {each: family.velocity(module.transformers[each], *given) for each in module.transformers}
        torch.testing.assert_close(made[one], velocities[name], atol=1e-5, rtol=1e-4)
        assert (velocities["transformer"] - velocities["transformer_2"]).abs().mean() > 1e-3


def test_a_first_frame_without_noise_does_not_choose_the_expert(family):
    sigmas = torch.tensor([[0.0, 0.9], [0.0, 0.5]])
    prompts = Conditioning(torch.zeros(2, 3, 1), torch.ones(2, 3, dtype=torch.bool), {})
    calls = rows_by_call(family.experts, sigmas, prompts, None, by_length=False)
    assert {call.expert: rows for call, rows in calls.items()} == {"transformer": [0], "transformer_2": [1]}


@torch.no_grad()
def test_paired_losses_score_every_expert_at_its_own_levels(family):
    module = loaded(family.base)
    batch = batch_of(family, (5, 32, 32))
    asked = []
    for name, transformer in module.transformers.items():
        hook = lambda module, args, kwargs, name=name: asked.append((name, kwargs["timestep"]))  # noqa: E731
        transformer.register_forward_pre_hook(hook, with_kwargs=True)
    losses = module.validation_step(batch, 0)
    assert {name: each.shape for name, each in losses.items()} == {"high": (2, 2), "low": (2, 2)}
    for part in family.parts:
        noising = module.noising.between(*part.sigmas)
        alone = paired_losses(partial(module, expert=part.expert), noising, batch, seed=0, num_strata=2)[LATENTS]
        torch.testing.assert_close(losses[part.name], alone)
    assert {name for name, _ in asked} == {"transformer", "transformer_2"}
    for name, timesteps in asked:
        assert ((timesteps >= 1000 * BOUNDARY) == (name == "transformer")).all()


def test_gradients_reach_the_experts_of_a_batch_and_what_is_trained_is_of_both(family):
    module = loaded(family.base, adapter=LoRA(rank=2)).train()
    names = {name.split(".")[0] for name in module.trainable_state()}
    assert names == {"transformer", "transformer_2"}
    batch = batch_of(family, (5, 32, 32))
    module(batch.latents, torch.tensor([0.2, 0.9]), batch.conditioning).square().mean().backward()
    reached = {name.split(".")[0] for name, p in module.trainable_state().items() if p.grad is not None}
    assert reached == names


def test_the_fingerprint_is_of_all_experts(family, tmp_path):
    copy = shutil.copytree(family.base, tmp_path / "base")
    assert open_family(copy).transformer_fingerprint == family.transformer_fingerprint
    (copy / "transformer_2" / "config.json").write_text(json.dumps({"other": True}))
    assert open_family(copy).transformer_fingerprint != family.transformer_fingerprint


@pytest.mark.slow
@pytest.mark.parametrize("lora", [True, False])
def test_a_run_trains_saves_and_exports_both(family, quickstart, tmp_path, lora):
    options = {"model__adapter": "{rank: 2}"} if lora else {}
    # As they are in the end: of a few steps one may have gained nothing, and the base's would be put back.
    options |= {"overfit_stopping__restore": "last", "trainer__max_steps": 8, "trainer__val_check_interval": 4}
    words = quickstart(model__base=family.base, **options)
    assert main(words) == 0
    weights = tmp_path / "runs" / "quickstart" / "0" / "weights"
    if not lora:
        pipeline = diffusers.LTXPipeline.from_pretrained(weights)
        again = [pipeline.transformer, diffusers.LTXVideoTransformer3DModel.from_pretrained(weights / "transformer_2")]
        for name, transformer in zip(("transformer", "transformer_2"), again, strict=True):
            before = diffusers.LTXVideoTransformer3DModel.from_pretrained(family.base / name).state_dict()
            assert any(not torch.equal(value, before[key]) for key, value in transformer.state_dict().items())
        return
    files = [weights / f"pytorch_lora_weights{suffix}.safetensors" for suffix in ("_high", "_low")]
    first, second = (load_file(file) for file in files)
    assert first.keys() == second.keys()
    assert any(not torch.equal(first[name], second[name]) for name in first)
    assert (weights / "comfyui_lora_low.safetensors").is_file()
    for file, title in zip(files, ("high", "low"), strict=True):
        with safe_open(file, "pt") as opened:
            assert opened.metadata()["expert"] == title
    assert "load_into_transformer_2=True" in (weights / "README.md").read_text()


# -- prompts that cannot be masked


@pytest.fixture
def unmasked(demo, monkeypatch):
    """As if the transformer took no mask: padding is read like words."""
    velocity = LTXVideo.velocity

    def without_mask(self, transformer, noisy, sigmas, conditioning):
        everything = torch.ones_like(whole_mask(conditioning))
        return velocity(self, transformer, noisy, sigmas, conditioning._replace(prompt_attention_mask=everything))

    monkeypatch.setattr(LTXVideo, "velocity", without_mask)
    return open_family(demo.dir / "base")


@pytest.fixture
def asked(unmasked):
    """The batch of three prompts, two of one length, and of each alone."""
    batch = batch_of(unmasked, (5, 32, 32), ("A red disc.", "x", "A red ring."))
    encode, sigmas = unmasked.load_prompt_encoder("cpu"), torch.tensor([0.3, 0.6, 0.9])
    alone = [Conditioning.of([prompt]) for prompt in encode(["A red disc.", "x", "A red ring."])]
    return {"transformer": unmasked.load_transformer().eval()}, batch, sigmas, alone


@torch.no_grad()
def test_samples_whose_prompts_cannot_be_masked_go_by_length(unmasked, asked, monkeypatch):
    transformers, batch, sigmas, alone = asked
    expected = torch.cat(
        [
            unmasked.velocity(transformers["transformer"], batch.latents[[row]], sigmas[[row]], alone[row])
            for row in range(3)
        ]
    )
    padded = unmasked.predict(transformers, batch.latents, sigmas, batch.conditioning)
    assert (padded - expected)[1].abs().mean() > 1e-4  # padding changes the short prompt's sample
    monkeypatch.setattr(LTXVideo, "needs_equal_prompts", True)
    calls = []
    transformers["transformer"].register_forward_pre_hook(
        lambda module, args, kwargs: calls.append(tuple(kwargs["encoder_hidden_states"].shape[:2])), with_kwargs=True
    )
    made = unmasked.predict(transformers, batch.latents, sigmas, batch.conditioning)
    torch.testing.assert_close(made, expected, atol=1e-5, rtol=1e-4)
    assert calls == [(2, 12), (1, 2)]  # with the end token


@torch.no_grad()
def test_on_several_ranks_all_make_as_many_calls(unmasked, asked, monkeypatch):
    """Each call gathers sharded weights: a rank that makes one more would wait for the others for ever."""
    transformers, batch, sigmas, _ = asked
    monkeypatch.setattr(LTXVideo, "needs_equal_prompts", True)
    expected = unmasked.predict(transformers, batch.latents, sigmas, batch.conditioning)
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    calls = []
    transformers["transformer"].register_forward_pre_hook(lambda *_: calls.append(1))
    made = unmasked.predict(transformers, batch.latents, sigmas, batch.conditioning)
    torch.testing.assert_close(made, expected, atol=1e-5, rtol=1e-4)
    assert len(calls) == 3
