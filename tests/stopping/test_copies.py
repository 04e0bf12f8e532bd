import math

import numpy as np
import pytest
from scipy import stats

from vidlit.stopping.copies import AuditHistory, judge_copies, suspects

TRAINED = np.array([True] * 8 + [False] * 8)
GROUPS = tuple(f"film_{k}" for k in range(16))
SAMPLES = tuple(f"samples/{k}.mp4" for k in range(16))
CLIPS = tuple(f"film_{k}@0-1" for k in range(16))


def history(*audits, groups=GROUPS, trained=TRAINED, others=1.0):
    distances = np.array(audits, dtype=float)
    return AuditHistory(
        steps=tuple(range(0, 100 * len(audits), 100)),
        distances=distances,
        ratios=distances / others,
        trained=trained,
        groups=groups,
    )


def judge(*audits, **options):
    return judge_copies(history(*audits, **options), SAMPLES[: len(audits[0])], CLIPS[: len(audits[0])])


def audit(train, held_out=1.0, seed=0):
    """Distances that scatter by 5 %, as those of samples do."""
    noise = np.exp(0.05 * np.random.default_rng(seed).standard_normal(16))
    return np.concatenate([np.broadcast_to(train, 8), np.broadcast_to(held_out, 8)]) * noise


START = audit(1.2, 1.2)


def test_the_gap_is_a_pooled_t_test_across_recordings():
    told = history(START, audit(0.9, 1.1, seed=1))
    gap, p_value = told.gap()
    change = np.log(told.distances[1] / told.distances[0])
    expected = stats.ttest_ind(change[8:], change[:8], alternative="greater")
    assert gap[0] == 0
    assert gap[1] == pytest.approx(change[8:].mean() - change[:8].mean())
    assert p_value[1] == pytest.approx(expected.pvalue, rel=1e-9)


def test_prompts_of_one_recording_count_once():
    groups = tuple(f"film_{k // 2}" for k in range(16))
    told = history(START, audit(0.9, 1.1, seed=1), groups=groups)
    change = np.log(told.distances[1] / told.distances[0]).reshape(8, 2).mean(1)
    expected = stats.ttest_ind(change[4:], change[:4], alternative="greater")
    assert told.gap()[1][1] == pytest.approx(expected.pvalue, rel=1e-9)


def test_learning_brings_both_sides_nearer_and_is_no_alarm():
    assert judge(START, audit(0.8, 0.85, seed=1)).action == "continue"
    assert judge(START, audit(0.55, 0.6, seed=1)).action == "continue"


def test_memorising_brings_training_prompts_alone_nearer():
    verdict = judge(START, audit(0.7, 1.15, seed=1))
    assert verdict.action == "warn"
    assert verdict.evidence["copies"] == 0
    assert verdict.evidence["gap"] > 0.4
    assert "Copies begin at step 100" in verdict.reason
    assert "42 % nearer to their clips, those of validation prompts no nearer" in verdict.reason
    assert "train on more recordings" in verdict.reason


def test_an_alarm_stands_once_it_was_raised():
    verdict = judge(START, audit(0.7, 1.15, seed=1), audit(1.1, 1.2, seed=2))
    assert verdict.action == "warn"
    assert verdict.evidence["alarm_step"] == 100
    assert "the alarm of step 100 stands" in verdict.reason


def test_two_copies_warn_and_a_quarter_twice_in_a_row_stops():
    copied = np.array([0.1, 0.2, 1, 1, 1, 1, 1, 1])
    assert judge(START, audit(copied)).action == "warn"
    assert judge(START, audit(copied), audit(copied, seed=3)).action == "stop"
    one = np.array([0.1, 1, 1, 1, 1, 1, 1, 1])
    assert judge(START, audit(one)).action == "continue"
    assert judge(START, audit(copied), audit(one), audit(copied)).action == "warn"


def test_with_few_held_out_recordings_one_audit_stops():
    copied = np.array([0.1, 0.2, 1, 1, 1, 1, 1, 1])
    groups = (*GROUPS[:8], *(f"film_{8 + k // 3}" for k in range(8)))
    assert judge(START, audit(copied), groups=groups).action == "stop"
    assert judge(START, audit(0.55, 1.2, seed=1), groups=groups).action == "stop"  # a gap of 0.7
    assert judge(START, audit(0.55, 1.2, seed=1)).action == "warn"
    alone = judge(START[:8], audit(copied)[:8], groups=GROUPS[:8], trained=TRAINED[:8])
    assert alone.action == "stop"
    assert "gap" not in alone.evidence


def test_a_gap_that_chance_explains_less_surely_warns_but_does_not_stop():
    groups = (*(f"film_{k % 4}" for k in range(8)), *(f"film_{8 + k % 2}" for k in range(8)))
    nearer = 1.2 * np.exp(-np.array([0.35, 0.65, 0.95, 1.25] * 2))
    told = history(START, audit(nearer, 1.2, seed=1), groups=groups, others=0.2)
    gap, p_value = told.gap()
    assert gap[1] > 0.7
    assert 0.01 < p_value[1] < 0.05
    assert judge_copies(told, SAMPLES, CLIPS).action == "warn"


def test_what_the_base_model_already_made_is_no_copy():
    near = np.array([0.1, 0.2, 0.1, 1, 1, 1, 1, 1])
    verdict = judge(audit(near, 1.2), audit(near, 1.2))
    assert verdict.action == "continue"
    assert (verdict.evidence["copies"], verdict.evidence["base_copies"]) == (0, 3)


def test_held_out_prompts_are_never_copies():
    verdict = judge(START, audit(1.1, 0.1))
    assert verdict.action == "continue"
    assert verdict.evidence["copies"] == 0


def test_evidence_names_the_nearest_sample_and_its_clip():
    copied = np.array([1, 0.3, 0.05, 1, 1, 1, 1, 1])
    told = history(START, audit(copied))
    verdict = judge_copies(told, SAMPLES, CLIPS)
    assert verdict.evidence["sample"] == "samples/2.mp4"
    assert verdict.evidence["nearest_clip"] == "film_2@0-1"
    assert verdict.evidence["ratio"] == verdict.evidence["ratio_min"] == pytest.approx(0.05, rel=0.2)
    assert verdict.reason.startswith("2 samples are copies of a training clip (8 training prompts, step 100)")
    assert suspects(told) == [2, 1]
    assert suspects(history(START)) == [int(START[:8].argmin())]


def test_the_only_recording_has_no_scale():
    told = history(START[:8], audit(0.1)[:8], others=math.nan, groups=("film",) * 8, trained=TRAINED[:8])
    verdict = judge_copies(told, SAMPLES[:8], CLIPS[:8])
    assert verdict.action == "continue"
    assert "single recording" in verdict.reason
    assert suspects(told) == []


def test_an_exact_copy_is_finite():
    verdict = judge(START, audit(0.0))
    assert math.isfinite(verdict.evidence["gap"])
    assert verdict.evidence["copies"] == 8


def test_shapes_are_checked():
    with pytest.raises(ValueError, match="for 1 audits of 3 prompts"):
        AuditHistory((0,), np.ones((1, 2)), np.ones((1, 2)), TRAINED[:2], ("a", "b", "c"))
    with pytest.raises(ValueError, match="trained"):
        AuditHistory((0,), np.ones((1, 2)), np.ones((1, 2)), TRAINED[:3], ("a", "b"))
