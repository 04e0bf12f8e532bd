import json
import shutil

import diffusers
import pytest
import torch

from vidlit.errors import UserError
from vidlit.models.base_folder import fingerprint
from vidlit.models.encoders import BaseEncoders
from vidlit.models.families.ltx_video import LTXVideo
from vidlit.models.family import open_family
from vidlit.models.registry import known_families


@pytest.fixture
def base(demo, tmp_path):
    return shutil.copytree(demo.dir / "base", tmp_path / "base")


def test_a_base_is_recognised_by_its_transformer(base):
    family = open_family(base)
    assert isinstance(family, LTXVideo)
    assert family.fps == 25.0
    assert open_family(base, 16).fps == 16
    transformer = family.load_transformer()
    assert type(transformer).__name__ == "LTXVideoTransformer3DModel"
    assert transformer.dtype == torch.float32


@pytest.mark.parametrize("name", sorted(known_families()))
def test_every_family_names_classes_that_diffusers_has(name):
    family = known_families()[name]
    assert hasattr(diffusers, name)
    assert hasattr(diffusers, family.pipeline_class)
    assert family.default_fps > 0
    assert family.lora_targets


def test_a_transformer_of_no_family_is_named(base):
    (base / "transformer" / "config.json").write_text(json.dumps({"_class_name": "FluxTransformer2DModel"}))
    with pytest.raises(UserError, match=r"'FluxTransformer2DModel'.*Known: .*LTXVideoTransformer3DModel"):
        open_family(base)


def test_a_folder_without_a_transformer_says_what_a_base_holds(tmp_path):
    with pytest.raises(UserError, match=r"transformer/config\.json.*vae, text_encoder, tokenizer and scheduler"):
        open_family(tmp_path)


def test_a_config_that_is_no_json(base):
    (base / "transformer" / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"transformer/config\.json"):
        open_family(base)


def test_missing_weights_are_a_user_error(base):
    for path in (base / "transformer").glob("*.safetensors"):
        path.unlink()
    with pytest.raises(UserError, match=r"base/transformer could not be loaded as LTXVideoTransformer3DModel"):
        open_family(base).load_transformer()


def test_sizes_follow_from_the_vae(base):
    family = open_family(base)
    assert family.compression == (4, 16)
    assert family.pixel_multiple == 16
    assert family.latent_shape(17, 48, 80) == (64, 5, 3, 5)
    config = json.loads((base / "vae" / "config.json").read_text())
    (base / "vae" / "config.json").write_text(json.dumps(config | {"patch_frames": 8, "patch_size": 32}))
    assert open_family(base).compression == (8, 32)


def test_pixel_multiple_counts_the_transformers_patch(base):
    config = json.loads((base / "transformer" / "config.json").read_text())
    path = base / "transformer" / "config.json"
    path.write_text(json.dumps(config | {"patch_size": 2}))
    assert open_family(base).pixel_multiple == 32
    path.write_text(json.dumps(config | {"patch_size": [1, 2, 2]}))
    assert open_family(base).pixel_multiple == 32


def test_fingerprint_is_of_the_content_and_not_of_the_place(base, tmp_path):
    copy = shutil.copytree(base, tmp_path / "elsewhere")
    assert open_family(copy).identity == open_family(base).identity
    assert fingerprint(base / "vae") != fingerprint(base / "scheduler")


@pytest.mark.parametrize(
    ("file", "changed"),
    [
        ("vae/config.json", {"vae"}),
        ("vae/diffusion_pytorch_model.safetensors", {"vae"}),
        ("text_encoder/model.safetensors", {"text"}),
        ("tokenizer/tokenizer_config.json", {"text"}),
        ("transformer/diffusion_pytorch_model.safetensors", set()),
        ("scheduler/scheduler_config.json", set()),
    ],
)
def test_identity_changes_with_what_makes_latents_and_prompts(base, file, changed):
    family = open_family(base)
    before = family.identity
    with (base / file).open("r+b") as opened:
        opened.seek(-1, 2)
        last = opened.read(1)
        opened.seek(-1, 2)
        opened.write(bytes([last[0] ^ 1]))
    after = family.identity
    assert {name for name in before if before[name] != after[name]} == changed


def test_identity_of_latents_names_what_makes_their_extras(base, monkeypatch):
    """And is the VAE's alone where there are none, so that stores of such families stay as they are."""
    plain = open_family(base).identity["vae"]
    assert plain == fingerprint(base / "vae")
    monkeypatch.setattr(LTXVideo, "clip_extras", ("image_embeds",))
    made = [plain, open_family(base).identity["vae"]]
    shutil.copytree(base / "tokenizer", base / "image_encoder")
    made.append(open_family(base).identity["vae"])
    monkeypatch.setattr(LTXVideo, "clip_recipe", "CLIP of the first frame")
    made.append(open_family(base).identity["vae"])
    assert len(set(made)) == 4


def test_encoders_load_each_part_when_it_is_first_needed(base):
    family = open_family(base)
    encoders = BaseEncoders(family).to(torch.device("cpu"))
    assert encoders.identity == family.identity
    shutil.move(base / "vae", base / "vae_away")
    captions = encoders.encode_captions(["a red disc"])  # needs no VAE
    assert captions[0]["prompt_embeds"].shape == (11, 64)
    shutil.move(base / "vae_away", base / "vae")
    shutil.rmtree(base / "text_encoder")
    frames = torch.zeros(1, 5, 32, 32, 3, dtype=torch.uint8)
    (latents,) = encoders.encode_video(frames).values()  # needs no text encoder
    assert latents.shape == (1, 64, 2, 2, 2)
    assert latents.dtype == torch.float32
    assert not latents.requires_grad
