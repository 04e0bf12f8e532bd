"""Wan against diffusers' own pipelines: the reference for every convention."""

import json

import diffusers
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.models import bases
from tests.models.batches import batch_of, random_frames
from vidlit.__main__ import main
from vidlit.diffusion.batch import Conditioning
from vidlit.diffusion.conditions import GivenFrames
from vidlit.diffusion.generate import generate
from vidlit.diffusion.loss import denoising_loss
from vidlit.diffusion.rectified_flow import RectifiedFlow
from vidlit.errors import UserError
from vidlit.models.adapters import LoRA, LoRAFile, lora_files, of_experts
from vidlit.models.encoders import BaseEncoders
from vidlit.models.family import open_family
from vidlit.models.parts import rows_by_call
from vidlit.training.module import VideoDiffusionModule

KINDS = {"wan": bases.wan, "wan_image_to_video": bases.wan_image_to_video, "wan_5b": bases.wan_5b}
NUM_FRAMES, HEIGHT, WIDTH = 9, 32, 64
SIZE = NUM_FRAMES, HEIGHT, WIDTH
CAPTIONS = ["A red disc.", "  A medium &amp; striped   ring moves in a circle\n before a blue background. ", "x"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {kind: write(tmp_path_factory.mktemp(kind) / "base") for kind, write in KINDS.items()}


@pytest.fixture(scope="module")
def families(folders):
    return {kind: open_family(folder) for kind, folder in folders.items()}


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def family(families, kind):
    return families[kind]


def pipeline_of(folder, pipeline_class="WanPipeline"):
    pipeline = getattr(diffusers, pipeline_class).from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def model_of(family):
    transformer = family.load_transformer().eval()
    return lambda *inputs: family.velocity(transformer, *inputs)


def first_frame_image(row):
    return Image.fromarray(random_frames(SIZE)[row, 0].numpy())


def test_each_base_is_told_apart_by_its_configs(families):
    told = {
        kind: (family.fps, family.pipeline_class, family.clip_extras, family.takes_clean_frames)
        for kind, family in families.items()
    }
    assert told == {
        "wan": (16.0, "WanPipeline", (), False),
        "wan_image_to_video": (16.0, "WanImageToVideoPipeline", ("image_latents", "image_embeds"), False),
        "wan_5b": (24.0, "WanPipeline", (), True),
    }


def test_sizes_are_those_of_the_vae(family):
    vae = family.load_vae("cpu")
    latents = vae.encode(torch.zeros(1, 3, NUM_FRAMES, HEIGHT, WIDTH)).latent_dist.mode()
    assert tuple(latents.shape[1:]) == family.latent_shape(NUM_FRAMES, HEIGHT, WIDTH)
    assert family.pixel_multiple == 2 * vae.config.scale_factor_spatial


@torch.no_grad()
def test_prompts_are_those_of_the_pipeline(folders, families):
    """Cleaned, encoded with a mask, zero where it is False, always 512 long."""
    encode = families["wan"].load_prompt_encoder("cpu")
    expected, _ = pipeline_of(folders["wan"]).encode_prompt(
        CAPTIONS, do_classifier_free_guidance=False, device="cpu", max_sequence_length=512
    )
    made = Conditioning.of(encode(CAPTIONS), families["wan"].prompt_length)
    assert made.prompt_embeds.shape == (3, 512, bases.DIM)
    torch.testing.assert_close(made.prompt_embeds, expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_latents_and_videos_are_normalised_as_the_pipeline_does_it(folders, families, kind):
    """What our encoder makes of a video, the pipeline's decoder takes; and ours gives the same pictures."""
    family = families[kind]
    vae = family.load_vae("cpu")
    video = random_frames(SIZE).permute(0, 4, 1, 2, 3).float() / 127.5 - 1
    latents = family.encode_video(vae, video)
    mean, std = (
        torch.tensor(value).view(1, -1, 1, 1, 1) for value in (vae.config.latents_mean, vae.config.latents_std)
    )
    raw = vae.encode(video).latent_dist.mode()
    torch.testing.assert_close(latents, (raw - mean) / std)
    assert (mean.abs().max(), std.max()) == (0.5, 2)  # or the line above would prove nothing
    torch.testing.assert_close(family.decode_latents(vae, latents), vae.decode(raw).sample, atol=1e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["wan_image_to_video", "wan_5b"], indirect=True)
def test_the_first_frame_is_encoded_as_the_pipeline_does_it(folders, family, kind):
    encoded = BaseEncoders(family).encode_video(random_frames(SIZE))
    pipeline = pipeline_of(folders[kind], "WanImageToVideoPipeline")
    for row in range(2):
        image = pipeline.video_processor.preprocess(first_frame_image(row), height=HEIGHT, width=WIDTH)
        prepared = pipeline.prepare_latents(image, 1, family.latent_channels, HEIGHT, WIDTH, NUM_FRAMES, torch.float32)
        if kind == "wan_5b":  # a causal VAE: the first latent frame knows the first frame alone
            torch.testing.assert_close(encoded["latents"][row, :, :1], prepared[1][0], atol=1e-4, rtol=1e-4)
            continue
        torch.testing.assert_close(encoded["image_latents"][row], prepared[1][0, 4:], atol=1e-4, rtol=1e-4)
        embeds = pipeline.encode_image(first_frame_image(row))
        torch.testing.assert_close(encoded["image_embeds"][row], embeds[0], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_loss_against_the_schedulers_own_noise_and_a_call_of_the_transformer(family, kind):
    """Timestep scale, sign, target and channels, written out from the pipelines and FlowMatchEulerDiscreteScheduler."""
    batch, transformer = batch_of(family, SIZE), family.load_transformer().eval()
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    timesteps = scheduler.timesteps[[200, 700]]
    noise = torch.randn(batch.latents.shape)
    noisy = scheduler.scale_noise(batch.latents, timesteps, noise)
    hidden, given = noisy, timesteps
    if kind == "wan_image_to_video":
        mask = torch.zeros(2, 4, *noisy.shape[2:])
        mask[:, :, 0] = 1
        hidden = torch.cat([noisy, mask, batch.conditioning.extras["image_latents"]], dim=1)
    if kind == "wan_5b":
        given = timesteps[:, None].expand(2, batch.latents[0, 0].numel() // 4)
    output = transformer(
        hidden_states=hidden,
        timestep=given,
        encoder_hidden_states=batch.conditioning.prompt_embeds,
        encoder_hidden_states_image=batch.conditioning.extras.get("image_embeds"),
    ).sample
    expected = (output - (noise - batch.latents)).square().flatten(1).mean(1)
    losses = denoising_loss(
        lambda *inputs: family.velocity(transformer, *inputs), RectifiedFlow(), batch, noise, timesteps / 1000
    )
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("scheduler", ["unipc", "euler"])
def test_one_step_from_a_known_velocity_gives_the_latents(families, folders, tmp_path, scheduler):
    """The sampler undoes what training's noising did, whatever scheduler the base names."""
    made = {"unipc": bases.wan_scheduler(), "euler": diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)}[scheduler]
    family = open_family(bases.wan(tmp_path, scheduler=made))
    latents, noise = torch.randn(2, 2, 16, 3, 4, 8).unbind()
    nothing = Conditioning(torch.zeros(2, 1, 1), torch.ones(2, 1, dtype=torch.bool), {})
    made = generate(lambda *_: noise - latents, family.load_scheduler(1, 96), noise, nothing)
    torch.testing.assert_close(made, latents, atol=1e-4, rtol=1e-4)


def test_the_default_noising_is_shifted_as_the_sampler(families, tmp_path):
    assert families["wan"].noising() == RectifiedFlow(shift=3.0)
    assert families["wan_5b"].noising() == RectifiedFlow(shift=5.0)
    euler = open_family(bases.wan(tmp_path, scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=8.0)))
    assert euler.noising() == RectifiedFlow(shift=8.0)


@pytest.mark.parametrize(("kind", "guidance"), [("wan", 1.0), ("wan", 4.0), ("wan_5b", 1.0)], indirect=["kind"])
def test_generate_against_a_run_of_the_pipeline(folders, family, kind, guidance):
    pipeline = pipeline_of(folders[kind])
    assert isinstance(pipeline.scheduler, diffusers.UniPCMultistepScheduler)
    encode = family.load_prompt_encoder("cpu")
    noise = torch.randn(2, *family.latent_shape(NUM_FRAMES, HEIGHT, WIDTH))
    expected = pipeline(
        CAPTIONS[:2],
        negative_prompt="",
        height=HEIGHT,
        width=WIDTH,
        num_frames=NUM_FRAMES,
        num_inference_steps=4,
        guidance_scale=guidance,
        latents=noise,
        output_type="latent",
    ).frames
    made = generate(
        model_of(family),
        family.load_scheduler(4, noise[0, 0].numel()),
        noise,
        Conditioning.of(encode(CAPTIONS[:2]), family.prompt_length),
        Conditioning.of(encode([""]), family.prompt_length),
        guidance,
    )
    assert (made - noise).abs().mean() > 0.05
    torch.testing.assert_close(made, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("kind", ["wan_image_to_video", "wan_5b"], indirect=True)
def test_generate_from_a_frame_against_a_run_of_the_pipeline(folders, family, kind, guidance):
    """From pixels: the pipeline gets the picture, ours what the latent store holds of the clip."""
    pipeline = pipeline_of(folders[kind], "WanImageToVideoPipeline")
    noise = torch.randn(1, *family.latent_shape(NUM_FRAMES, HEIGHT, WIDTH))
    batch = batch_of(family, SIZE, CAPTIONS[:1])
    null = Conditioning.of(family.load_prompt_encoder("cpu")([""]), family.prompt_length)
    expected = pipeline(
        first_frame_image(0),
        prompt_embeds=batch.conditioning.prompt_embeds,  # this pipeline cannot clean a prompt without ftfy
        negative_prompt_embeds=null.prompt_embeds,
        height=HEIGHT,
        width=WIDTH,
        num_frames=NUM_FRAMES,
        num_inference_steps=4,
        guidance_scale=guidance,
        latents=noise,
        output_type="latent",
    ).frames
    first = torch.arange(noise.shape[2])[None] == 0
    made = generate(
        model_of(family),
        family.load_scheduler(4, noise[0, 0].numel()),
        noise,
        batch.conditioning,
        null,
        guidance,
        GivenFrames(batch.latents, first) if family.takes_clean_frames else None,
    )
    assert (made - noise).abs().mean() > 0.05
    torch.testing.assert_close(made, expected, atol=1e-4, rtol=1e-4)


def edited(folder, file, **changes):
    config = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(config | changes))
    return folder


# -- Wan 2.2 A14B, a pair


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return bases.wan_pair(tmp_path_factory.mktemp("pair") / "base", boundary=0.8)


def model_of_pair(family):
    transformers = {expert.name: family.load_transformer(expert=expert.name).eval() for expert in family.experts}
    return lambda *inputs: family.predict(transformers, *inputs)


def test_a_pair_has_a_part_for_high_and_one_for_low_noise(pair, tmp_path):
    assert [(part.name, part.expert, part.sigmas) for part in open_family(pair).parts] == [
        ("high", "transformer", (0.8, 1.0)),
        ("low", "transformer_2", (0.0, 0.8)),
    ]
    from_image = open_family(bases.wan_pair_image_to_video(tmp_path / "base"))
    assert from_image.clip_extras == ("image_latents",)
    assert [part.sigmas for part in from_image.parts] == [(0.9, 1.0), (0.0, 0.9)]


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_a_pair_generates_as_its_pipeline_does(pair, guidance):
    """The boundary is a sigma after the shift: each of the schedule's steps asks the expert that the pipeline asks."""
    family, pipeline = open_family(pair), pipeline_of(pair)
    encode = family.load_prompt_encoder("cpu")
    noise = torch.randn(2, *family.latent_shape(NUM_FRAMES, HEIGHT, WIDTH))
    sizes = {"height": HEIGHT, "width": WIDTH, "num_frames": NUM_FRAMES, "num_inference_steps": 5}
    given = {"negative_prompt": "", "guidance_scale": guidance, "latents": noise, "output_type": "latent"}
    expected = pipeline(CAPTIONS[:2], **sizes, **given).frames
    scheduler = family.load_scheduler(5, noise[0, 0].numel())
    assert (scheduler.sigmas >= 0.8).sum() in (2, 3)  # both are asked
    prompts, null = (Conditioning.of(encode(each), family.prompt_length) for each in (CAPTIONS[:2], [""]))
    made = generate(model_of_pair(family), scheduler, noise, prompts, null, guidance)
    torch.testing.assert_close(made, expected, atol=1e-4, rtol=1e-4)
    one_alone = lambda *inputs: family.velocity(family.load_transformer().eval(), *inputs)  # noqa: E731
    alone = generate(one_alone, family.load_scheduler(5, noise[0, 0].numel()), noise, prompts, null, guidance)
    assert (alone - expected).abs().max() > 1e-2


def test_a_pair_generates_from_a_frame_as_its_pipeline_does(tmp_path):
    base = bases.wan_pair_image_to_video(tmp_path / "base")
    family, pipeline = open_family(base), pipeline_of(base, "WanImageToVideoPipeline")
    noise = torch.randn(1, *family.latent_shape(NUM_FRAMES, HEIGHT, WIDTH))
    batch = batch_of(family, SIZE, CAPTIONS[:1])
    embeds = batch.conditioning.prompt_embeds  # this pipeline cannot clean a prompt without ftfy
    sizes = {"height": HEIGHT, "width": WIDTH, "num_frames": NUM_FRAMES, "num_inference_steps": 5}
    given = {"prompt_embeds": embeds, "guidance_scale": 1.0, "latents": noise, "output_type": "latent"}
    expected = pipeline(first_frame_image(0), **sizes, **given).frames
    scheduler = family.load_scheduler(5, noise[0, 0].numel())
    made = generate(model_of_pair(family), scheduler, noise, batch.conditioning)
    torch.testing.assert_close(made, expected, atol=1e-4, rtol=1e-4)


def test_a_step_at_the_boundary_asks_the_expert_that_the_pipeline_asks(tmp_path):
    """Timestep 900 is among the twenty at shift 3, and in float32 it is a sigma a little below the boundary of .9."""
    base = bases.wan_pair_image_to_video(tmp_path / "base")
    family = open_family(edited(base, "scheduler/scheduler_config.json", flow_shift=3.0))
    scheduler = family.load_scheduler(20, 1)
    boundary = pipeline_of(base, "WanImageToVideoPipeline").config.boundary_ratio
    assert 900 in scheduler.timesteps
    by_pipeline = ["transformer" if t >= boundary * 1000 else "transformer_2" for t in scheduler.timesteps]
    prompts = Conditioning(torch.zeros(20, 1, 1), torch.ones(20, 1, dtype=torch.bool), {})
    calls = rows_by_call(family.experts, scheduler.sigmas, prompts, None, by_length=False)
    asked = {row: call.expert for call, rows in calls.items() for row in rows}
    assert [asked[row] for row in range(20)] == by_pipeline


def test_each_expert_of_a_pair_is_trained_on_its_side_of_the_boundary(pair):
    modules = {choice: VideoDiffusionModule(str(pair), expert=choice) for choice in ("high", "low", "both")}
    whole = open_family(pair).noising()
    assert modules["high"].noising == whole.between(0.8, 1.0)
    assert modules["low"].noising == whole.between(0.0, 0.8)
    assert modules["both"].noising == whole
    assert [list(module.expert_names) for module in modules.values()] == [
        ["transformer"],
        ["transformer_2"],
        ["transformer", "transformer_2"],
    ]


def test_one_transformer_has_no_expert_to_choose(folders):
    with pytest.raises(UserError, match=r"model\.expert is high.*one transformer"):
        VideoDiffusionModule(str(folders["wan"]), expert="high")


@pytest.fixture(scope="module")
def lora_of_pair(pair, tmp_path_factory):
    """A folder with the file of each expert, neither of which is without effect."""
    module = VideoDiffusionModule(str(pair), adapter=LoRA(rank=2))
    module.configure_model()
    generator = torch.Generator().manual_seed(5)
    for parameter in module.trainable_state().values():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    folder = tmp_path_factory.mktemp("weights")
    module.export(folder)
    return folder


def test_both_files_of_a_pair_load_into_its_pipeline(pair, lora_of_pair):
    """The second needs a word of its own, or it goes into the first transformer without complaint."""
    module = VideoDiffusionModule(str(pair))
    module.adapter = of_experts(module.family, lora_files(lora_of_pair))
    module.configure_model()
    pipeline = pipeline_of(pair)
    high, low = ({"weight_name": f"pytorch_lora_weights_{each}.safetensors"} for each in ("high", "low"))
    pipeline.load_lora_weights(lora_of_pair, **high, adapter_name="high")
    pipeline.load_lora_weights(lora_of_pair, **low, adapter_name="low", load_into_transformer_2=True)
    family, batch = module.family, batch_of(module.family, SIZE)
    noisy, sigmas = torch.randn(batch.latents.shape), torch.tensor([0.3, 0.9])
    loaded = {"transformer": pipeline.transformer.eval(), "transformer_2": pipeline.transformer_2.eval()}
    with torch.no_grad():
        made = family.predict(loaded, noisy, sigmas, batch.conditioning)
        expected = module.eval()(noisy, sigmas, batch.conditioning)
    torch.testing.assert_close(made, expected, atol=1e-5, rtol=1e-4)


def adapted(pair, expert, *places):
    """Which transformers of the pair have a LoRA when files are sampled with."""
    module = VideoDiffusionModule(str(pair), expert=expert)
    chosen = module.expert_names[0] if expert != "both" else None
    module.adapter = of_experts(module.family, lora_files(*places), chosen)
    module.configure_model()
    return [name for name, each in module.experts.items() if getattr(each, "peft_config", None)]


def test_a_lora_file_of_one_expert_is_put_into_that_one(pair, lora_of_pair, tmp_path):
    """Also where that one is not the expert that the config trains: samples ask both."""
    file = lora_of_pair / "pytorch_lora_weights_low.safetensors"
    for expert in ("both", "low", "high"):
        assert adapted(pair, expert, file) == ["transformer_2"]
        assert adapted(pair, expert, lora_of_pair) == ["transformer", "transformer_2"]
    save_file(load_file(file), nameless := tmp_path / "nameless.safetensors")
    with pytest.raises(UserError, match=r"does not say which expert.*model\.expert"):
        adapted(pair, "both", nameless)
    assert adapted(pair, "low", nameless) == ["transformer_2"]


def test_two_files_of_one_transformer_are_refused(pair, lora_of_pair, folders, tmp_path):
    low = [LoRAFile(lora_of_pair / "pytorch_lora_weights_low.safetensors")] * 2
    with pytest.raises(UserError, match="are both for the expert low"):
        of_experts(open_family(pair), low)
    with pytest.raises(UserError, match="which has one transformer: name the file of one"):
        of_experts(open_family(folders["wan"]), lora_files(lora_of_pair))


def test_a_pairs_lora_is_sampled_from_its_folder(pair, lora_of_pair, tmp_path):
    """With the files of both, and their hashes beside the video."""
    words = ["predict", "--model.base", str(pair), "--prompts", "A red disc", "--size", "5x32x32"]
    words += ["--samples.num_steps", "4", "--trainer.accelerator", "cpu", "--trainer.logger", "false"]
    words += ["--data.source", str(tmp_path), "--data.store", str(tmp_path / "store"), "--data.buckets", "[5x32x32]"]
    made = {}
    for name, lora in {"both": lora_of_pair, "base": None}.items():
        given = ["--lora", str(lora)] if lora else []
        assert main([*words, "--output", str(tmp_path / name), *given]) == 0
        made[name] = json.loads((tmp_path / name / "00_a_red_disc.json").read_text())
    files = [lora_of_pair / f"pytorch_lora_weights_{title}.safetensors" for title in ("high", "low")]
    assert made["both"]["weights"] == f"{files[0]}, {files[1]}"
    assert made["both"]["weights_hash"].count("sha256:") == 2
    videos = [(tmp_path / name / "00_a_red_disc.mp4").read_bytes() for name in made]
    assert videos[0] != videos[1]


def test_bases_that_are_not_trained_are_refused(tmp_path):
    two = edited(bases.wan(tmp_path / "two"), "model_index.json", transformer_2=["diffusers", "WanTransformer3DModel"])
    with pytest.raises(UserError, match=r"two experts.*boundary_ratio in model_index\.json is None"):
        open_family(two)
    last = edited(bases.wan_image_to_video(tmp_path / "last"), "transformer/config.json", pos_embed_seq_len=514)
    with pytest.raises(UserError, match="first and a last frame"):
        open_family(last)


def test_half_precision_keeps_what_must_be_single(folders, families):
    """The first parameter is one of those kept in float32: the input's dtype must not follow it."""
    family = families["wan"]
    transformer = family.load_transformer(torch.bfloat16).eval()
    assert transformer.scale_shift_table.dtype == torch.float32
    batch = batch_of(family, SIZE)
    velocity = family.velocity(transformer, torch.randn(batch.latents.shape), torch.full((2,), 0.5), batch.conditioning)
    assert velocity.dtype == torch.bfloat16
