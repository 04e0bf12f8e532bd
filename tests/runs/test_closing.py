import re
from pathlib import Path

import pytest

from vidlit.runs.closing import closing_paragraph
from vidlit.runs.directory import RunDirectory
from vidlit.runs.logged_names import VAL_LOG_RATIO

SUMMARY = {
    "stopped_by": "divergence",
    "reason": "It has risen.",
    "stop_step": 300,
    "planned_steps": 1200,
    "seconds": 41.0,
    "best_step": 100,
    "gain": 0.3,
    "kept": "best",
    "kept_step": 100,
    "kept_gain": 0.3,
    "exposures": {"min": 298, "mean": 300.0, "max": 302, "band": "risky"},
    "exposures_at_kept": {"min": 99, "mean": 100.0, "max": 101},
}


def test_times_and_counts_are_as_people_say_them():
    text = paragraph(seconds=431234, exposures={"min": 1198, "mean": 1200.2, "max": 1203, "band": "risky"})
    assert "after 4 d 23 h by divergence" in text
    assert "each video had been seen 1,200 times on average (1,198 to 1,203): risky" in text


def paragraph(**changes):
    return closing_paragraph({**SUMMARY, **changes}, RunDirectory(Path("runs/a/0")))


def test_it_says_what_is_kept_and_how_good_it_is():
    text = paragraph()
    assert "Stopped at step 300 of 1200 after 41 s by divergence. It has risen." in text
    assert "Step 100 is kept: its validation loss is -25.9 % against the base model's" in text
    conservative = paragraph(kept="conservative", kept_step=60, kept_gain=0.28)
    assert "Step 60 is kept, the earliest within a tenth of the best gain (step 100's)" in conservative
    assert "-24.4 % against" in conservative
    assert "Step 300 is kept, the last one: its validation loss is +5.1 % against" in paragraph(
        kept="last", kept_step=300, kept_gain=-0.05
    )
    assert "The base model itself is kept" in paragraph(kept="base model", kept_step=0, kept_gain=0.0)
    assert "The last step's weights are kept (300)" in paragraph(
        kept="last", kept_step=300, kept_gain=None, best_step=None, gain=None
    )


@pytest.mark.parametrize(
    ("stopped_by", "options"),
    [
        ("divergence", "--overfit_stopping.policy.divergence warn"),
        ("copies+diversity", "--overfit_stopping.policy.copies warn --overfit_stopping.policy.diversity warn"),
    ],
)
def test_it_says_how_to_go_on_all_the_same(stopped_by, options):
    text = paragraph(stopped_by=stopped_by)
    assert text.endswith(f"To go on all the same: --ckpt_path runs/a/0/checkpoints/last.ckpt {options}")


def test_a_copy_can_be_seen_beside_its_clip():
    evidence = {"copies": {"pair": "samples/step_000300/audit_pair_02.mp4"}}
    text = paragraph(stopped_by="copies", evidence=evidence)
    assert "Side by side: runs/a/0/samples/step_000300/audit_pair_02.mp4." in text
    assert "Side by side" not in paragraph()


@pytest.mark.parametrize(
    ("stopped_by", "said"), [("max_steps", "Trained all 1200 steps in"), ("other", "Ended at step")]
)
def test_a_run_that_no_signal_stopped_needs_no_such_advice(stopped_by, said):
    text = paragraph(stopped_by=stopped_by)
    assert text.startswith(said)
    assert "--ckpt_path" not in text


def test_a_run_that_is_still_improving_has_a_way_to_go_on():
    text = paragraph(stopped_by="max_steps", still_improving=True)
    assert text.endswith("Go on with --ckpt_path runs/a/0/checkpoints/last.ckpt --trainer.max_steps 2400")
    assert "max_steps" not in paragraph(stopped_by="divergence", still_improving=True)


@pytest.mark.parametrize("stopped_by", ["interrupted", "error"])
def test_a_run_that_was_cut_short_goes_on_from_what_was_saved(tmp_path, stopped_by):
    directory, summary = RunDirectory(tmp_path), {**SUMMARY, "stopped_by": stopped_by, "reason": "It broke."}
    assert closing_paragraph(summary, directory) == "It broke. It had come to step 300 of 1200."
    directory.checkpoints.mkdir()
    directory.last_checkpoint.touch()
    assert closing_paragraph(summary, directory) == (
        f"It broke. It had come to step 300 of 1200. Go on with --ckpt_path {directory.last_checkpoint}"
    )


def test_the_first_figure_is_the_one_on_the_curve():
    assert re.findall(r"[+-][\d.]+ %", paragraph())[0] == VAL_LOG_RATIO.text(-SUMMARY["kept_gain"])
