"""A base's encoders are in memory one at a time, on every engine."""

import weakref
from functools import partial

import pytest
import torch

from tests.models import bases
from vidlit.latents.encoding import Encoding
from vidlit.latents.recipe import LatentRecipe
from vidlit.models.encoders import BaseEncoders
from vidlit.models.family import open_family
from vidlit.sampling.rendering import load_decoder
from vidlit.training.memory import Memory
from vidlit.training.module import VideoDiffusionModule


@pytest.mark.parametrize("kind", ["ltx_video", "wan-i2v"])  # the second reads images with an encoder of their own
def test_the_text_encoder_is_gone_before_the_autoencoder_is_loaded(kind, tmp_path, monkeypatch):
    family = open_family(bases.EVERY[kind](tmp_path / "base"))
    held, loaded = [], []

    def watched(load, own, *args):
        assert [name for name, encoder in held if encoder() is not None] == []
        made = own(*args)
        held.extend((load, weakref.ref(each)) for each in vars(made).values() if isinstance(each, torch.nn.Module))
        loaded.append(load)
        return made

    for load in ("load_prompt_encoder", "load_video_encoder"):
        monkeypatch.setattr(family, load, partial(watched, load, getattr(family, load)))
    encoders = BaseEncoders(family)
    frames = torch.zeros(1, *bases.size_of(family), 3, dtype=torch.uint8)
    encoders.encode_captions(["a"])
    encoders.read_tokens(["a"])
    first = encoders.encode_video(frames)
    encoders.encode_video(frames)
    encoders.encode_captions(["b"])
    again = encoders.encode_video(frames)
    assert loaded == ["load_prompt_encoder", "load_video_encoder"] * 2
    assert len(held) >= 4
    assert first.keys() == again.keys() >= {"latents"}
    assert all(torch.equal(first[name], again[name]) for name in first)


@torch.no_grad()
def test_what_is_larger_than_a_tile_is_encoded_and_decoded_in_tiles_where_asked(tmp_path):
    family = open_family(bases.wan(tmp_path / "base"))
    frames = torch.randint(256, (1, 1, 16, 288, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    whole, tiled = (BaseEncoders(family, tiled=on).encode_video(frames)["latents"] for on in (False, True))
    vae = family.load_vae("cpu")
    vae.enable_tiling()  # of 256 pixels
    assert torch.equal(tiled, family.encode_video(vae, frames.permute(0, 4, 1, 2, 3) / 127.5 - 1))
    assert not torch.equal(tiled, whole)
    assert (tiled - whole).abs().mean() < 0.1 * whole.abs().mean()
    small = frames[:, :, :, :64]
    assert torch.equal(*(BaseEncoders(family, tiled=on).encode_video(small)["latents"] for on in (False, True)))

    module = VideoDiffusionModule(str(family.base), memory=Memory(tiled_decoding=True))
    decoded = family.decode_latents(load_decoder(module), whole)
    assert torch.equal(decoded, family.decode_latents(vae, whole))
    module.memory = Memory(tiled_decoding="auto")  # without a forecast
    assert not torch.equal(decoded, family.decode_latents(load_decoder(module), whole))


def test_a_codec_without_tiles_has_no_use_for_them(demo):
    family = open_family(demo.dir / "base", 16)
    frames = torch.zeros(1, *bases.size_of(family), 3, dtype=torch.uint8)
    assert torch.equal(*(BaseEncoders(family, tiled=on).encode_video(frames)["latents"] for on in (False, True)))


def test_latents_in_tiles_are_others_to_the_store(demo):
    """Clips that were stored before keep their keys."""
    assert not Encoding().tiled
    given = {"content": "0", "start": 0.0, "fps": 16.0, "bucket": "9x48x80", "encoder": "v", "dtype": "bfloat16"}
    whole = LatentRecipe(**given, preprocessing="p")
    tiled = LatentRecipe(**given, preprocessing="p", posterior="mode in tiles")
    assert whole.key != tiled.key
    assert "posterior" not in whole.ingredients
    assert tiled.differences(whole.ingredients | {"posterior": None, "mask": None}) == [
        "latents: stored mode, wanted mode in tiles"
    ]
