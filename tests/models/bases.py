"""Tiny bases of every family: whole diffusers folders with random weights, written by the pipelines themselves.

One function a family. What they leave out of the real models is size alone: the same classes, config keys and files.
"""

import torch
import transformers

DIM = 64
"""Width of the tiny text encoders."""


def save(pipeline, folder):
    """Write a pipeline; every part must be there, or the base would be none."""
    pipeline.save_pretrained(folder)
    return folder


def seeded(make, *args, **kwargs):
    """A model in eval mode whose weights depend on nothing but its class and config."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make(*args, **kwargs).eval()
        # Zero-initialised layers would hide what they are given.
        for parameter in model.parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.02)
    return model


def text_config(config_class, **kwargs):
    """Of a T5 or UMT5 that a byte tokenizer fits."""
    sizes = {"vocab_size": 384, "d_model": DIM, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4}
    return config_class(**sizes, feed_forward_proj="gated-gelu", dropout_rate=0.0, **kwargs)


def t5():
    """Tokenizer and text encoder of LTX-Video, CogVideoX, Mochi."""
    encoder = seeded(transformers.T5EncoderModel, text_config(transformers.T5Config))
    return {"tokenizer": transformers.ByT5Tokenizer(), "text_encoder": encoder}


def umt5():
    """Tokenizer and text encoder of Wan."""
    encoder = seeded(transformers.UMT5EncoderModel, text_config(transformers.UMT5Config))
    return {"tokenizer": transformers.ByT5Tokenizer(), "text_encoder": encoder}


def ltx_video(folder, **scheduler):
    """LTX-Video 0.9; ``scheduler`` as in its config. VAE: 4 frames and 16 pixels a latent (the real one 8 and 32)."""
    from diffusers import (
        AutoencoderKLLTXVideo,
        FlowMatchEulerDiscreteScheduler,
        LTXPipeline,
        LTXVideoTransformer3DModel,
    )

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
    return save(LTXPipeline(scheduler=scheduler, vae=vae, **t5(), transformer=transformer), folder)


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
