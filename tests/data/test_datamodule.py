import itertools
import json
import subprocess
import sys

import pytest

from vidlit.data.datamodule import BatchBudget, BucketBudget, LatentDataModule
from vidlit.errors import UserError

BUCKETS = ["9x64x64", "17x48x80"]


@pytest.fixture
def make(demo, latents):
    def data(**options):
        options = {"buckets": BUCKETS, "fps": 16, "val_fraction": 0.34, "encode_workers": 1, **options}
        made = LatentDataModule(demo.dir / "clips", latents, str(demo.dir / "base"), **options)
        made.encode()
        made.setup("fit")
        return made

    return data


def test_batches_hold_exactly_batch_size_samples_of_one_resolution(make):
    data = make(batch_size=3)
    shapes = set()
    for batch in itertools.islice(data.train_dataloader(), 20):
        assert batch.latents.shape[0] == batch.conditioning.prompt_embeds.shape[0] == len(batch.indices) == 3
        buckets = {data.train_clips[row].bucket for row in batch.indices.tolist()}
        assert len(buckets) == 1
        assert tuple(batch.latents.shape[1:]) == data.family.latent_shape(*buckets.pop())
        shapes.add(tuple(batch.latents.shape[1:]))
    assert len(shapes) == 2


def test_the_loader_goes_on_where_the_state_says(make):
    data = make(batch_size=2)
    whole = [batch.indices.tolist() for batch in itertools.islice(data.train_dataloader(), 9)]
    again = make(batch_size=2)
    again.load_state_dict({"position": 4, "global_batch_sizes": {}})
    rest = [batch.indices.tolist() for batch in itertools.islice(again.train_dataloader(), 5)]
    assert rest == whole[4:]


def test_validation_scores_each_held_out_clip_once_and_as_many_training_clips(make):
    data = make(batch_size=3)
    for loader, clips in zip(data.val_dataloader(), (data.val_clips, data.train_eval_clips), strict=True):
        rows = [row for batch in loader for row in batch.indices.tolist()]
        assert sorted(rows) == list(range(len(clips)))
    assert len(data.train_eval_clips) == len(data.val_clips)
    assert {clip.clip_id for clip in data.train_eval_clips} <= {clip.clip_id for clip in data.train_clips}


def test_a_batch_budget_gives_small_clips_larger_batches(make):
    data = make(batch_size=BatchBudget(tokens=160))  # clips of 48 and 75 tokens
    sizes = {batch.latents[0, 0].numel(): len(batch.indices) for batch in itertools.islice(data.train_dataloader(), 20)}
    assert sizes == {48: 3, 75: 2}


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
    data = LatentDataModule(demo.dir / "clips", tmp_path, str(demo.dir / "base"), BUCKETS, fps=16, val_fraction=0.34)
    data.setup("fit")
    with pytest.raises(UserError, match="encode"):
        data.train_dataloader()


RANKS = """
import itertools, json, sys
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from vidlit.data.datamodule import LatentDataModule
out, source, store, base, buckets = sys.argv[1:]
said = []
for data_parallel, tensor_parallel in ((1, 2), (2, 1)):
    strategy = ModelParallelStrategy(data_parallel, tensor_parallel)
    trainer = Trainer(accelerator="cpu", devices=2, strategy=strategy, logger=False, use_distributed_sampler=False)
    trainer.strategy.connect(LightningModule())
    trainer.strategy.setup_environment()
    data = LatentDataModule(
        source, store, base, buckets.split(), batch_size=2 // data_parallel, fps=16, val_fraction=0.34
    )
    data.trainer = trainer
    batches = itertools.islice(data.train_dataloader(), 8)
    said.append([batch.indices.tolist() for batch in batches])
json.dump(said, open(f"{out}/{trainer.global_rank}.json", "w"))
"""


def test_tensor_parallel_ranks_share_their_samples_and_data_parallel_ones_do_not(make, demo, latents, tmp_path):
    data = make(batch_size=2)
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
