"""The curves of one part of a model, of which some clips may be no examples."""

import numpy as np
import pytest
import torch

from tests.data.stand_ins import make_clips
from vidlit.signals.paired_curves import PairedCurves

CLIPS = make_clips(5)
SILENT = {1, 3}


def curves(clips=CLIPS):
    made = PairedCurves(
        {"val": clips, "train_eval": clips[1:2]},
        {"val": torch.full((len(clips), 2), 0.5), "train_eval": torch.full((1, 2), 0.5)},
        partial=True,
    )
    made.begin(torch.device("cpu"))
    return made


def score(made, factor):
    """Losses that are the clips' numbers and one, times a factor, of those that are heard."""
    made.begin(torch.device("cpu"))
    heard = [row for row in range(5) if row not in SILENT]
    losses = torch.tensor([[row + 1.0] * 2 for row in heard]) * factor
    made.add("val", torch.tensor(heard), losses)
    made.add("train_eval", torch.zeros(0, dtype=torch.int64), torch.zeros(0, 2))


def test_clips_that_are_no_examples_are_left_out_of_every_number():
    made = curves()
    score(made, 1.0)
    logged = {name.name: value for name, value in made.begin_at(0).items()}
    assert logged == {"val/loss": pytest.approx((1 + 3 + 5) / 3), "val/log_ratio": 0.0}
    score(made, 2.0)
    logged = made.finish(10)
    assert logged["val/log_ratio"] == pytest.approx(np.log(2))
    assert not any(name.startswith("train_eval") for name in logged)
    assert made.has_validation
    history = made.history()
    np.testing.assert_allclose(history.val, [[0, 0, 0], [np.log(2)] * 3])
    assert history.val_videos == tuple(CLIPS[row].source.group for row in (0, 2, 4))
    assert history.train_eval.shape == (2, 0)
    assert made.summaries()["val"].clips == 3


def test_a_run_that_goes_on_leaves_out_the_same():
    before, after = curves(), curves()
    score(before, 1.0)
    before.begin_at(0)
    after.load_state_dict(before.state_dict())
    for made in (before, after):
        score(made, 3.0)
    assert before.finish(5) == after.finish(5)
    np.testing.assert_array_equal(before.history().val, after.history().val)


def test_where_no_clip_is_an_example_there_is_no_validation():
    made = curves()
    for name in ("val", "train_eval"):
        made.add(name, torch.zeros(0, dtype=torch.int64), torch.zeros(0, 2))
    made.begin_at(0)
    assert not made.has_validation
    assert made.finish(5) == {}
    assert made.summaries() == {}
