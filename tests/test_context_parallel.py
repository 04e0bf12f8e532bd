"""Context parallel on real gloo processes: losses, gradients and the stop of one process, with sharded weights too."""

import csv
import json

import pytest
import torch

from tests.models import bases
from tests.test_distributed import assert_decided_alike, fit
from tests.test_sharding import SHARDED
from tests.tiny_runs import tiny_words

DDP = ["--trainer.devices=2", "--trainer.strategy=ddp"]
LORA = ["--model.adapter.rank=4"]
SIX_STEPS = {
    "trainer.max_steps": 12,
    "trainer.val_check_interval": 3,
    "trainer.accumulate_grad_batches": 1,
    "trainer.precision": "32-true",
    "exposure.hard_cap": 9,
    "data.batches.size": 4,
    "run.report": False,
}
"""The cap of exposures stops the run at the second check."""
COMPARED = ("train/loss", "val/loss", "val/log_ratio", "train_eval/log_ratio", "train/grad_norm", "exposure/adjusted")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def train(demo, tmp_path_factory):
    """Trains a tiny Wan on four clips a step; gives the run's folder."""
    folder = tmp_path_factory.mktemp("wan")
    bases.wan(folder / "base")
    made = tiny_words("wan2_1_1_3b_full", folder / "base", demo.dir / "clips", "9x32x64", folder)

    def run(name, *words, command="fit", **changed):
        options = SIX_STEPS | {key.replace("__", "."): value for key, value in changed.items()} | {"run.name": name}
        fit([command, *made, *(f"--{key}={value}" for key, value in options.items()), *words], folder)
        return folder / "runs" / name / "0"

    return run


@pytest.fixture(scope="module")
def one(train):
    """The run of one process."""
    return train("one")


def column(run, name):
    with (run / "metrics.csv").open() as file:
        return torch.tensor([float(row[name]) for row in csv.DictReader(file) if row.get(name)])


def assert_trained_alike(one, other):
    assert_decided_alike(one, other)
    assert (one / "exposure.csv").read_text() == (other / "exposure.csv").read_text()
    for name in COMPARED:
        expected = column(one, name)
        assert len(expected), name
        torch.testing.assert_close(column(other, name), expected, rtol=2e-5, atol=2e-5)
    videos = [{path.name for path in run.glob("samples/step_000006/*.mp4")} for run in (one, other)]
    assert videos[0] == videos[1] != set()


@pytest.mark.parametrize("spread", [DDP, SHARDED], ids=["ddp", "fsdp"])
def test_two_ranks_that_share_samples_train_as_one(spread, one, train):
    two = train(f"two_{len(spread)}", *spread, "--model.context_parallel=2")
    assert_trained_alike(one, two)


def test_a_lora_too_with_recomputation_and_clipped_gradients(train):
    options = {"trainer__gradient_clip_val": 0.01, "model__memory__gradient_checkpointing": "true"}
    one = train("lora_one", *LORA, **options)
    two = train("lora_two", *LORA, *DDP, "--model.context_parallel=2", **options)
    assert_trained_alike(one, two)


def test_two_pairs_of_ranks_train_as_one(one, train):
    four = train("four", "--trainer.devices=4", DDP[1], "--model.context_parallel=2", data__batches__size=2)
    assert_trained_alike(one, four)


def test_a_run_goes_on_with_another_number_of_ranks_a_sample(one, train):
    first = train("cut", *DDP, "--model.context_parallel=2", trainer__max_steps=3)
    assert json.loads((first / "summary.json").read_text())["stop_step"] == 3
    train("cut", "--ckpt_path=last", trainer__max_steps=12)
    assert_trained_alike(one, first)


def test_ranks_that_share_a_prompt_write_its_video_once(one, train, tmp_path):
    (tmp_path / "prompts.txt").write_text("A red disc.\nA blue disc.\n")
    options = {
        "command": "predict",
        "prompts": tmp_path / "prompts.txt",
        "ckpt_path": one / "checkpoints" / "last.ckpt",
    }
    train("one", output=tmp_path / "one", **options)
    train("one", *DDP, "--model.context_parallel=2", output=tmp_path / "two", **options)
    videos = [{path.name: path.read_bytes() for path in (tmp_path / name).glob("*.mp4")} for name in ("one", "two")]
    assert len(videos[0]) == 2
    assert videos[1].keys() == videos[0].keys()
    notes = [[path.read_text() for path in sorted((tmp_path / name).glob("*.json"))] for name in ("one", "two")]
    assert notes[0] == notes[1]
