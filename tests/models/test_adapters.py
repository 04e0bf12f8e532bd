import re

import diffusers
import pytest
import torch
from safetensors.torch import load_file

from vidlit.diffusion.batch import Conditioning
from vidlit.errors import UserError
from vidlit.models.adapters import TITLES, LoRA, LoRAFile, export_weights, without_adapter
from vidlit.models.family import open_family


@pytest.fixture(scope="module")
def family(demo):
    return open_family(demo.dir / "base", 16.0)


def inputs():
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(2, 64, 2, 3, 5, generator=generator),
        torch.tensor([0.3, 0.8]),
        Conditioning(torch.randn(2, 7, 64, generator=generator), torch.arange(7)[None] < torch.tensor([[4], [7]]), {}),
    )


@torch.no_grad()
def velocities(family, transformer):
    return family.velocity(transformer.eval(), *inputs())


@pytest.mark.parametrize("variant", TITLES)
def test_an_adapter_switched_off_is_the_base_and_stays_trainable(family, variant):
    base, adapted = family.load_transformer(), trained(family, LoRA(rank=4, variant=variant))
    made = velocities(family, adapted)
    with without_adapter([adapted]):
        assert torch.equal(velocities(family, adapted), velocities(family, base))
        assert any(parameter.requires_grad for parameter in adapted.parameters())
    assert torch.equal(velocities(family, adapted), made)
    assert not torch.equal(made, velocities(family, base))
    with pytest.raises(ValueError, match="no adapter"), without_adapter([base]):
        raise AssertionError


def loads_lokr():
    """Older diffusers do not."""
    from diffusers.utils import peft_utils

    return hasattr(peft_utils, "_create_lokr_config")


def trained(family, lora):
    """An adapter as if trained: its output layers are zero at first, which any export would survive."""
    transformer = family.load_transformer()
    lora.apply(transformer, family)
    generator = torch.Generator().manual_seed(1)
    for parameter in transformer.parameters():
        if parameter.requires_grad:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    return transformer


def test_a_fresh_adapter_changes_nothing_and_trains_itself_alone(family):
    transformer = family.load_transformer()
    before = velocities(family, transformer)
    LoRA(rank=4).apply(transformer, family)
    assert torch.equal(velocities(family, transformer), before)
    trainable = {name for name, parameter in transformer.named_parameters() if parameter.requires_grad}
    expected = {
        f"transformer_blocks.{block}.{attention}.{layer}.lora_{side}.default.weight"
        for block in range(4)
        for attention in ("attn1", "attn2")
        for layer in ("to_q", "to_k", "to_v", "to_out.0")
        for side in "AB"
    }
    assert trainable == expected


def test_targets_can_be_chosen(family):
    transformer = family.load_transformer()
    LoRA(rank=2, targets=r"transformer_blocks\.[01]\.ff\.net\.2").apply(transformer, family)
    trainable = {name for name, parameter in transformer.named_parameters() if parameter.requires_grad}
    assert len(trainable) == 4
    assert all(re.match(r"transformer_blocks\.[01]\.ff\.net\.2\.lora_[AB]", name) for name in trainable)


@pytest.mark.parametrize(("rank", "alpha"), [(4, 4.0), (4, 8.0), (8, 2.0)])
def test_exported_adapter_gives_the_same_velocities_in_a_pipeline(family, tmp_path, rank, alpha):
    transformer = trained(family, LoRA(rank=rank, alpha=alpha))
    files = export_weights(family, transformer, tmp_path / "weights")
    assert [file.name for file in files] == ["pytorch_lora_weights.safetensors", "comfyui_lora.safetensors"]
    assert set((tmp_path / "weights").iterdir()) == set(files)

    fresh = family.load_transformer()
    base = velocities(family, fresh)
    pipeline = diffusers.LTXPipeline(scheduler=None, vae=None, text_encoder=None, tokenizer=None, transformer=fresh)
    pipeline.load_lora_weights(tmp_path / "weights")  # of the two files it takes its own
    expected = velocities(family, transformer)
    torch.testing.assert_close(velocities(family, pipeline.transformer), expected, atol=1e-5, rtol=0)
    assert (expected - base).abs().max() > 1e-2  # or the line above would prove nothing


@pytest.mark.parametrize("variant", ["rslora", "dora", "lokr", "tlora"])
def test_every_variant_is_loaded_by_diffusers_as_it_was_trained(family, tmp_path, variant):
    transformer = trained(family, LoRA(rank=4, alpha=2.0, variant=variant))
    files = export_weights(family, transformer, tmp_path / "weights")
    in_comfyui = variant in ("rslora", "tlora")
    assert [file.name for file in files][1:] == ["comfyui_lora.safetensors"] * in_comfyui
    expected = velocities(family, transformer)
    assert (expected - velocities(family, family.load_transformer())).abs().max() > 1e-3

    fresh = family.load_transformer()
    if variant == "lokr":  # pipelines refuse it; transformers do not
        if not loads_lokr():
            pytest.skip("this diffusers loads no LoKr")
        fresh.load_lora_adapter(tmp_path / "weights", weight_name=files[0].name)
    else:
        pipeline = diffusers.LTXPipeline(scheduler=None, vae=None, text_encoder=None, tokenizer=None, transformer=fresh)
        pipeline.load_lora_weights(tmp_path / "weights", weight_name=files[0].name)
    torch.testing.assert_close(velocities(family, fresh), expected, atol=1e-5, rtol=0)
    ours = family.load_transformer()
    LoRAFile(files[0]).apply(ours, family)
    torch.testing.assert_close(velocities(family, ours), expected, atol=1e-5, rtol=0)
    if in_comfyui:  # an update without an alpha: its scale is in its matrices
        layer, state = transformer.transformer_blocks[0].attn1.to_q, load_file(files[1])
        name = "diffusion_model.transformer_blocks.0.attn1.to_q"
        update = state[f"{name}.lora_B.weight"] @ state[f"{name}.lora_A.weight"]
        torch.testing.assert_close(update, layer.get_delta_weight("default"), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("variant", ["rslora", "dora", "lokr", "tlora"])
def test_a_fresh_adapter_of_any_variant_changes_nothing(family, variant):
    transformer = family.load_transformer()
    before = velocities(family, transformer)
    LoRA(rank=4, variant=variant).apply(transformer, family)
    torch.testing.assert_close(velocities(family, transformer), before, atol=1e-5, rtol=0)


def test_a_lokr_has_no_dropout():
    with pytest.raises(UserError, match=r"adapter.dropout is not there for variant lokr"):
        LoRA(dropout=0.1, variant="lokr")


def test_exported_adapter_holds_the_adapter_alone(family, tmp_path):
    file, _ = export_weights(family, trained(family, LoRA(rank=4)), tmp_path)
    stored = load_file(file)
    assert len(stored) == 4 * 2 * 4 * 2
    assert all(name.startswith("transformer.") and ".lora_" in name for name in stored)


def test_full_weights_are_exported_as_a_transformer_folder(family, tmp_path):
    transformer = family.load_transformer()
    with torch.no_grad():
        for parameter in transformer.parameters():
            parameter.add_(0.01)
    files = export_weights(family, transformer, tmp_path)
    assert {path.name for path in files} == {"config.json", "diffusion_pytorch_model.safetensors"}
    loaded = diffusers.LTXVideoTransformer3DModel.from_pretrained(tmp_path / "transformer")
    for name, value in transformer.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
