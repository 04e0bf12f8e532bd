import importlib.util
import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.video.films import texture, write_film
from vidlit.data.batching import BatchBudget, Batching
from vidlit.data.datamodule import LatentDataModule
from vidlit.data.split import Splitting
from vidlit.errors import UserError
from vidlit.latents.encoding import Encoding
from vidlit.video.buckets import BucketBudget
from vidlit.video.cut import Cutting

BUCKETS = ["9x64x64", "17x48x80"]
SPLIT = Splitting(val_fraction=0.34)


@pytest.fixture
def make(demo, latents):
    def data(**options):
        options = {"buckets": BUCKETS, "fps": 16, "split": SPLIT, "encoding": Encoding(num_workers=1), **options}
        made = LatentDataModule(demo.dir / "clips", latents, str(demo.dir / "base"), **options)
        made.encode()
        made.setup("fit")
        return made

    return data


def test_batches_hold_exactly_batch_size_samples_of_one_resolution(make):
    data = make(batches=Batching(3))
    shapes = set()
    for batch in itertools.islice(data.train_dataloader(), 20):
        assert batch.latents.shape[0] == batch.conditioning.prompt_embeds.shape[0] == len(batch.indices) == 3
        buckets = {data.train_clips[row].bucket for row in batch.indices.tolist()}
        assert len(buckets) == 1
        assert tuple(batch.latents.shape[1:]) == data.family.latent_shape(*buckets.pop())
        shapes.add(tuple(batch.latents.shape[1:]))
    assert len(shapes) == 2


def test_the_loader_goes_on_where_the_state_says(make):
    data = make(batches=Batching(2))
    whole = [batch.indices.tolist() for batch in itertools.islice(data.train_dataloader(), 9)]
    again = make(batches=Batching(2))
    again.load_state_dict({"position": 4, "global_batch_sizes": {}})
    rest = [batch.indices.tolist() for batch in itertools.islice(again.train_dataloader(), 5)]
    assert rest == whole[4:]


def test_validation_scores_each_held_out_clip_once_and_some_training_clips(make):
    data = make(batches=Batching(3))
    for loader, clips in zip(data.val_dataloader(), (data.val_clips, data.train_eval_clips), strict=True):
        rows = [row for batch in loader for row in batch.indices.tolist()]
        assert sorted(rows) == list(range(len(clips)))
    assert len(data.train_eval_clips) == 4
    assert {clip.clip_id for clip in data.train_eval_clips} <= {clip.clip_id for clip in data.train_clips}


def test_a_batch_budget_gives_small_clips_larger_batches(make):
    data = make(batches=Batching(BatchBudget(tokens=160)))  # clips of 48 and 75 tokens
    sizes = {batch.latents[0, 0].numel(): len(batch.indices) for batch in itertools.islice(data.train_dataloader(), 20)}
    assert sizes == {48: 3, 75: 2}


def test_the_overlap_of_sliding_clips(demo, tmp_path):
    def plan(**options):
        data = LatentDataModule(demo.dir / "clips", tmp_path, str(demo.dir / "base"), ["9x48x48"], fps=16, **options)
        return data.plan

    def starts(**options):
        return [clip.start for clip in plan(cutting=Cutting(**options)).clips]

    assert starts(mode="slide", overlap=0.0) == starts(mode="chunk")
    assert len(starts(mode="slide", overlap=0.75)) > len(starts(mode="slide"))


def test_near_duplicates_are_apart_where_they_are_not_tied(demo, tmp_path):
    frames = texture(1, count=50)
    write_film(tmp_path / "large.mp4", frames)
    write_film(tmp_path / "small.mp4", [np.ascontiguousarray(frame[::2, ::2]) for frame in frames])
    for name in ("large", "small"):
        (tmp_path / f"{name}.txt").write_text("A texture.")
    for tied in (True, False):
        split = Splitting(tie_near_duplicates=tied)
        data = LatentDataModule(tmp_path, tmp_path / "latents", str(demo.dir / "base"), ["9x32x32"], fps=8, split=split)
        assert len({clip.source.group for clip in data.plan.clips}) == (1 if tied else 2)


def test_a_background_and_a_dtype_make_latents_of_their_own(make):
    """What decides a latent is in its recipe: encoding and reading ask for the same."""
    data = make(encoding=Encoding("float32", background=(255, 255, 255), num_workers=1))
    assert data.encode().stored == len(data.plan.clips)
    assert next(iter(data.train_dataloader())).latents.dtype == torch.float32


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (lambda: Batching(0), "data.batches.size is 0"),
        (lambda: Batching(val_size=0), "data.batches.val_size is 0"),
        (lambda: Batching(num_workers=-1), "data.batches.num_workers is -1"),
        (lambda: Encoding(batch_size=0), "data.encoding.batch_size is 0"),
        (lambda: Encoding(num_workers=-1), "data.encoding.num_workers is -1"),
        (lambda: Encoding(background=(0, 0, 256)), "data.encoding.background is"),
        (lambda: Splitting(max_val_clips=0), "data.split.max_val_clips is 0"),
    ],
)
def test_options_out_of_range_are_named_as_they_are_typed(options, words):
    with pytest.raises(UserError, match=words):
        options()


@pytest.mark.parametrize("option", ["source", "store"])
@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("s3://user:hidden@bucket/clips", "has a user or password in it"),
        (Path("s3://user:hidden@bucket/clips"), "has a user or password in it"),
        ("nowhere://bucket", "Protocol not known: nowhere"),
        ("gs://bucket", "pip install 'vidlit"),
        ("simplecache::s3://bucket/clips", "neither a path nor the plain URL"),
        ("file:///clips", "neither a path nor the plain URL"),
    ],
)
def test_an_address_that_cannot_be_used_is_told(demo, tmp_path, option, address, words):
    if "gs" in str(address) and importlib.util.find_spec("gcsfs"):
        pytest.skip("gcsfs is installed")
    folders = {"source": demo.dir / "clips", "store": tmp_path, option: address}
    with pytest.raises(UserError, match=words) as raised:
        LatentDataModule(**folders, base=str(demo.dir / "base"), buckets=BUCKETS, fps=16)
    assert "hidden" not in str(raised.value)


def test_buckets_from_a_budget_are_valid_for_the_model(make):
    data = make(buckets=BucketBudget([9, 17], max_tokens=80, aspect_ratios=[1.0, 5 / 3]))
    for bucket in data.buckets:
        bucket.check(4, 16)
        assert bucket.tokens(4, 16) <= 80
    assert len(data.train_clips) > 0


def test_a_bucket_that_the_model_cannot_take_is_refused_with_the_nearest(demo, tmp_path):
    with pytest.raises(UserError, match=r"10x64x70.*9x64x64"):
        LatentDataModule(demo.dir / "clips", tmp_path, str(demo.dir / "base"), ["10x64x70"])


def test_without_encoding_the_error_says_what_is_missing(demo, tmp_path):
    data = LatentDataModule(demo.dir / "clips", tmp_path, str(demo.dir / "base"), BUCKETS, fps=16, split=SPLIT)
    data.setup("fit")
    with pytest.raises(UserError, match="encode"):
        data.train_dataloader()


RANKS = """
import itertools, json, sys
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from vidlit.data.batching import Batching
from vidlit.data.datamodule import LatentDataModule
from vidlit.data.split import Splitting
out, source, store, base, buckets = sys.argv[1:]
said = []
for data_parallel, tensor_parallel in ((1, 2), (2, 1)):
    strategy = ModelParallelStrategy(data_parallel, tensor_parallel)
    trainer = Trainer(accelerator="cpu", devices=2, strategy=strategy, logger=False, use_distributed_sampler=False)
    trainer.strategy.connect(LightningModule())
    trainer.strategy.setup_environment()
    data = LatentDataModule(
        source,
        store,
        base,
        buckets.split(),
        fps=16,
        split=Splitting(val_fraction=0.34),
        batches=Batching(2 // data_parallel),
    )
    data.trainer = trainer
    batches = itertools.islice(data.train_dataloader(), 8)
    said.append([batch.indices.tolist() for batch in batches])
json.dump(said, open(f"{out}/{trainer.global_rank}.json", "w"))
"""


@pytest.mark.slow
def test_tensor_parallel_ranks_share_their_samples_and_data_parallel_ones_do_not(make, demo, latents, tmp_path):
    data = make(batches=Batching(2))
    one = [batch.indices.tolist() for batch in itertools.islice(data.train_dataloader(), 8)]
    (tmp_path / "ranks.py").write_text(RANKS)
    words = [tmp_path, demo.dir / "clips", latents, demo.dir / "base", " ".join(BUCKETS)]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*launch, tmp_path / "ranks.py", *words], capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert ranks[0][0] == ranks[1][0] == one
    assert [first + second for first, second in zip(ranks[0][1], ranks[1][1], strict=True)] == one
