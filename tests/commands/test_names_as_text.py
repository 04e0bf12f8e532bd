"""What users name appears as they spell it: rich would take brackets for markup and ``:cat:`` for a picture."""

import io
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rich.console import Console

from vidlit.callbacks.run_overview import print_facts
from vidlit.commands.kfold import print_folds
from vidlit.commands.plan import print_plan
from vidlit.forecast.run_plan import BucketPlan, RunPlan

NAMES = st.lists(st.sampled_from(["a", "[", "/", "]", "b", ":cat:", "[bold]", "\\", "[/x]", "é"]), min_size=1).map(
    "".join
)
TERMINALS = pytest.mark.parametrize("terminal", [True, False])


def plan_of_names(name):
    one = [{"video": name, "reason": name}]
    return RunPlan(
        source=name,
        layout=name,
        videos=1,
        clips=1,
        references=1,
        references_are_images=False,
        masked=1,
        buckets=[BucketPlan("9x64x64", 1, 1, 48, 1, "")],
        quarantined=one,
        dropped=one,
        shortened=[{"video": name, "used": 1.0, "total": 2.0}],
        near_duplicates=[{"first": name, "second": name, "group": name}],
        unlisted=[name],
        counts={"rows": {"used": 1}, "clips": {"used": 1}, "files": {name: 1}},
        skipped={name: [name]},
        remarks=[name],
        crossing=[name],
        silent=[name],
        split={"train": {"clips": 1, "videos": 1}, "val": {"clips": 1, "videos": 1}},
        validation_groups=[name],
        small_set=["kfold", "refit"],
        batch_size=1,
        max_steps=1,
        steps_per_pass=1,
        tokens_per_step=1,
        exposures={"min": 1, "mean": 1, "max": 1},
        band="moderate",
        checks={
            key: 1
            for key in ("count", "first_interval", "last_interval", "held_out_clips", "train_eval_clips", "share")
        },
        typical_stop={"exposures": 1.0, "steps": 1.0, "checks_share": 0.1},
        advice=name,
        conservative_max_steps=1,
        moderate_max_steps=1,
        encode={key: 1 for key in ("clips", "captions", "gigabytes", "decode_seconds")},
    )


def console(terminal):
    return Console(file=io.StringIO(), force_terminal=terminal, width=10_000, color_system=None)


@TERMINALS
@settings(max_examples=20, deadline=None)
@given(NAMES)
@example("v[/x]")
def test_in_a_plan(terminal, name):
    shown = console(terminal)
    print_plan(plan_of_names(name), shown)
    assert shown.file.getvalue().count(name) >= 11


@TERMINALS
@settings(max_examples=20, deadline=None)
@given(NAMES)
@example("v[/x]")
def test_in_a_run_and_its_folds(terminal, name):
    shown = console(terminal)
    print_facts([("everything else", name)], shown)
    assert name in shown.file.getvalue()
    shown = console(terminal)
    fold = {"fold": 0, "num_clips": {"val": 1}, "stop_step": 1, "stopped_by": name, "kept_step": 1, "best_step": 1}
    folds = [fold | {"kept_gain": 0.1, "exposures_at_kept": 1.0}]
    told = {
        "folds": folds,
        "gain": {"mean": 0.1, "min": 0.1, "max": 0.1},
        "steps": 1,
        "exposures": 1.0,
        "lower_bound": False,
    }
    print_folds(told, [f"--data.source={name}"], Path("runs") / name.replace("/", "") / "folds.json", shown)
    assert shown.file.getvalue().count(name) >= 2


def test_a_long_name_is_cut_and_controls_are_escaped():
    shown = console(False)
    print_plan(plan_of_names("\x1b[2J" + "x" * 5000), shown)
    lines = shown.file.getvalue().splitlines()
    listed = [line for line in lines if line.startswith("  ")]
    assert max(map(len, listed)) < 500
    assert not any("\x1b" in line for line in listed)
