"""Several captions of a row: training reads them in turn, exactly the same when it is resumed or spread over ranks."""

import itertools
import json
from collections import Counter, defaultdict
from pathlib import Path

import torch

from tests.video.films import texture, write_film
from vidlit.data.batch_sampler import ResolutionBatchSampler
from vidlit.data.caption_variants import CaptionsInTurn, with_variants
from vidlit.data.datamodule import LatentDataModule
from vidlit.data.split import Splitting
from vidlit.latents.encoding import Encoding
from vidlit.video.buckets import Bucket
from vidlit.video.sources import Clip, SourceVideo

BUCKETS = [0, 0, 0, 0, 0, 1, 1, 1]
NUM_CAPTIONS = [3, 1, 2, 1, 4, 1, 2, 1]


def clips_of(nums):
    for row, num in enumerate(nums):
        captions = [f"caption {row} {number}" for number in range(num)]
        source = SourceVideo(Path("x"), f"{row}.mp4", captions[0], f"{row}.mp4", further_captions=tuple(captions[1:]))
        yield Clip(f"{row}.mp4@0", source, 0.0, 16.0, Bucket(9, 64, 64), "")


CLIPS = list(clips_of(NUM_CAPTIONS))


def order(num_batches, *, start=0, num_replicas=1, rank=0, batch_size=2, seed=3):
    options = {"num_replicas": num_replicas, "rank": rank, "seed": seed, "start": start}
    sampler = ResolutionBatchSampler(BUCKETS, batch_size, **options)
    batches = list(itertools.islice(CaptionsInTurn(sampler, CLIPS, seed), num_batches))
    return batches, sampler


def test_every_caption_is_read_equally_often_and_of_the_clip_whose_turn_it_is():
    longer, rows = with_variants(CLIPS)
    assert longer[: len(CLIPS)] == CLIPS
    assert len(longer) == sum(NUM_CAPTIONS)
    batches, sampler = order(600)
    read = defaultdict(Counter)
    for position, places in enumerate(batches):
        assert [rows[place] for place in places] == sampler.batch_at(position)
        for place in places:
            read[rows[place]][longer[place].source.caption] += 1
    for row, counts in read.items():
        assert set(counts) == set(CLIPS[row].source.captions)
        assert max(counts.values()) - min(counts.values()) <= 1
    assert len({next(iter(counts)) for row, counts in read.items() if counts[f"caption {row} 0"]}) > 1


def test_visits_are_counted_from_the_position_alone():
    _, sampler = order(0)
    seen = Counter()
    for position in range(60):
        rows = sampler.batch_at(position)
        assert sampler.visits_at(position) == [seen[row] for row in rows]
        seen.update(rows)


def test_a_resumed_run_on_other_ranks_reads_the_same_captions():
    whole, _ = order(40)
    rest, _ = order(15, start=25)
    assert rest == whole[25:]
    first, second = (order(40, num_replicas=2, rank=rank, batch_size=1)[0] for rank in range(2))
    assert [a + b for a, b in zip(first, second, strict=True)] == whole
    assert order(40, seed=4)[0] != whole


def test_from_a_table_to_the_batch(demo, tmp_path):
    """Encoded, read in turn, the first alone in validation and in samples; rows are those of the clip table."""
    folder = tmp_path / "clips"
    folder.mkdir()
    names = ["a.mp4", "b.mp4", "c.mp4"]
    captions = {name: [f"{name} one", f"{name} two, longer", f"{name} one"] for name in names}
    for seed, name in enumerate(names):
        write_film(folder / name, texture(seed, count=25, height=64, width=64))
    lines = [json.dumps({"file_name": name, "caption": captions[name]}) for name in names]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    options = {
        "buckets": ["9x64x64"],
        "fps": 16,
        "split": Splitting(val_fraction=0.34),
        "encoding": Encoding(num_workers=1, dtype="float32"),
        "trigger": "ohwx",
    }
    data = LatentDataModule(folder, tmp_path / "latents", str(demo.dir / "base"), **options)
    report = data.encode()
    assert report.captions == 6
    assert any(
        "3 rows have several captions, which training reads in turn (3 beside" in each for each in data.usage.remarks
    )
    assert any("'ohwx' was put before the captions of 3 rows; 0 had it" in each for each in data.usage.remarks)
    encode = data.family.load_prompt_encoder("cpu")
    read = defaultdict(list)
    for batch in itertools.islice(data.train_dataloader(), 8):
        (row,), given = batch.indices.tolist(), batch.conditioning
        prompt = given.trimmed().prompt_embeds[0]
        clip = data.train_clips[row]
        embeds = {caption: encode([caption])[0]["prompt_embeds"] for caption in clip.source.captions}
        (caption,) = (text for text, made in embeds.items() if torch.equal(made, prompt))
        read[clip.source.video].append(caption)
    for name, texts in read.items():
        assert set(texts) == {f"ohwx, {name} one", f"ohwx, {name} two, longer"}
        assert all(one != next_one for one, next_one in itertools.pairwise(texts))
    for loader in data.val_dataloader():
        for batch in loader:
            assert batch.conditioning.prompt_embeds.shape[1] == len(f"ohwx, {names[0]} one") + 1  # bytes and the end

    first = LatentDataModule(folder, tmp_path / "latents", str(demo.dir / "base"), **options, caption_variants="first")
    assert first.encode().captions == 0
    assert all(not clip.source.further_captions for clip in first.train_clips)
    assert first.clip_identity == data.clip_identity
    assert any("the first is used: 3 are left out" in each for each in first.usage.remarks)
