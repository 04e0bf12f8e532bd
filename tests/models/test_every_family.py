"""What must hold in every family, whatever its conventions: a new one is one entry in ``bases.EVERY``."""

import json
import re

import diffusers
import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from tests.models import bases
from tests.models.batches import batch_of, random_frames
from tests.models.hunyuan_bases import few_glyphs
from vidlit.diffusion.batch import Conditioning, LatentBatch
from vidlit.diffusion.generate import generate
from vidlit.diffusion.loss import denoising_loss
from vidlit.models.adapters import LoRA
from vidlit.models.family import Family, open_family
from vidlit.models.registry import known_families
from vidlit.training.blocks.compiling import compile_blocks
from vidlit.training.blocks.recompute import is_attention, recompute_blocks
from vidlit.training.blocks.repeated import repeated_blocks
from vidlit.training.blocks.sharding import shard
from vidlit.training.flops import count_flops, flops_of_a_sample
from vidlit.training.module import VideoDiffusionModule
from vidlit.video.buckets import Bucket


@pytest.fixture(scope="module", params=bases.EVERY)
def family(request, tmp_path_factory):
    with few_glyphs():
        yield open_family(bases.EVERY[request.param](tmp_path_factory.mktemp(request.param) / "base"))


@pytest.fixture(scope="module")
def batch(family):
    shape = family.latent_shape(*bases.size_of(family))
    latents = torch.randn(2, *shape, generator=torch.Generator().manual_seed(3))
    return LatentBatch(latents, bases.conditioning_of(family), torch.arange(2), torch.arange(2))


@pytest.fixture(scope="module")
def encoded(family):
    """Clips of noise and captions as the latent store would hold them."""
    return batch_of(family, bases.size_of(family))


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
        velocity = family.velocity(transformer, batch.latents[one], sigmas[one], batch.conditioning.of_rows([row]))
        torch.testing.assert_close(velocity, together[one], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_prompts_of_different_lengths_in_a_batch_do_not_touch_each_other(family):
    """A sample's velocity is what it is without padding to the longest prompt of its batch."""
    transformers = {expert.name: family.load_transformer(expert=expert.name).eval() for expert in family.experts}
    generator = torch.Generator().manual_seed(5)
    noisy = torch.randn(3, *family.latent_shape(*bases.size_of(family)), generator=generator)
    sigmas = torch.tensor([0.3, 0.6, 0.9])
    captions = family.load_prompt_encoder("cpu")(["A red disc moves to the left.", "x", "A red disc."])
    clips = bases.conditioning_of(family).extras
    rows = [0, 1, 0]  # two clips, one of them with two captions
    captions = [
        {**caption, **{name: clips[name][row] for name in family.clip_extras}}
        for caption, row in zip(captions, rows, strict=True)
    ]
    together = family.predict(transformers, noisy, sigmas, Conditioning.of(captions, family.prompt_length))
    for row, caption in enumerate(captions):
        one = slice(row, row + 1)
        alone = family.predict(transformers, noisy[one], sigmas[one], Conditioning.of([caption], family.prompt_length))
        torch.testing.assert_close(together[one], alone, atol=1e-5, rtol=1e-4)


class Masks(TorchFunctionMode):
    """What reaches attention as ``attn_mask``."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.nn.functional.scaled_dot_product_attention:
            mask = args[3] if len(args) > 3 else (kwargs or {}).get("attn_mask")
            # Mochi's pooling of a prompt to one token always has a mask; it is one call a step, of one query.
            pools = isinstance(mask, torch.Tensor) and args[0].shape[2] == 1
            self.seen.append(None if pools else mask)
        return func(*args, **(kwargs or {}))


@torch.no_grad()
@pytest.mark.parametrize("prompts", [["A red disc."], ["A red disc.", "A red disc."]])
def test_attention_is_given_no_mask_where_no_prompt_is_padded(family, prompts):
    """A mask costs attention its fast kernels even where it leaves nothing out."""
    encoded, clips = family.load_prompt_encoder("cpu")(prompts), bases.conditioning_of(family).extras
    clips = {name: clips[name][: len(prompts)] for name in family.clip_extras}
    conditioning = Conditioning.of(encoded, family.prompt_length).with_extras(clips)
    assert conditioning.prompt_attention_mask is None or family.prompt_length
    noisy = torch.randn(len(prompts), *family.latent_shape(*bases.size_of(family)))
    sigmas = torch.tensor([0.3, 0.8])[: len(prompts)]
    name = family.experts[0].name
    with Masks() as masks:
        made = family.predict({name: family.load_transformer().eval()}, noisy, sigmas, conditioning)
    assert masks.seen
    assert all(mask is None for mask in masks.seen)

    plain = Family.load_transformer(family).eval()
    everything = torch.ones(conditioning.prompt_embeds.shape[:2], dtype=torch.bool)
    with_mask = conditioning._replace(prompt_attention_mask=everything)
    torch.testing.assert_close(family.velocity(plain, noisy, sigmas, with_mask), made, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_what_an_encoder_says_that_it_reads_is_what_it_reads(family):
    encoder, long = family.load_prompt_encoder("cpu"), "A red disc moves. " * 300
    captions = ["A red disc.", f"{long}It is blue.", f"{long}It is a large green one."]
    short, blue, green = encoder.read_tokens(captions)
    assert short.num_cut == 0
    assert 0 < blue.num_cut < green.num_cut
    assert blue.kept == green.kept != short.kept
    embeds = [prompt["prompt_embeds"] for prompt in encoder(captions)]
    torch.testing.assert_close(embeds[1], embeds[2])
    assert embeds[0].shape != embeds[1].shape or not torch.allclose(embeds[0], embeds[1])


def test_a_velocity_is_one_call_of_the_transformer_and_looks_at_no_value(family, batch):
    """On ``meta`` there are none; and a weight that is gathered twice a step would cost twice the traffic."""
    with torch.device("meta"):
        transformer = family.empty_transformer()
    calls = []
    transformer.register_forward_pre_hook(lambda *_: calls.append(1))
    noisy, sigmas = batch.latents.to("meta"), torch.empty(len(batch.latents), device="meta")
    velocities = []

    def loss():
        velocities.append(family.velocity(transformer, noisy, sigmas, batch.conditioning.to("meta")))
        return velocities[-1].float().square().mean()

    assert count_flops(loss) > 0
    assert velocities[0].shape == noisy.shape
    assert velocities[0].is_meta
    assert len(calls) == 1


@torch.no_grad()
def test_a_velocity_changes_nothing_that_it_is_given(family, batch):
    transformer, sigmas = family.load_transformer().eval(), torch.tensor([0.2, 0.9])
    mask = batch.conditioning.prompt_attention_mask
    given = [batch.latents, sigmas, batch.conditioning.prompt_embeds, *batch.conditioning.extras.values()]
    given += [] if mask is None else [mask]
    before = [each.clone() for each in given]
    family.velocity(transformer, batch.latents, sigmas, batch.conditioning)
    assert all(torch.equal(now, then) for now, then in zip(given, before, strict=True))


@torch.no_grad()
def test_sigmas_by_frame_are_taken_where_the_family_says_so(family, batch):
    if not family.takes_clean_frames:
        pytest.skip("takes one sigma a sample")
    transformer, sigmas = family.load_transformer().eval(), torch.tensor([0.2, 0.9])
    by_frame = sigmas[:, None].repeat(1, batch.latents.shape[2])
    plain = family.velocity(transformer, batch.latents, sigmas, batch.conditioning)
    alike = family.velocity(transformer, batch.latents, by_frame, batch.conditioning)
    torch.testing.assert_close(alike, plain, atol=1e-5, rtol=1e-4)
    made = [plain]
    for place in (0, -1):
        given = by_frame.clone()
        given[:, place] = 0
        made.append(family.velocity(transformer, batch.latents, given, batch.conditioning))
        assert made[-1].shape == plain.shape
        assert all((made[-1] - other).abs().mean() > 1e-5 for other in made[:-1])


@torch.no_grad()
def test_bfloat16_weights_give_nearly_the_same_velocities(family, batch):
    sigmas = torch.tensor([0.2, 0.9])
    full, half = (
        family.velocity(family.load_transformer(dtype).eval(), batch.latents, sigmas, batch.conditioning).float()
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert ((half - full).square().mean() / full.square().mean()).sqrt() < 0.05


@pytest.fixture
def mesh(tmp_path):
    """Of one process, as ``ModelParallelStrategy`` makes it."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield torch.distributed.init_device_mesh("cpu", (1, 1), mesh_dim_names=("data_parallel", "tensor_parallel"))
    torch.distributed.destroy_process_group()


@torch.no_grad()
def test_sharded_weights_in_mixed_precision_lose_no_more_than_whole_ones(family, batch, mesh):
    """Gathered in bfloat16, they must not take timesteps and rotary angles down with them."""
    sigmas = torch.tensor([0.7131, 0.9985])
    exact = family.velocity(family.load_transformer().eval(), batch.latents, sigmas, batch.conditioning)
    errors = []
    for sharded in (False, True):
        transformer = family.load_transformer().eval()
        if sharded:
            shard(transformer, mesh, "float32", low_precision=True)
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            velocity = family.velocity(transformer, batch.latents, sigmas, batch.conditioning)
        errors.append(((velocity - exact).square().mean() / exact.square().mean()).sqrt().item())
    assert errors[0] < 0.02
    assert errors[1] < 2 * errors[0]


class Operations(TorchDispatchMode):
    """Counts attention, forward and backward, and what blocks multiply, as the device is asked for them."""

    def __init__(self):
        super().__init__()
        self.forward, self.backward, self.products = 0, 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.backward += is_attention(func) and "backward" in str(func)
        self.forward += is_attention(func) and "backward" not in str(func)
        self.products += str(func).startswith(("aten.addmm", "aten.mm"))
        return func(*args, **(kwargs or {}))


def gradients_of(family, batch, share, backend=None):
    """Of all weights, and what a step asked for, with some of the blocks recomputed."""
    transformer = family.load_transformer().train()
    names = list(transformer.state_dict())
    recompute_blocks(transformer, share)
    if backend is not None:
        torch._dynamo.reset()
        compile_blocks(transformer, backend)
        loss_of(family, transformer, batch).mean().backward()  # compiles
        transformer.zero_grad()
    with Operations() as counted:
        loss_of(family, transformer, batch).mean().backward()
    assert list(transformer.state_dict()) == names
    return {name: p.grad for name, p in transformer.named_parameters() if p.grad is not None}, counted


@pytest.mark.parametrize("share", [True, 2, 0.5])
def test_recomputed_blocks_give_the_same_gradients_and_attention_is_never_recomputed(family, batch, share):
    expected, plain = gradients_of(family, batch, False)
    found, counted = gradients_of(family, batch, share)
    assert (counted.forward, counted.backward) == (plain.forward, plain.backward)
    assert plain.forward >= plain.backward >= len(repeated_blocks(family.empty_transformer()))
    assert counted.products > plain.products  # the rest is
    assert expected.keys() == found.keys() != set()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_compiled_blocks_are_recomputed_without_their_attention(family, batch):
    """Torch's own partitioner, which decides what a compiled block keeps."""
    expected, plain = gradients_of(family, batch, False)
    found, counted = gradients_of(family, batch, True, backend="aot_eager")
    assert (counted.forward, counted.backward) == (plain.forward, plain.backward)
    assert expected.keys() == found.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-4)


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


def test_the_base_says_which_family_it_is(family):
    index = json.loads((family.base / "model_index.json").read_text())
    assert family.transformer_class == index["transformer"][1]
    assert hasattr(diffusers, family.pipeline_class)
    assert family.prompt_recipe
    assert bool(family.clip_extras) <= bool(family.clip_recipe)


def test_latents_have_the_shape_that_buckets_are_planned_with(family, encoded):
    assert encoded.latents.shape[1:] == family.latent_shape(*bases.size_of(family))
    shapes = {stream.name: tuple(encoded.stream(stream.name).shape[1:]) for stream in family.streams}
    assert shapes == family.stream_shapes(*bases.size_of(family))
    Bucket(*bases.size_of(family)).check(family.frame_multiple, family.pixel_multiple)


def test_decoded_videos_have_the_size_of_the_encoded(family, encoded):
    video = family.decode_latents(family.load_vae("cpu"), encoded.latents)
    assert video.shape == (2, 3, *bases.size_of(family))
    assert video.isfinite().all()


@torch.no_grad()
def test_decoding_undoes_the_normalisation_of_encoding(family, encoded):
    """Encode, decode is the VAE's own round trip, whatever scale and shift lie between."""
    vae = family.load_vae("cpu")
    video = random_frames(bases.size_of(family)).permute(0, 4, 1, 2, 3).float() / 127.5 - 1
    raw = vae.encode(video).latent_dist.mode()
    own = encoded.latents[:, :, -raw.shape[2] :]  # without a family's padding in time
    assert (raw - own).abs().mean() > 1e-3  # it is normalised
    given = [torch.zeros(len(raw))] if vae.config.get("timestep_conditioning") else []
    direct = vae.decode(raw, *given, return_dict=False)[0]
    torch.testing.assert_close(family.decode_latents(vae, encoded.latents), direct, atol=1e-4, rtol=1e-3)


@torch.no_grad()
def test_the_posteriors_deviation_is_scaled_as_its_mode_is(family):
    assert not family.vae_is_deterministic
    video = random_frames(bases.size_of(family)).permute(0, 4, 1, 2, 3).float() / 127.5 - 1
    encoded = family.load_video_encoder("cpu", with_std=True)(video)
    assert set(encoded) == {"latents", "latents_std", *family.clip_extras}
    posterior = family.load_vae("cpu").encode(video).latent_dist
    own = slice(encoded["latents"].shape[2] - posterior.std.shape[2], None)  # without a family's padding in time
    mode, std = encoded["latents"][:, :, own], encoded["latents_std"][:, :, own]
    over = {"dim": (0, 2, 3, 4), "keepdim": True}
    scale = mode.std(**over) / posterior.mode().std(**over)
    assert posterior.std.min() > 0.1
    torch.testing.assert_close(std, posterior.std * scale, atol=0, rtol=1e-3)
    without = family.load_video_encoder("cpu")(video)
    assert "latents_std" not in without
    assert torch.equal(without["latents"], encoded["latents"])

    noise = torch.randn(encoded["latents"].shape, generator=torch.Generator().manual_seed(5))
    drawn = family.draw_latents(encoded["latents"], encoded["latents_std"], noise)
    torch.testing.assert_close(drawn[:, :, own], mode + std * noise[:, :, own])
    padding = drawn[:, :, : own.start]
    assert torch.equal(padding, drawn[:, :, own][:, :, :1].expand_as(padding))


@torch.no_grad()
def test_the_velocity_depends_on_all_it_is_given(family, encoded):
    """In training, where some of a clip's extras have their part."""

    def velocity(noisy, sigmas, conditioning):
        generators = [torch.Generator().manual_seed(row) for row in range(len(noisy))]
        return family.velocity(transformer, noisy, sigmas, family.augment_conditioning(conditioning, generators))

    transformer = family.load_transformer().eval()
    noisy, sigmas = torch.randn(encoded.latents.shape), torch.tensor([0.3, 0.6])
    before = velocity(noisy, sigmas, encoded.conditioning)
    assert before.shape == noisy.shape
    embeds, extras = encoded.conditioning.prompt_embeds, encoded.conditioning.extras
    others = {
        "noisy": (noisy.flip(0), sigmas, encoded.conditioning),
        "sigmas": (noisy, sigmas.flip(0), encoded.conditioning),
        "prompt_embeds": (noisy, sigmas, encoded.conditioning._replace(prompt_embeds=embeds.flip(0))),
    }
    for name in extras:
        flipped = {**extras, name: extras[name].flip(0)}
        others[name] = (noisy, sigmas, encoded.conditioning._replace(extras=flipped))
    for name, given in others.items():
        assert (velocity(*given) - before).abs().mean() > 1e-5, name


@pytest.mark.parametrize("num_steps", [2, 5])
def test_sampling_with_the_true_velocity_gives_the_latents(family, encoded, num_steps):
    """The sampler undoes what training's noising did: path, sign and schedule are one mathematics."""
    noise = torch.randn(encoded.latents.shape, generator=torch.Generator().manual_seed(1))
    scheduler = family.load_scheduler(num_steps, noise[0, 0].numel())

    def velocity(noisy, sigmas, conditioning):
        """Towards the latents from wherever the sampler is: some add noise on their way."""
        return (noisy - encoded.latents) / sigmas.view(-1, 1, 1, 1, 1)

    latents = generate(velocity, scheduler, noise, encoded.conditioning)
    # Published samplers round their timesteps to whole ones: a thousandth of the way.
    torch.testing.assert_close(latents, encoded.latents, atol=1e-2, rtol=0)


def test_the_default_noising_draws_levels_that_the_model_takes_and_can_be_learned_from(family, encoded):
    noising = family.noising().at(encoded.latents[0, 0].numel())
    sigmas = noising.sample_sigmas(1000, torch.Generator().manual_seed(0))
    assert sigmas.min() > 0
    assert sigmas.max() <= 1
    transformer = family.load_transformer().train()
    noise = torch.randn(encoded.latents.shape)
    loss = denoising_loss(
        lambda *inputs: family.velocity(transformer, *inputs), noising, encoded, noise, sigmas[:2]
    ).mean()
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in transformer.named_parameters()}
    idle = {name for name in gradients if re.fullmatch(family.idle, name)}
    assert bool(idle) == bool(family.idle)
    assert {name for name, gradient in gradients.items() if gradient is None} <= idle
    assert not [name for name in idle if gradients[name] is not None and gradients[name].any()]


def test_blocks_are_found_and_operations_counted_without_weights(family, batch):
    """What compiling, sharding, recomputing and ``perf/mfu`` go by; attention grows with the square of the tokens."""
    transformer = family.load_transformer()
    blocks = repeated_blocks(transformer)
    inside = sum(parameter.numel() for block in blocks for parameter in block.parameters())
    assert len(blocks) > 1
    fixed = "context_embedder_2."  # of HunyuanVideo 1.5, which is 2048 wide in the tiniest model
    others = (parameter for name, parameter in transformer.named_parameters() if not name.startswith(fixed))
    assert inside > 0.2 * sum(parameter.numel() for parameter in others)
    module = VideoDiffusionModule(str(family.base))
    weights = sum(p.numel() for p in transformer.parameters() if p.dim() > 1)
    tokens = batch.latents[0, 0].numel()
    assert 0 < flops_of_a_sample(module.family, module.structure(), batch) < 3 * 2 * weights * (tokens + 600) * 2
    assert module.transformer is None
