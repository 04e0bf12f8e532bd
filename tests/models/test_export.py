"""Every family's LoRA as it leaves, reloaded in diffusers and, under ComfyUI's names, by diffusers' converters."""

import re

import diffusers
import pytest
import torch
from safetensors.torch import load_file

from tests.models import bases
from tests.models.hunyuan_bases import few_glyphs
from vidlit.models.adapters import LoRA, export_weights, pipeline_loads_lora
from vidlit.models.comfyui import comfyui_lora
from vidlit.models.families.hunyuan_video import HunyuanVideo
from vidlit.models.family import open_family


@pytest.fixture(scope="module", params=bases.EVERY)
def family(request, tmp_path_factory):
    with few_glyphs():
        yield open_family(bases.EVERY[request.param](tmp_path_factory.mktemp(request.param) / "base"))


@pytest.fixture(scope="module")
def conditioning(family):
    return bases.conditioning_of(family)


def trained(family, lora):
    """An adapter as if trained: its output layers are zero at first, which any export would survive."""
    transformer = family.load_transformer().eval()
    lora.apply(transformer, family)
    generator = torch.Generator().manual_seed(1)
    for parameter in transformer.parameters():
        if parameter.requires_grad:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    return transformer


@torch.no_grad()
def velocities(family, transformer, conditioning):
    noisy = torch.randn(2, *family.latent_shape(*bases.size_of(family)), generator=torch.Generator().manual_seed(0))
    return family.velocity(transformer, noisy, torch.tensor([0.3, 0.8]), conditioning)


def adapted_layers(transformer):
    from peft.tuners.tuners_utils import BaseTunerLayer

    return {name: module for name, module in transformer.named_modules() if isinstance(module, BaseTunerLayer)}


def reload(family, file):
    """In the family's pipeline, around the base's transformer; or as the model card says, where that has no loader."""
    transformer = family.load_transformer().eval()
    pipeline_class = getattr(diffusers, family.pipeline_class)
    if not pipeline_loads_lora(family):
        transformer.load_lora_adapter(file.parent, weight_name=file.name)
        return transformer
    others = set(pipeline_class._get_signature_keys(pipeline_class)[0]) - {"transformer"}
    pipeline = pipeline_class(transformer=transformer, **dict.fromkeys(others))
    pipeline.load_lora_weights(file.parent, weight_name=file.name)
    return pipeline.transformer


@pytest.mark.parametrize("lora", [LoRA(rank=4, alpha=8.0), LoRA(rank=4, alpha=1.0)], ids=["alpha8", "alpha1"])
def test_a_lora_reloaded_in_the_pipeline_gives_the_same_outputs(family, conditioning, lora, tmp_path):
    transformer = trained(family, lora)
    export_weights(family, transformer, tmp_path)
    again = reload(family, tmp_path / "pytorch_lora_weights.safetensors")
    assert adapted_layers(transformer)
    assert_same(deltas(again), deltas(transformer))  # to Wan's image layers the pipeline adds adapters of zeros
    assert {config.lora_alpha for config in again.peft_config.values()} == {lora.alpha}
    plain = velocities(family, family.load_transformer().eval(), conditioning)
    made = velocities(family, transformer, conditioning)
    assert (made - plain).abs().mean() > 1e-3
    torch.testing.assert_close(velocities(family, again, conditioning), made, atol=1e-5, rtol=1e-5)


def test_lora_adapts_the_blocks_attention_alone(family):
    """And none of the embedders, whose layers have names of the same kind."""
    layers = adapted_layers(trained(family, LoRA()))
    blocks = {"transformer_blocks", "single_transformer_blocks", "blocks", "visual_transformer_blocks"}
    assert {layer.split(".")[0] for layer in layers} <= blocks
    parts = {layer.split(".", 2)[2] for layer in layers}  # without the block's number
    projections = "to_q|to_k|to_v|to_out.0|to_query|to_key|to_value|out_layer"
    assert all(re.fullmatch(rf"(attn\d?|(self|cross)_attention)\.({projections})", part) for part in parts)


@torch.no_grad()
def deltas(transformer):
    """What the adapter adds to each layer's weight."""
    (adapter,) = transformer.peft_config
    return {name: module.get_delta_weight(adapter) for name, module in adapted_layers(transformer).items()}


def as_deltas(state):
    """The same of a file's matrices."""
    names = [key.removesuffix(".lora_A.weight") for key in state if key.endswith("lora_A.weight")]
    assert len(state) == 2 * len(names)
    return {name: state[f"{name}.lora_B.weight"] @ state[f"{name}.lora_A.weight"] for name in names}


def assert_same(made, expected):
    """Layers that were joined with adapted ones come back without an update."""
    assert set(expected) <= set(made)
    for name, delta in made.items():
        torch.testing.assert_close(delta, expected.get(name, torch.zeros_like(delta)), atol=1e-6, rtol=1e-5)


def mochi_layers(state):
    """Diffusers' conversion of Mochi's own weights, applied to the updates; other weights are filled in."""

    from diffusers.loaders.single_file_utils import convert_mochi_transformer_checkpoint_to_diffusers

    class Filled(dict):
        def pop(self, key):
            return super().pop(key, torch.zeros(6, 2))

    prefix = "diffusion_model."
    weights = Filled({f"{name.removeprefix(prefix)}.weight": delta for name, delta in as_deltas(state).items()})
    converted = convert_mochi_transformer_checkpoint_to_diffusers(weights)
    assert not weights  # nothing that it did not know
    return {name.removesuffix(".weight"): value for name, value in converted.items()}


@pytest.mark.parametrize(
    "targets", [None, r"transformer_blocks\.\d+\.attn1\.(to_q|add_v_proj|to_out\.0)|transformer_blocks\.0\.ff\.net\.2"]
)
def test_mochi_under_comfyui_names_is_the_same_update(tmp_path, targets):
    family = open_family(bases.mochi(tmp_path / "base"))
    transformer = trained(family, LoRA(rank=4, alpha=8.0, targets=targets))
    written = export_weights(family, transformer, tmp_path / "weights")
    expected = deltas(transformer)
    made = mochi_layers(load_file(written[1]))
    assert_same({name: made[name] for name in expected}, expected)


ATTENTION = r"(to_q|to_k|to_v|to_out\.0)"
COMFYUI = {
    "ltx2": rf"transformer_blocks\.\d+\.(attn[12]\.{ATTENTION}|ff\.net\.(0\.proj|2))",
    "ltx_video": rf"transformer_blocks\.\d+\.(attn[12]\.{ATTENTION}|ff\.net\.(0\.proj|2))",
    "wan": rf"blocks\.\d+\.(attn[12]\.{ATTENTION}|ffn\.net\.(0\.proj|2))",
    "wan-i2v": rf"blocks\.\d+\.(attn[12]\.{ATTENTION}|attn2\.add_[kv]_proj)",
    "hunyuan_video": rf"transformer_blocks\.\d+\.(attn\.({ATTENTION}|add_q_proj|to_add_out)|ff\.net\.0\.proj)",
}
"""Layers that have a name; of HunyuanVideo its double blocks alone: diffusers' converter knows single blocks of the
published width only (next test)."""


@pytest.mark.parametrize("name", COMFYUI)
def test_a_lora_under_comfyui_names_loads_in_the_pipeline(name, tmp_path):
    """By diffusers' converter from these names."""
    family = open_family(bases.EVERY[name](tmp_path / "base"))
    transformer = trained(family, LoRA(rank=4, alpha=8.0, targets=COMFYUI[name]))
    written = export_weights(family, transformer, tmp_path / "weights")
    assert [path.name for path in written] == ["pytorch_lora_weights.safetensors", "comfyui_lora.safetensors"]
    assert all(key.startswith("diffusion_model.") for key in load_file(written[1]))
    again = reload(family, written[1])
    conditioning = bases.conditioning_of(family)
    expected = velocities(family, transformer, conditioning)
    torch.testing.assert_close(velocities(family, again, conditioning), expected, atol=1e-5, rtol=1e-5)
    assert_same(deltas(again), deltas(transformer))


@pytest.mark.parametrize("layers", [("to_q", "to_k", "to_v"), ("to_k",), ("to_q", "proj_mlp")])
def test_hunyuan_videos_single_blocks_under_comfyui_names(layers):
    from diffusers.loaders.lora_conversion_utils import _convert_hunyuan_video_lora_to_diffusers

    width = 3072
    sizes = {"attn.to_q": width, "attn.to_k": width, "attn.to_v": width, "proj_mlp": 4 * width}
    state = {}
    for layer in layers:
        name = f"single_transformer_blocks.7.{layer if layer == 'proj_mlp' else f'attn.{layer}'}"
        state[f"{name}.lora_A.weight"] = torch.randn(2, 5)
        state[f"{name}.lora_B.weight"] = torch.randn(sizes[name.split(".", 2)[2]], 2)
    made = comfyui_lora(HunyuanVideo.comfyui_layers, state, 0.5, lambda name: sizes[name.split(".", 2)[2]])
    assert set(made) == {f"diffusion_model.single_blocks.7.linear1.lora_{side}.weight" for side in "AB"}
    back = as_deltas(_convert_hunyuan_video_lora_to_diffusers(made))
    assert len(back) == 4
    assert_same(back, {f"transformer.{name}": 0.5 * delta for name, delta in as_deltas(state).items()})


def test_wans_names_are_those_of_its_published_code(tmp_path):
    """Diffusers' conversion of the original checkpoint's keys, turned round."""
    from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers

    family = open_family(bases.wan_image_to_video(tmp_path))
    weights = {f"{joined.replace('{}', '1')}.weight": torch.zeros(2) for joined in family.comfyui_layers}
    converted = convert_wan_transformer_to_diffusers(weights)
    named = {name.replace("{}", "1") for names in family.comfyui_layers.values() for name in names}
    assert {key.removesuffix(".weight") for key in converted} == named
    assert named <= {key.removesuffix(".weight") for key in family.load_transformer().state_dict()}


@pytest.mark.parametrize("kind", ["no map", "a layer without a name"])
def test_no_comfyui_file_where_a_name_is_not_known(demo, tmp_path, kind):
    """A part of the update that is silently ignored would be worse than no file."""
    if kind == "no map":
        family, lora = open_family(bases.cogvideox(tmp_path / "base")), LoRA()
    else:
        family, lora = open_family(demo.dir / "base"), LoRA(targets=r".*(attn1\.to_q|proj_in)")
    written = export_weights(family, trained(family, lora), tmp_path / "weights")
    assert [path.name for path in written] == ["pytorch_lora_weights.safetensors"]
    assert not (tmp_path / "weights/comfyui_lora.safetensors").exists()
