"""CogVideoX against diffusers' own pipelines and schedulers, in all its kinds."""

import json
import math
import shutil

import diffusers
import pytest
import torch

from tests.models.bases import cogvideox
from vidlit.data.datamodule import LatentDataModule
from vidlit.diffusion.batch import Conditioning, LatentBatch
from vidlit.diffusion.generate import generate
from vidlit.diffusion.loss import denoising_loss
from vidlit.diffusion.noising import RectifiedFlow, keyed_generator
from vidlit.errors import UserError
from vidlit.models.codec import PointDistribution
from vidlit.models.families.cogvideox import digest
from vidlit.models.family import open_family

NUM_FRAMES, HEIGHT, WIDTH = 9, 32, 48
KINDS = ["2b", "5b", "5b-i2v", "1.5", "1.5-i2v"]
CAPTIONS = ["A red disc.", "A medium striped grey and black ring moves in a circle before a blue background.", "x"]


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    root = tmp_path_factory.mktemp("cogvideox")
    return {kind: cogvideox(root / kind, kind) for kind in KINDS}


@pytest.fixture
def base(bases, tmp_path):
    """One that a test may change."""
    return shutil.copytree(bases["5b"], tmp_path / "base")


def pipeline_of(base):
    pipeline = diffusers.DiffusionPipeline.from_pretrained(base)
    pipeline.set_progress_bar_config(disable=True)
    encode = pipeline.vae.encode
    # The pipeline samples the latents of a first frame, ours are the mode.
    made = diffusers.models.modeling_outputs.AutoencoderKLOutput
    pipeline.vae.encode = lambda video: made(PointDistribution(encode(video).latent_dist.mode()))
    return pipeline


def shape_of(family):
    return family.latent_shape(NUM_FRAMES, HEIGHT, WIDTH)


def batch_of(family, num=3):
    generator = torch.Generator().manual_seed(1)
    shape = shape_of(family)
    extras = {name: torch.randn(num, shape[0], 1, *shape[2:], generator=generator) for name in family.clip_extras}
    conditioning = Conditioning(
        torch.randn(num, 226, 64, generator=generator), torch.ones(num, 226, dtype=torch.bool), extras
    )
    return LatentBatch(
        torch.randn(num, *shape, generator=generator), conditioning, torch.arange(num), torch.arange(num)
    )


def transformer_input(conditioning, x_t):
    """Noisy latents (B, F, C, H, W) with the first frame's beside them, where there are such."""
    image = conditioning.extras.get("image_latents")
    if image is None:
        return x_t
    padded = torch.zeros_like(x_t)
    padded[:, 0] = image[:, :, 0]
    return torch.cat([x_t, padded], dim=2)


@pytest.mark.parametrize("kind", ["2b", "5b"])
def test_noise_levels_are_the_schedules_own(bases, kind):
    """At each of its timesteps the scheduler's noisy latents are ours, scaled; and training draws each as often."""
    family = open_family(bases[kind])
    scheduler = pipeline_of(bases[kind]).scheduler
    noising = family.noising()
    timesteps = torch.arange(1000)
    sigmas = noising.quantile((timesteps + 0.5) / 1000)
    assert sigmas[-1] == 1.0
    assert (sigmas.diff() > 0).all()
    assert torch.equal(family.timesteps(sigmas), timesteps.float())
    latents, noise = torch.randn(2, 1000, 1, 2, 1, 2)
    scale = ((1 - sigmas) ** 2 + sigmas**2).sqrt().view(-1, 1, 1, 1, 1)
    ours = noising.add_noise(latents, noise, sigmas) / scale
    torch.testing.assert_close(ours, scheduler.add_noise(latents, noise, timesteps), atol=1e-5, rtol=1e-5)
    drawn = family.timesteps(noising.sample_sigmas(50_000, torch.Generator().manual_seed(0)))
    assert torch.equal(drawn, drawn.round())
    assert torch.bincount(drawn.long(), minlength=1000).float().std() < 2 * 50**0.5  # of a uniform draw: sqrt(50)


def test_sigmas_between_timesteps_are_asked_for_in_between(bases):
    """As a user's own distribution of sigmas has them."""
    family = open_family(bases["5b"])
    levels = torch.tensor(family.noising().levels)
    between = (levels[500] + levels[501]) / 2
    asked = family.timesteps(torch.stack([between, torch.tensor(0.0), torch.tensor(1.0)]))
    torch.testing.assert_close(asked, torch.tensor([500.5, 0.0, 999.0]), atol=1e-2, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_the_pipelines_transformer_on_the_schedulers_v(bases, kind):
    family = open_family(bases[kind])
    pipeline = pipeline_of(bases[kind])
    transformer, scheduler = pipeline.transformer.eval(), pipeline.scheduler
    batch = batch_of(family)
    noise = torch.randn(batch.latents.shape, generator=torch.Generator().manual_seed(2))
    timesteps = torch.tensor([3, 480, 999])
    sigmas = torch.tensor(family.noising().levels)[timesteps]
    frames = batch.latents.shape[2]
    expected = []
    for row in range(3):
        one = slice(row, row + 1)
        latents, eps = (part[one].transpose(1, 2) for part in (batch.latents, noise))
        x_t = scheduler.add_noise(latents, eps, timesteps[one])
        conditioning = Conditioning(*(part[one] for part in batch.conditioning[:2]), {})
        extras = {name: value[one] for name, value in batch.conditioning.extras.items()}
        rotary = pipeline._prepare_rotary_positional_embeddings(HEIGHT, WIDTH, frames, torch.device("cpu"))
        v = transformer(
            hidden_states=transformer_input(conditioning._replace(extras=extras), x_t),
            encoder_hidden_states=conditioning.prompt_embeds,
            timestep=timesteps[one],
            ofs=torch.full((1,), 2.0) if kind == "1.5-i2v" else None,
            image_rotary_emb=None if kind == "2b" else rotary,
            return_dict=False,
        )[0]
        expected.append((v - scheduler.get_velocity(latents, eps, timesteps[one])).square().mean())

    def model(*inputs):
        return family.velocity(transformer, *inputs)

    losses = denoising_loss(model, family.noising(), batch, noise, sigmas)
    torch.testing.assert_close(losses, torch.stack(expected), atol=1e-5, rtol=1e-4)


class Oracle(torch.nn.Module):
    """Predicts the true v of known latents and noise."""

    def __init__(self, scheduler, latents, noise):
        super().__init__()
        self.scheduler, self.latents, self.noise = scheduler, latents.transpose(1, 2), noise.transpose(1, 2)
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, *, timestep, **_):
        return (self.scheduler.get_velocity(self.latents, self.noise, timestep.long()),)


@torch.no_grad()
def test_a_true_prediction_gives_the_latents_back_in_one_step(bases):
    family = open_family(bases["5b"])
    batch = batch_of(family)
    noise = torch.randn_like(batch.latents)
    sigmas = torch.tensor(family.noising().levels)[torch.tensor([10, 500, 999])]
    noisy = family.noising().add_noise(batch.latents, noise, sigmas)
    oracle = Oracle(pipeline_of(bases["5b"]).scheduler, batch.latents, noise)
    velocity = family.velocity(oracle, noisy, sigmas, batch.conditioning)
    torch.testing.assert_close(velocity, noise - batch.latents, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(noisy - sigmas.view(-1, 1, 1, 1, 1) * velocity, batch.latents, atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("what", ["sigma", "prompt", "position", "image"])
def test_velocity_depends_on_everything_it_is_given(bases, what):
    family = open_family(bases["5b-i2v"])
    transformer = family.load_transformer().eval()
    batch = batch_of(family)
    sigmas, conditioning = torch.full((3,), 0.5), batch.conditioning
    before = family.velocity(transformer, batch.latents, sigmas, conditioning)
    noisy, undo = batch.latents, lambda velocity: velocity
    if what == "sigma":
        sigmas = sigmas * 0.5
    elif what == "prompt":
        conditioning = conditioning._replace(prompt_embeds=conditioning.prompt_embeds.flip(0))
    elif what == "image":
        conditioning = conditioning._replace(extras={"image_latents": conditioning.extras["image_latents"].flip(0)})
    else:
        noisy, undo = noisy.flip(2), lambda velocity: velocity.flip(2)
    after = undo(family.velocity(transformer, noisy, sigmas, conditioning))
    assert (after - before).abs().mean() > 1e-4


@torch.no_grad()
@pytest.mark.parametrize("kind", ["5b-i2v", "1.5-i2v"])
def test_clips_are_encoded_and_decoded_as_the_pipeline_does(bases, kind):
    family = open_family(bases[kind])
    pipeline = pipeline_of(bases[kind])
    video = torch.rand(2, 3, NUM_FRAMES, HEIGHT, WIDTH) * 2 - 1
    encoded = family.load_video_encoder("cpu")(video)
    latents = encoded["latents"]
    assert latents.shape[1:] == shape_of(family)
    raw = pipeline.vae.encode(video).latent_dist.mode()
    padding = latents.shape[2] - raw.shape[2]
    assert padding == (1 if kind.startswith("1.5") else 0)
    torch.testing.assert_close(latents[:, :, padding:], 0.7 * raw, atol=1e-6, rtol=1e-6)
    assert torch.equal(latents[:, :, 0], latents[:, :, padding])  # padded with the first frame
    expected = pipeline.decode_latents(latents.transpose(1, 2)[:, padding:])
    assert expected.shape == video.shape
    torch.testing.assert_close(family.decode_latents(pipeline.vae, latents), expected, atol=1e-5, rtol=1e-5)

    _, image_latents = pipeline.prepare_latents(
        video[:, :, 0], 2, 16, NUM_FRAMES + 4 * padding, HEIGHT, WIDTH, torch.float32, torch.device("cpu"), None
    )
    ours = transformer_input(Conditioning(None, None, encoded), torch.zeros_like(latents.transpose(1, 2)))[:, :, 16:]
    torch.testing.assert_close(ours, image_latents, atol=1e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["5b-i2v", "1.5-i2v"])
def test_first_frames_are_noised_as_the_official_script_noises_them(bases, kind):
    """Gaussian noise on the pixels, its deviation exp(N(-3, .5)), then the VAE; here on a line through one draw."""
    family = open_family(bases[kind])
    encoder = family.load_video_encoder("cpu")
    video = torch.rand(2, 3, NUM_FRAMES, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(1)) * 2 - 1
    encoded = encoder(video)
    assert torch.equal(encoded["noised_image_latents"], encoder(video)["noised_image_latents"])

    frame = video[:, :, :1]
    noise = torch.stack(
        [torch.randn(3, 1, HEIGHT, WIDTH, generator=keyed_generator("first frame", digest(row))) for row in frame]
    )
    assert (noise[0] - noise[1]).abs().mean() > 0.5
    factor = 1 / 0.7 if kind.startswith("1.5") else 0.7
    for level in (0.4, 0.6, 1.0, 1.6):  # most of exp(.5 N(0, 1))
        official = encoder.vae.encode(frame + math.exp(-3) * level * noise).latent_dist.mode() * factor
        clean, noised = encoded["image_latents"], encoded["noised_image_latents"]
        straight = clean + level * (noised - clean)
        error = (straight - official).norm() / (official - clean).norm()
        assert error < (1e-4 if level == 1 else 0.15), (level, error)


def test_first_frames_are_noised_and_dropped_in_training_alone(bases):
    family = open_family(bases["5b-i2v"])
    num = 4000
    extras = {
        "image_latents": torch.full((num, 1, 1, 1, 1), 3.0),
        "noised_image_latents": torch.full((num, 1, 1, 1, 1), 4.0),
    }
    given = Conditioning(torch.zeros(num, 1, 4), torch.ones(num, 1, dtype=torch.bool), extras)
    made = family.augment_conditioning(given, [keyed_generator("a test", row) for row in range(num)])
    image = made.extras["image_latents"].flatten()
    dropped = image == 0
    assert dropped.float().mean() == pytest.approx(0.05, abs=0.01)
    level = image[~dropped] - 3
    assert level.log().mean() == pytest.approx(0, abs=0.03)
    assert level.log().std() == pytest.approx(0.5, abs=0.03)
    assert torch.equal(given.extras["image_latents"], extras["image_latents"])
    part = given.of_rows(range(10, 20))
    alone = family.augment_conditioning(part, [keyed_generator("a test", row) for row in range(10, 20)])
    assert torch.equal(alone.extras["image_latents"], made.extras["image_latents"][10:20])
    text = open_family(bases["5b"])
    assert text.augment_conditioning(given, []) is given


def test_prompts_are_those_of_the_pipeline_padding_and_all(bases):
    family = open_family(bases["2b"])
    expected, _ = pipeline_of(bases["2b"]).encode_prompt(CAPTIONS, do_classifier_free_guidance=False, device="cpu")
    made = Conditioning.of(family.load_prompt_encoder("cpu")(CAPTIONS), family.prompt_length)
    assert made.prompt_attention_mask is None
    torch.testing.assert_close(made.prompt_embeds, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("kind", "scale"), [("2b", 3.0), ("5b", 3.0), *((kind, 1.0) for kind in KINDS)])
def test_generate_against_a_run_of_the_pipeline(bases, kind, scale):
    """DDIM for the 2B model; DPM, which draws noise on its way, for the others."""
    family = open_family(bases[kind])
    pipeline = pipeline_of(bases[kind])
    batch = batch_of(family, num=2)
    conditioning = batch.conditioning
    null = conditioning._replace(prompt_embeds=torch.randn(2, 226, 64, generator=torch.Generator().manual_seed(3)))
    given = {}
    if family.clip_extras:
        frame = torch.rand(2, 3, HEIGHT, WIDTH)
        given["image"] = frame
        image = family.load_video_encoder("cpu")((frame * 2 - 1).unsqueeze(2))["image_latents"]
        conditioning = conditioning._replace(extras={"image_latents": image})
    noise = torch.randn(batch.latents.shape, generator=torch.Generator().manual_seed(4))
    expected = pipeline(
        prompt_embeds=conditioning.prompt_embeds,
        negative_prompt_embeds=null.prompt_embeds,
        latents=noise.transpose(1, 2),
        generator=[keyed_generator("dpm", digest(row)) for row in noise],
        num_frames=NUM_FRAMES,
        height=HEIGHT,
        width=WIDTH,
        num_inference_steps=4,
        guidance_scale=scale,
        output_type="latent",
        **given,
    ).frames.transpose(1, 2)

    def model(*inputs):
        return family.velocity(pipeline.transformer, *inputs)

    made = generate(model, family.load_scheduler(4, 18), noise, conditioning, null, scale)
    assert (made - noise).abs().mean() > 0.1
    torch.testing.assert_close(made, expected, atol=1e-4, rtol=1e-3)


def test_a_schedule_that_starts_below_pure_noise_is_followed_too(base):
    """Without zero terminal SNR the pipeline still starts from plain noise."""
    config = json.loads((base / "scheduler/scheduler_config.json").read_text())
    diffusers.CogVideoXDDIMScheduler.from_config({**config, "rescale_betas_zero_snr": False}).save_pretrained(
        base / "scheduler"
    )
    index = json.loads((base / "model_index.json").read_text())
    index["scheduler"] = ["diffusers", "CogVideoXDDIMScheduler"]
    (base / "model_index.json").write_text(json.dumps(index))
    family, pipeline = open_family(base), pipeline_of(base)
    batch = batch_of(family, num=1)
    expected = pipeline(
        prompt_embeds=batch.conditioning.prompt_embeds,
        latents=batch.latents.transpose(1, 2),
        num_frames=NUM_FRAMES,
        height=HEIGHT,
        width=WIDTH,
        num_inference_steps=3,
        guidance_scale=1.0,
        output_type="latent",
    ).frames.transpose(1, 2)

    def model(*inputs):
        return family.velocity(pipeline.transformer, *inputs)

    scheduler = family.load_scheduler(3, 18)
    assert scheduler.sigmas[0] < 1
    torch.testing.assert_close(
        generate(model, scheduler, batch.latents, batch.conditioning), expected, atol=1e-4, rtol=1e-3
    )


def test_the_frame_rate_is_that_of_the_version(bases):
    assert open_family(bases["5b"]).fps == 8
    assert open_family(bases["1.5"]).fps == 16
    assert open_family(bases["1.5"], 30).fps == 30


def test_sizes_that_cannot_come_back_are_refused(bases):
    """An even number of latent frames is decoded to another length than it was encoded from."""
    family = open_family(bases["5b"])
    vae = family.load_vae("cpu")
    assert family.compression == (4, 8)
    assert family.frame_multiple == 8
    assert family.pixel_multiple == 16
    assert family.decode_latents(vae, torch.zeros(1, 16, 3, 4, 6)).shape[2] == 9
    assert family.decode_latents(vae, torch.zeros(1, 16, 2, 4, 6)).shape[2] != 5
    assert open_family(bases["5b-i2v"]).latent_shape(9, 32, 48) == (16, 3, 4, 6)
    for size in ((9, 64, 48), (17, 32, 48)):
        with pytest.raises(UserError, match="9x32x48"):
            open_family(bases["5b-i2v"]).latent_shape(*size)


@pytest.mark.parametrize(
    ("kind", "bucket", "said"), [("5b", "13x32x48", "8k \\+ 1"), ("5b-i2v", "17x32x48", "9x32x48")]
)
def test_such_sizes_are_refused_before_anything_is_encoded(bases, demo, tmp_path, kind, bucket, said):
    with pytest.raises(UserError, match=said):
        LatentDataModule(source=demo.dir / "clips", base=bases[kind], store=tmp_path, buckets=[bucket])


def test_schedulers_of_another_kind_are_refused(base):
    path = base / "scheduler/scheduler_config.json"
    config = json.loads(path.read_text())
    for change, said in [({"prediction_type": "epsilon"}, "epsilon"), ({"_class_name": "DDIMScheduler"}, "DDIMSch")]:
        path.write_text(json.dumps(config | change))
        with pytest.raises(UserError, match=said):
            open_family(base).noising()
    path.write_text(json.dumps(config))
    assert isinstance(open_family(base).noising(), RectifiedFlow)
