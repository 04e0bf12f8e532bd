"""A LoRA merged into its base is the base with the LoRA."""

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.models import bases
from tests.models.test_adapters import loads_lokr
from tests.models.test_export import trained, velocities
from vidlit.__main__ import main
from vidlit.models.adapters import LoRA, LoRAFile, export_weights
from vidlit.models.families.ltx_video import LTXVideo
from vidlit.models.family import Expert, open_family

LORA = LoRA(rank=4, alpha=8.0)


@pytest.mark.parametrize(("kind", "scale"), [("ltx_video", 1.0), ("wan", 0.5)])
def test_the_merged_velocity_is_that_of_base_and_adapter(kind, scale, tmp_path, capsys):
    family = open_family(bases.EVERY[kind](tmp_path / "base"))
    adapted = trained(family, LORA)
    file = export_weights(family, adapted, tmp_path)[0]
    words = ["export", str(file), "--base", str(family.base), "--merge", "--output", str(tmp_path / "merged")]
    assert main([*words, "--scale", str(scale)]) == 0
    assert str(tmp_path / "merged") in capsys.readouterr().out

    merged = open_family(tmp_path / "merged")
    conditioning = bases.conditioning_of(family)
    found = velocities(merged, merged.load_transformer().eval(), conditioning)
    adapted.set_adapters(["default"], [scale])
    torch.testing.assert_close(found, velocities(family, adapted, conditioning), atol=1e-5, rtol=1e-5)
    plain = velocities(family, family.load_transformer().eval(), conditioning)
    assert (found - plain).abs().mean() > 1e-3

    pipeline = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "merged")
    assert type(pipeline).__name__ == family.pipeline_class
    torch.testing.assert_close(velocities(family, pipeline.transformer.eval(), conditioning), found)
    assert merged.identity == family.identity  # what was encoded for the base is there for the merged one
    assert main(words) == 2  # it is there already


@pytest.mark.parametrize("variant", ["rslora", "dora", "lokr"])
def test_every_variant_is_merged_as_it_predicts(variant, tmp_path):
    if variant == "lokr" and not loads_lokr():
        pytest.skip("this diffusers loads no LoKr")
    family = open_family(bases.ltx_video(tmp_path / "base"))
    adapted = trained(family, LoRA(rank=4, alpha=8.0, variant=variant))
    file = export_weights(family, adapted, tmp_path)[0]
    assert main(["export", str(file), "--base", str(family.base), "--merge", "--output", str(tmp_path / "merged")]) == 0
    merged, conditioning = open_family(tmp_path / "merged"), bases.conditioning_of(family)
    found = velocities(merged, merged.load_transformer().eval(), conditioning)
    torch.testing.assert_close(found, velocities(family, adapted, conditioning), atol=1e-5, rtol=1e-4)


def test_weights_are_rounded_once_to_what_the_base_has(tmp_path):
    """Also where a base holds several dtypes; layers without an adapter stay as they are, to the bit."""
    family = open_family(bases.wan(tmp_path / "base", transformer=bases.wan_transformer().to(torch.bfloat16)))
    stored = family.base / "transformer/diffusion_pytorch_model.safetensors"
    before = load_file(stored)
    before["scale_shift_table"] = before["scale_shift_table"].float() + 1e-5
    save_file(before, stored, {"format": "pt"})
    adapted = trained(family, LORA)
    file = export_weights(family, adapted, tmp_path)[0]
    words = ["export", str(file), "--base", str(family.base), "--merge", "--output", str(tmp_path / "merged")]
    assert main([*words, "--base_parts", "copy"]) == 0
    after = load_file(tmp_path / "merged/transformer/diffusion_pytorch_model.safetensors")
    assert {name: value.dtype for name, value in after.items()} == {name: value.dtype for name, value in before.items()}
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    for name in changed:
        layer = adapted.get_submodule(name.removesuffix(".weight"))
        whole = before[name].float() + layer.get_delta_weight("default").detach()
        torch.testing.assert_close(after[name], whole.to(after[name].dtype), atol=0, rtol=0)
    assert not (tmp_path / "merged/vae").is_symlink()


def test_each_expert_gets_its_own_file_or_stays_as_it_is(tmp_path, monkeypatch):
    base = bases.ltx_video(tmp_path / "base")
    diffusers.LTXVideoTransformer3DModel.from_pretrained(base / "transformer").save_pretrained(base / "transformer_2")
    monkeypatch.setattr(LTXVideo, "experts", (Expert("transformer", 0.5, "high"), Expert("transformer_2", title="low")))
    family = open_family(base)
    file, _ = export_weights(family, trained(family, LORA), tmp_path)
    words = ["export", str(tmp_path), "--base", str(base), "--merge", "--output"]
    assert main([*words, str(tmp_path / "one")]) == 0
    assert (tmp_path / "one/transformer_2").is_symlink()

    other = trained(family, LoRA(rank=2, alpha=1.0))
    export_weights(family, other, tmp_path, "transformer_2")
    assert main([*words, str(tmp_path / "both")]) == 0
    conditioning, merged = bases.conditioning_of(family), open_family(tmp_path / "both")
    found = velocities(merged, merged.load_transformer(expert="transformer_2").eval(), conditioning)
    torch.testing.assert_close(found, velocities(family, other, conditioning), atol=1e-5, rtol=1e-5)
    adapted = family.load_transformer().eval()
    LoRAFile(file).apply(adapted, family)
    found = velocities(merged, merged.load_transformer().eval(), conditioning)
    torch.testing.assert_close(found, velocities(family, adapted, conditioning), atol=1e-5, rtol=1e-5)

    save_file(
        load_file(tmp_path / "pytorch_lora_weights_low.safetensors"), nameless := tmp_path / "nameless.safetensors"
    )
    words = ["export", str(nameless), "--base", str(base), "--merge", "--output"]
    assert main([*words, str(tmp_path / "unknown")]) == 2  # it does not say of which expert it is
    assert main([*words, str(tmp_path / "low"), "--expert", "low"]) == 0
    assert (tmp_path / "low/transformer").is_symlink()
    assert not (tmp_path / "low/transformer_2").is_symlink()
