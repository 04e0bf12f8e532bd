"""Tiny bases of every family: whole diffusers folders with random weights, written by the pipelines themselves.

One function a family. What they leave out of the real models is size alone: the same classes, config keys and files.
"""

import torch
import transformers

from tests.models.hunyuan_bases import hunyuan_video, hunyuan_video15, kandinsky5
from tests.models.tiny_parts import DIM, gemma, save, seeded, t5, umt5
from vidlit.diffusion.batch import Conditioning


def tiny(folder, family, sizes, **parts):
    """A base of a family, in the family's own pipeline.

    Args:
        folder: to write to.
        family: its class.
        sizes: of the transformer, small ones; what they leave out is as in the real model.
        parts: the pipeline's others.
    """
    import diffusers

    transformer = seeded(getattr(diffusers, family.transformer_class), **sizes)
    return save(getattr(diffusers, family.pipeline_class)(transformer=transformer, **parts), folder)


def ltx_video(folder, **scheduler):
    """LTX-Video 0.9; ``scheduler`` as in its config. VAE: 4 frames and 16 pixels a latent (the real one 8 and 32)."""
    from diffusers import AutoencoderKLLTXVideo, LTXPipeline

    vae = seeded(
        AutoencoderKLLTXVideo,
        latent_channels=16,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
        spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False),
        patch_size=4,
        spatial_compression_ratio=16,
        temporal_compression_ratio=4,
    )
    return save(ltx_pipeline(LTXPipeline, vae, **scheduler), folder)


def ltx_pipeline(pipeline_class, vae, **scheduler):
    """A pipeline of LTX-Video with one of its VAEs."""
    from diffusers import FlowMatchEulerDiscreteScheduler, LTXVideoTransformer3DModel

    vae.latents_mean.copy_(torch.linspace(-0.5, 0.5, 16))
    vae.latents_std.copy_(torch.linspace(0.5, 2, 16))
    transformer = seeded(
        LTXVideoTransformer3DModel,
        in_channels=16,
        out_channels=16,
        num_attention_heads=2,
        attention_head_dim=16,
        cross_attention_dim=32,
        num_layers=2,
        caption_channels=DIM,
    )
    scheduler = FlowMatchEulerDiscreteScheduler(**scheduler)
    return pipeline_class(scheduler=scheduler, vae=vae, **t5(), transformer=transformer)


def ltx_video_095(folder, pipeline="LTXConditionPipeline"):
    """LTX-Video 0.9.7, or 0.9.5 in the ``LTXPipeline`` that its folder names. Sizes as those of ``ltx_video``."""
    import diffusers

    vae = seeded(
        diffusers.AutoencoderKLLTXVideo,
        latent_channels=16,
        block_out_channels=(8, 8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8),
        down_block_types=("LTXVideo095DownBlock3D",) * 4,
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1),
        spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False),
        decoder_inject_noise=(False, False, False, False),
        downsample_type=("spatiotemporal",) * 4,
        upsample_residual=(True, True, False),
        upsample_factor=(1, 1, 1),
        timestep_conditioning=True,
        patch_size=4,
        spatial_compression_ratio=16,
        temporal_compression_ratio=4,
    )
    return save(ltx_pipeline(getattr(diffusers, pipeline), vae), folder)


def wan_vae(z_dim=16, **kwargs):
    """Wan 2.1's VAE: 4 frames and 8 pixels a latent."""
    from diffusers import AutoencoderKLWan

    sizes = {"base_dim": 4, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1}
    statistics = {
        "latents_mean": torch.linspace(-0.5, 0.5, z_dim).tolist(),
        "latents_std": torch.linspace(0.5, 2, z_dim).tolist(),
    }
    return seeded(AutoencoderKLWan, z_dim=z_dim, **sizes | statistics | kwargs)


def wan_transformer(channels=16, **kwargs):
    """Of any Wan."""
    from diffusers import WanTransformer3DModel

    sizes = {"num_attention_heads": 2, "attention_head_dim": 12, "ffn_dim": 48, "num_layers": 2, "freq_dim": 32}
    channels = {"in_channels": channels, "out_channels": channels}
    return seeded(WanTransformer3DModel, patch_size=(1, 2, 2), text_dim=DIM, **channels | sizes | kwargs)


def wan_scheduler(flow_shift=3.0):
    """UniPC as the published folders state it."""
    from diffusers import UniPCMultistepScheduler

    return UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=flow_shift)


def wan(folder, **parts):
    """Wan 2.1 text-to-video; ``parts`` replace those of the pipeline."""
    from diffusers import WanPipeline

    given = {"vae": wan_vae(), "scheduler": wan_scheduler(), "transformer": wan_transformer(), **umt5()}
    return save(WanPipeline(**given | parts), folder)


def wan_image_to_video(folder):
    """Wan 2.1 image-to-video: 16 channels of noise, 4 of mask, 16 of the first frame's latents, CLIP tokens beside."""
    from diffusers import WanImageToVideoPipeline

    vision = transformers.CLIPVisionConfig(
        hidden_size=24, intermediate_size=48, num_hidden_layers=3, num_attention_heads=2, image_size=28, patch_size=14
    )
    size = {"height": 28, "width": 28}
    pipeline = WanImageToVideoPipeline(
        vae=wan_vae(),
        scheduler=wan_scheduler(),
        transformer=wan_transformer(in_channels=36, image_dim=24, added_kv_proj_dim=24),
        image_encoder=seeded(transformers.CLIPVisionModel, vision),
        image_processor=transformers.CLIPImageProcessor(size={"shortest_edge": 28}, crop_size=size),
        **umt5(),
    )
    return save(pipeline, folder)


def wan_5b(folder):
    """Wan 2.2 TI2V-5B: a VAE of 16 pixels a latent with patches of its own, a timestep for every token."""
    vae = wan_vae(
        z_dim=48,
        decoder_base_dim=4,
        is_residual=True,
        in_channels=12,
        out_channels=12,
        patch_size=2,
        scale_factor_spatial=16,
    )
    return wan(folder, vae=vae, transformer=wan_transformer(48), scheduler=wan_scheduler(5.0), expand_timesteps=True)


def wan_pair(folder, boundary=0.875):
    """Wan 2.2 A14B text-to-video: two transformers of Wan 2.1's shape, of other weights."""
    second = wan_transformer()
    generator = torch.Generator().manual_seed(3)
    for parameter in second.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    return wan(folder, transformer_2=second, boundary_ratio=boundary)


def wan_pair_image_to_video(folder):
    """Wan 2.2 A14B image-to-video: its transformers read no CLIP tokens."""
    from diffusers import WanImageToVideoPipeline

    first, second = (wan_transformer(in_channels=36) for _ in range(2))
    generator = torch.Generator().manual_seed(3)
    for parameter in second.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    pipeline = WanImageToVideoPipeline(
        vae=wan_vae(),
        scheduler=wan_scheduler(5.0),
        transformer=first,
        transformer_2=second,
        boundary_ratio=0.9,
        image_encoder=None,
        image_processor=None,
        **umt5(),
    )
    return save(pipeline, folder)


def cogvideox(folder, kind="5b"):
    """CogVideoX ``2b`` (sine positions, DDIM), ``5b`` (rotary, DPM), ``5b-i2v`` (learned positions), ``1.5(-i2v)``."""
    import diffusers

    image, new = kind.endswith("i2v"), kind.startswith("1.5")
    transformer = seeded(
        diffusers.CogVideoXTransformer3DModel,
        num_attention_heads=4,
        attention_head_dim=16,
        in_channels=32 if image else 16,
        out_channels=16,
        time_embed_dim=32,
        text_embed_dim=DIM,
        num_layers=2,
        sample_width=6,
        sample_height=4,
        sample_frames=9,
        patch_size_t=2 if new else None,
        use_rotary_positional_embeddings=kind != "2b",
        use_learned_positional_embeddings=kind == "5b-i2v",
        ofs_embed_dim=32 if kind == "1.5-i2v" else None,
        patch_bias=not new,
    )
    vae = seeded(
        diffusers.AutoencoderKLCogVideoX,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=2,
        latent_channels=16,
        scaling_factor=0.7,
        invert_scale_latents=new,
    )
    scheduler_class = diffusers.CogVideoXDDIMScheduler if kind == "2b" else diffusers.CogVideoXDPMScheduler
    scheduler = scheduler_class(
        prediction_type="v_prediction",
        clip_sample=False,
        rescale_betas_zero_snr=True,
        snr_shift_scale=3.0 if kind == "2b" else 1.0,
        timestep_spacing="linspace" if kind == "2b" else "trailing",
    )
    pipeline_class = diffusers.CogVideoXImageToVideoPipeline if image else diffusers.CogVideoXPipeline
    return save(pipeline_class(transformer=transformer, vae=vae, scheduler=scheduler, **t5()), folder)


def mochi(folder, **index):
    """Mochi; ``index`` goes into ``model_index.json``."""
    import diffusers

    transformer = seeded(
        diffusers.MochiTransformer3DModel,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=2,
        pooled_projection_dim=32,
        text_embed_dim=DIM,
        time_embed_dim=16,
    )
    vae = seeded(
        diffusers.AutoencoderKLMochi,
        encoder_block_out_channels=(32, 32, 32, 32),
        decoder_block_out_channels=(32, 32, 32, 32),
        layers_per_block=(1, 1, 1, 1, 1),
        latents_mean=torch.linspace(-0.5, 0.5, 12).tolist(),
        latents_std=torch.linspace(0.5, 2.0, 12).tolist(),
        scaling_factor=0.9,
    )
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True)
    return save(diffusers.MochiPipeline(transformer=transformer, vae=vae, scheduler=scheduler, **t5(), **index), folder)


def ltx2(folder, version="2.3", width=1, **scheduler):
    """LTX-2 ``2.0``, ``2.3`` or ``2.5``; ``scheduler`` as in its config, without any as in distilled folders.

    ``width`` is how much wider the transformer is than the tests need.
    """
    from diffusers import (
        AutoencoderKLLTX2Audio,
        AutoencoderKLLTX2Video,
        FlowMatchEulerDiscreteScheduler,
        LTX2Pipeline,
        LTX2VideoTransformer3DModel,
    )
    from diffusers.pipelines.ltx2.connectors import LTX2TextConnectors
    from diffusers.pipelines.ltx2.vocoder import LTX2Vocoder, LTX2VocoderWithBWE

    new = version != "2.0"  # prompts are projected for each stream in the connectors, attention is gated and modulated
    transformer = seeded(
        LTX2VideoTransformer3DModel,
        in_channels=16,
        out_channels=16,
        num_attention_heads=2 * width,
        attention_head_dim=12,
        cross_attention_dim=24 * width,
        audio_in_channels=16,
        audio_out_channels=16,
        audio_num_attention_heads=2 * width,
        audio_attention_head_dim=8,
        audio_cross_attention_dim=16 * width,
        num_layers=2,
        caption_channels=32,
        rope_type="split",
        use_prompt_embeddings=not new,
        gated_attn=new,
        cross_attn_mod=new,
        audio_gated_attn=new,
        audio_cross_attn_mod=new,
        perturbed_attn=new,
        ff_bias=version != "2.5",
        use_keyframes_abs_pos_embedding=version == "2.5",
    )
    connectors = seeded(
        LTX2TextConnectors,
        caption_channels=32,
        text_proj_in_factor=3,
        rope_type="split",
        per_modality_projections=new,
        proj_bias=new,
        video_hidden_dim=24 * width,
        audio_hidden_dim=16 * width,
        **{
            f"{stream}_{key}": value
            for stream, head_dim in (("video", 12 if new else 16), ("audio", 8 if new else 16))
            for key, value in {
                "connector_num_attention_heads": 2 * width,
                "connector_attention_head_dim": head_dim,
                "connector_num_layers": 1,
                "connector_num_learnable_registers": 8,
                "gated_attn": new,
            }.items()
        },
    )
    vae = seeded(
        AutoencoderKLLTX2Video,
        latent_channels=16,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 16, 32),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1),
        patch_size=4,
        scaling_factor=0.8,
        spatial_compression_ratio=32,
        temporal_compression_ratio=8,
        decoder_causal=False,
        decoder_spatial_padding_mode="zeros",  # LTX-2.0 reflects, which clips of one latent do not allow
    )
    vae.latents_mean.copy_(torch.linspace(-0.5, 0.5, 16))
    vae.latents_std.copy_(torch.linspace(0.5, 2, 16))
    audio_vae = seeded(
        AutoencoderKLLTX2Audio,
        base_channels=16,
        ch_mult=(1, 1, 1),
        num_res_blocks=1,
        latent_channels=4,
        mel_bins=16,
        resolution=16,
    )
    audio_vae.latents_mean.copy_(torch.linspace(-0.5, 0.5, 16))
    audio_vae.latents_std.copy_(torch.linspace(0.5, 2, 16))
    vocoder = seeded(LTX2Vocoder, in_channels=32, hidden_channels=32)
    if new:
        blocks = {"resnet_kernel_sizes": [3], "resnet_dilations": [[1]]}
        vocoder = seeded(
            LTX2VocoderWithBWE,
            in_channels=32,
            hidden_channels=64,
            bwe_in_channels=16,
            bwe_hidden_channels=32,
            num_mel_channels=8,
            **blocks,
            **{f"bwe_{key}": value for key, value in blocks.items()},
        )
        for number, buffer in enumerate((vocoder.mel_stft.mel_basis, vocoder.mel_stft.stft_fn.forward_basis)):
            buffer.copy_(torch.rand(buffer.shape, generator=torch.Generator().manual_seed(number)))
    pipeline = LTX2Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**scheduler),
        vae=vae,
        audio_vae=audio_vae,
        connectors=connectors,
        transformer=transformer,
        vocoder=vocoder,
        **gemma(version),
    )
    return save(pipeline, folder)


EVERY = {
    "ltx2": ltx2,
    "ltx_video": ltx_video,
    "ltx_video-0.9.7": ltx_video_095,
    "wan": wan,
    "wan-i2v": wan_image_to_video,
    "wan-5b": wan_5b,
    "cogvideox-2b": lambda folder: cogvideox(folder, "2b"),
    "cogvideox": cogvideox,
    "cogvideox-1.5-i2v": lambda folder: cogvideox(folder, "1.5-i2v"),
    "mochi": mochi,
    "hunyuan_video": hunyuan_video,
    "kandinsky5": kandinsky5,
    "hunyuan_video15": hunyuan_video15,
    "hunyuan_video15-i2v": lambda folder: hunyuan_video15(folder, from_image=True),
}
"""A maker of each kind of base, for what must hold in every family."""


def size_of(family):
    """Frames, height, width of small clips."""
    return family.frame_multiple + 1, 32, 32


@torch.no_grad()
def conditioning_of(family):
    """Of two clips and captions, by the family's own encoders."""
    clips = torch.rand(2, 3, *size_of(family), generator=torch.Generator().manual_seed(2)) * 2 - 1
    extras = {name: value for name, value in family.load_video_encoder("cpu")(clips).items() if name != "latents"}
    made = Conditioning.of(family.load_prompt_encoder("cpu")(["A red disc.", "x"]), family.prompt_length)
    return made._replace(extras=made.extras | extras)
