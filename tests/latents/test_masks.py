"""Masks in the store: encoded with their clips, read as what places count."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.data.stand_ins import IDENTITY, ColourReader, PoolingEncoders, make_clips
from vidlit.data.datamodule import LatentDataModule
from vidlit.data.demo_clips import Scene
from vidlit.data.split import Splitting
from vidlit.diffusion.batch import collate
from vidlit.diffusion.loss_weights import latent_mask
from vidlit.errors import UserError
from vidlit.latents.dataset import LatentDataset
from vidlit.latents.encode.missing import encode
from vidlit.latents.encoding import Encoding
from vidlit.latents.recipe import LatentRecipe, Recipes
from vidlit.latents.store import LatentStore
from vidlit.video.buckets import Bucket
from vidlit.video.mp4 import write_mp4
from vidlit.video.sources import Companion

BUCKET = Bucket(5, 16, 16)


class MaskReader(ColourReader):
    """Masks are white on their left, those called black on no side; one called short ends too early."""

    def read_clip(self, request):
        if request.path.parent.name != "masks":
            return super().read_clip(request)
        if request.path.stem == "short":
            raise UserError("ends before the clip does")
        mask = np.zeros((request.num_frames, request.height, request.width, 3), np.uint8)
        if request.path.stem != "black":
            mask[:, :, : request.width // 2] = 255
        return mask


class MaskEncoders(PoolingEncoders):
    def encode_masks(self, masks):
        return latent_mask(masks.float() / 255, (5, 2, 2), temporal=1)


def masked(clip, mask, content="5" * 64):
    companion = Companion(f"masks/{mask}", Path("/nowhere/masks") / mask, content)
    return dataclasses.replace(clip, source=dataclasses.replace(clip.source, companions={"mask": companion}))


def run(clips, store):
    options = {"open_reader": MaskReader, "trainer_options": {"accelerator": "cpu", "devices": 1}}
    return encode(clips, store, Recipes(IDENTITY, Encoding(num_workers=0, batch_size=2)), MaskEncoders, **options)


@pytest.mark.parametrize("mask", ["left.png", "left.mp4"])
def test_masks_are_stored_and_read_as_weights(tmp_path, mask):
    store, clips = LatentStore(tmp_path), make_clips(3, buckets=(BUCKET,))
    clips[1] = masked(clips[1], mask)
    assert run(clips, store).encoded == 3
    assert not list(store.verify())
    dataset = LatentDataset.from_clips(store, clips, Recipes(IDENTITY), unmasked_weight=0.25)
    batch = dataset.read_batch([0, 1, 2])
    assert batch.weights.shape == (3, 1, 5, 2, 2)
    assert batch.weights[1, 0, 0].tolist() == [[1, 0.25], [1, 0.25]]
    assert torch.equal(batch.weights[::2], torch.ones(2, 1, 5, 2, 2))
    assert torch.equal(collate([dataset[row] for row in range(3)]).weights, batch.weights)
    assert dataset.read_batch([0, 2]).weights.min() == 1
    assert "weights" not in batch.conditioning.extras


def test_a_set_without_masks_has_no_weights(tmp_path):
    store, clips = LatentStore(tmp_path), make_clips(2, buckets=(BUCKET,))
    run(clips, store)
    assert LatentDataset.from_clips(store, clips, Recipes(IDENTITY)).read_batch([0, 1]).weights is None


def test_a_clip_without_a_mask_is_known_by_the_key_that_it_had(tmp_path):
    """Stores of before hold; another mask is another item."""
    (clip,) = make_clips(1, buckets=(BUCKET,))
    recipe = LatentRecipe.of(clip, IDENTITY)
    assert "mask" not in recipe.ingredients
    store = LatentStore(tmp_path)
    run([clip], store)
    for content in ("5" * 64, "6" * 64):
        assert run([masked(clip, "left.png", content)], store).encoded == 1
    assert run([clip], store).stored == 1
    with pytest.raises(UserError, match="mask: stored none, wanted 7777"):
        LatentDataset.from_clips(store, [masked(clip, "left.png", "7" * 64)], Recipes(IDENTITY))


@pytest.mark.parametrize(
    ("mask", "reason"),
    [
        ("short.mp4", "its mask masks/short.mp4 ends before the clip does"),
        ("black.mp4", "its mask masks/black.mp4 is black all through this clip: nothing would be learned"),
    ],
)
def test_a_mask_that_cannot_be_used_costs_its_own_clip(tmp_path, mask, reason):
    store, clips = LatentStore(tmp_path), make_clips(2, buckets=(BUCKET,))
    report = run([masked(clips[0], mask), clips[1]], store)
    assert report.encoded == 1
    assert [(clip.clip_id, clip.reason) for clip in report.quarantined] == [(clips[0].clip_id, reason)]


def test_a_demo_clip_counts_where_its_shape_is(demo, tmp_path):
    """Through real files: a mask that is a video, at another frame rate, cut, cropped and pooled as the latents are."""
    scene, rng = Scene.draw(0), np.random.default_rng
    clip, mask = scene.render(rng([0, 0])), scene.render_mask(rng([0, 0]))
    write_mp4(tmp_path / "clips/a.mp4", clip, 16)
    write_mp4(tmp_path / "clips/mask.mp4", np.repeat(mask, 2, axis=0), 32)
    (tmp_path / "clips/metadata.csv").write_text("file_name,caption,mask\na.mp4,A shape.,mask.mp4\n")
    data = LatentDataModule(
        tmp_path / "clips",
        tmp_path / "store",
        str(demo.dir / "base"),
        ["9x64x64"],
        fps=16,
        split=Splitting(val_fraction=0.0),
        encoding=Encoding("float32", num_workers=0),
        unmasked_weight=0.5,
    )
    assert data.encode(accelerator="cpu", devices=1).encoded == 1
    batch = data.dataset(data.train_clips).read_batch([0])
    assert batch.weights.shape == (1, 1, *batch.latents.shape[2:])
    seen = torch.from_numpy(mask[:9, ..., 0]).float() / 255
    frames = torch.stack([seen[0], seen[1:5].mean(0), seen[5:].mean(0)])
    wanted = 0.5 + 0.5 * torch.nn.functional.adaptive_avg_pool2d(frames, batch.latents.shape[3:])
    torch.testing.assert_close(batch.weights[0, 0], wanted, atol=0.06, rtol=0)
    assert batch.weights.max() > 0.7
