"""The example for people with their own trainer runs, and decides as the rule does."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vidlit.metrics.paired_loss import log_ratio
from vidlit.stopping import best_check, judge_divergence

EXAMPLE = Path(__file__).parents[1] / "examples" / "stop_in_a_plain_loop.py"


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location(EXAMPLE.stem, EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("seed", [0, 1])
def test_a_plain_loop_stops_when_it_overfits_and_keeps_the_best_weights(example, seed):
    verdict, stopper, model = example.train(seed)
    history, best = stopper.history, best_check(stopper.history)
    assert (verdict.action, verdict.evidence["case"]) == ("stop", "divergence")
    assert 0 < stopper.best_step == history.steps[best] < history.steps[-1] < example.MAX_STEPS
    val, train_eval = history.val.mean(axis=1), history.train_eval.mean(axis=1)
    assert val[best] < 0
    assert val[-1] > val[best]
    assert train_eval[-1] < train_eval[best]

    # The weights are those of the best check: scored again they give its log-ratios.
    score = example.FixedNoiseScore(example.make_clips(*example_data(example, seed))[0], seed=1)
    example.torch.manual_seed(seed)
    again = log_ratio(score(model), score(example.Denoiser()), score.sigmas)
    np.testing.assert_allclose(again.numpy(), history.val[best], atol=1e-5)

    # Nothing but the rule decided, at any check.
    verdicts = [
        judge_divergence(
            replace(history, steps=history.steps[:n], val=history.val[:n], train_eval=history.train_eval[:n]),
        )
        for n in range(2, len(history.steps) + 1)
    ]
    assert verdicts[-1] == verdict
    assert "stop" not in {each.action for each in verdicts[:-1]}


def example_data(example, seed):
    """What draws the validation clips: the second draw of the data's generator."""
    generator = example.torch.Generator().manual_seed(seed)
    example.make_clips(12, generator)
    return 12, generator
