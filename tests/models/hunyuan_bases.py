"""Tiny bases of HunyuanVideo and of what has its VAE or encoders; as those of ``bases``."""

from contextlib import contextmanager

import pytest
import transformers

from tests.models.tiny_parts import DIM, llama_and_clip, qwen_and_byt5, qwen_and_clip, save, seeded
from vidlit.models.families import hunyuan_video15 as hunyuan_video15_family


@contextmanager
def few_glyphs():
    """16 tokens of what is to be written, not 256: in the tiniest HunyuanVideo 1.5 their layers are 2048 wide."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hunyuan_video15_family, "MAX_GLYPH_TOKENS", 16)
        yield


def hunyuan_vae():
    """4 frames and 8 pixels a latent."""
    from diffusers import AutoencoderKLHunyuanVideo

    return seeded(
        AutoencoderKLHunyuanVideo,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=2,
        latent_channels=4,
        scaling_factor=0.5,
    )


def hunyuan_video(folder):
    """HunyuanVideo with the guidance embedding of the published, distilled model."""
    import diffusers

    transformer = seeded(
        diffusers.HunyuanVideoTransformer3DModel,
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        mlp_ratio=2.0,
        text_embed_dim=DIM,
        pooled_projection_dim=24,
        rope_axes_dim=(4, 6, 6),
    )
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0)
    parts = {"transformer": transformer, "vae": hunyuan_vae(), "scheduler": scheduler, **llama_and_clip()}
    return save(diffusers.HunyuanVideoPipeline(**parts), folder)


def hunyuan_video15(folder, from_image=False):
    """HunyuanVideo 1.5; ``from_image`` with SigLIP. The projection of glyphs is 2048 wide, whatever is asked for."""
    import diffusers

    transformer = seeded(
        diffusers.HunyuanVideo15Transformer3DModel,
        in_channels=2 * 8 + 1,
        out_channels=8,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=2,
        num_refiner_layers=1,
        mlp_ratio=2.0,
        text_embed_dim=32,
        text_embed_2_dim=DIM,
        image_embed_dim=24,
        rope_axes_dim=(4, 6, 6),
        target_size=64,
    )
    vae = seeded(
        diffusers.AutoencoderKLHunyuanVideo15,
        latent_channels=8,
        block_out_channels=(8, 8, 8, 8, 16),
        layers_per_block=1,
    )
    parts = {
        "transformer": transformer,
        "vae": vae,
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(shift=5.0),
        "guider": diffusers.ClassifierFreeGuidance(guidance_scale=6.0),
        **qwen_and_byt5(),
    }
    if not from_image:
        return save(diffusers.HunyuanVideo15Pipeline(**parts), folder)
    vision = transformers.SiglipVisionConfig(
        hidden_size=24, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
    )
    parts["image_encoder"] = seeded(transformers.SiglipVisionModel, vision)
    parts["feature_extractor"] = transformers.SiglipImageProcessor(size={"height": 28, "width": 28})
    return save(diffusers.HunyuanVideo15ImageToVideoPipeline(**parts), folder)


def kandinsky5(folder, visual_cond=True):
    """Kandinsky 5 T2V; Lite has ``visual_cond``, channels for an image that is not given."""
    import diffusers

    transformer = seeded(
        diffusers.Kandinsky5Transformer3DModel,
        in_visual_dim=4,
        out_visual_dim=4,
        in_text_dim=32,
        in_text_dim2=24,
        time_dim=24,
        model_dim=32,
        ff_dim=48,
        num_text_blocks=1,
        num_visual_blocks=2,
        axes_dims=(4, 6, 6),
        visual_cond=visual_cond,
    )
    parts = {"transformer": transformer, "vae": hunyuan_vae(), **qwen_and_clip()}
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=5.0)
    return save(diffusers.Kandinsky5T2VPipeline(scheduler=scheduler, **parts), folder)
