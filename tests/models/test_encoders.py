"""A base's encoders are in memory one at a time, on every engine."""

import weakref
from functools import partial

import pytest
import torch

from tests.models import bases
from vidlit.models.encoders import BaseEncoders
from vidlit.models.family import open_family


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
