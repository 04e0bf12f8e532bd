import pickle
from dataclasses import replace

import pytest
import torch
from torch.utils.data import DataLoader

from tests.data.stand_ins import IDENTITY, ColourReader, PoolingEncoders, make_clips
from vidlit.diffusion.batch import Conditioning, LatentBatch, clip_key, collate
from vidlit.errors import UserError
from vidlit.latents.dataset import LatentDataset
from vidlit.latents.encode.missing import encode
from vidlit.latents.encoding import Encoding
from vidlit.latents.recipe import Recipes
from vidlit.latents.store import LatentStore

# What PoolingEncoders store beside latents and prompt embeddings, and of which.
ALONE = Encoding(num_workers=0)
EXTRAS = {"pooled_projections": "prompt", "first_frame": "clip"}
NAMES = {"prompt_extras": ("pooled_projections",), "clip_extras": ("first_frame",)}


def flat(batch):
    latents, (embeds, mask, extras, levels), *rest = batch
    assert levels == {}  # of streams that are noisy
    return [each for each in (latents, embeds, mask, *(extras[name] for name in EXTRAS), *rest) if each is not None]


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    store = LatentStore(tmp_path_factory.mktemp("store"))
    clips = make_clips(7)
    options = {"accelerator": "cpu", "devices": 1}
    encode(clips, store, Recipes(IDENTITY, ALONE), PoolingEncoders, open_reader=ColourReader, trainer_options=options)
    return store, clips


def test_rows_are_the_clips_in_order(filled):
    store, clips = filled
    dataset = LatentDataset.from_clips(store, clips[::-1], Recipes(IDENTITY))
    assert len(dataset) == 7
    for row, clip in enumerate(clips[::-1]):
        sample = dataset[row]
        grey = int(clip.source.path.stem)
        assert (
            sample.latents.shape
            == dataset.latent_shape(row)
            == (3, clip.bucket[0], clip.bucket[1] // 8, clip.bucket[2] // 8)
        )
        assert sample.latents.dtype == torch.bfloat16
        assert torch.allclose(sample.latents.float(), torch.tensor(grey / 127.5 - 1), atol=0.01)
        assert sample.prompt_embeds[:, 0].tolist() == [float(ord(letter)) for letter in clip.source.caption]
        assert (sample.row, sample.key) == (row, clip_key(clip.clip_id))


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_read_the_same(filled, context):
    store, clips = filled
    dataset = LatentDataset.from_clips(store, clips[::2], Recipes(IDENTITY))  # one bucket
    dataset[0]  # opens a shard before the workers start
    loader = DataLoader(dataset, batch_size=2, num_workers=2, collate_fn=collate, multiprocessing_context=context)
    batches = list(loader)
    assert torch.cat([batch.indices for batch in batches]).tolist() == [0, 1, 2, 3]
    expected = torch.stack([dataset[row].latents for row in range(4)])
    assert torch.equal(torch.cat([batch.latents for batch in batches]), expected)


def test_a_pickled_dataset_reads_the_same(filled):
    store, clips = filled
    dataset = LatentDataset.from_clips(store, clips, Recipes(IDENTITY))
    dataset[0]
    copy = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(copy[3].latents, dataset[3].latents)


def test_what_is_not_stored_is_an_error_that_names_the_difference(filled):
    store, clips = filled
    with pytest.raises(UserError, match="VAE: stored pooling-1, wanted pooling-2"):
        LatentDataset.from_clips(store, clips, Recipes({**IDENTITY, "vae": "pooling-2"}))
    with pytest.raises(UserError, match="text encoder: stored letters-1, wanted letters-2"):
        LatentDataset.from_clips(store, clips, Recipes({**IDENTITY, "text": "letters-2"}))
    with pytest.raises(UserError, match="dtype: stored bfloat16, wanted float32"):
        LatentDataset.from_clips(store, clips, Recipes(IDENTITY, Encoding("float32")))
    with pytest.raises(UserError, match="latents: stored mode, wanted mode and std"):
        LatentDataset.from_clips(store, clips, Recipes(IDENTITY, Encoding(posterior="sample")))


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("prompt_length", [None, 12, 5])
def test_batches_are_what_collate_makes(filled, num_workers, prompt_length):
    store, clips = filled
    clips = [
        replace(clip, source=replace(clip.source, caption="caption 1" + "0" * row))
        for row, clip in enumerate(clips[::2])
    ]
    encode(clips, store, Recipes(IDENTITY), PoolingEncoders, trainer_options={"accelerator": "cpu", "devices": 1})
    dataset = LatentDataset.from_clips(store, clips, Recipes(IDENTITY), **NAMES)
    rows = [[2, 0, 3], [1]]
    loader = DataLoader(dataset.batches(prompt_length), sampler=rows, batch_size=None, num_workers=num_workers)
    for batch, members in zip(loader, rows, strict=True):
        expected = collate([dataset[row] for row in members], prompt_length)
        assert isinstance(batch, LatentBatch)
        assert batch.conditioning.extras.keys() == EXTRAS.keys()
        for made, wanted in zip(flat(batch), flat(expected), strict=True):
            assert torch.equal(made, wanted)


def test_extras_are_those_of_the_clip_and_of_its_caption(filled):
    store, clips = filled
    dataset = LatentDataset.from_clips(store, clips, Recipes(IDENTITY), **NAMES)
    extras = dataset.read_batch([4, 2, 0]).conditioning.extras
    assert extras["pooled_projections"].tolist() == [[9.0] * 4] * 3  # letters of "caption 0"
    greys = torch.tensor([4, 2, 0])[:, None].expand(3, 3) / 127.5 - 1
    torch.testing.assert_close(extras["first_frame"].float(), greys, atol=0.01, rtol=0)
    assert LatentDataset.from_clips(store, clips, Recipes(IDENTITY)).read_batch([0]).conditioning.extras == {}


def test_a_conditioning_moves_and_expands_as_a_whole():
    captions = [{"prompt_embeds": torch.ones(3, 4), "pooled": torch.arange(2.0)}]
    one = Conditioning.of(captions, prompt_length=5)
    assert one.prompt_attention_mask.tolist() == [[True] * 3 + [False] * 2]
    three = one.expand(3)
    assert three.prompt_embeds.shape == (3, 5, 4)
    assert torch.equal(three.prompt_attention_mask[2], one.prompt_attention_mask[0])
    assert three.extras["pooled"].tolist() == [[0.0, 1.0]] * 3
    assert {tensor.device.type for tensor in (one.to("meta")[0], one.to("meta").extras["pooled"])} == {"meta"}


def test_a_batch_of_several_resolutions_is_refused(filled):
    store, clips = filled
    with pytest.raises(UserError, match="rows 0 and 1 of one batch differ in resolution"):
        LatentDataset.from_clips(store, clips, Recipes(IDENTITY)).read_batch([0, 1])
