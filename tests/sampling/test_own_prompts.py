import json
import re
import subprocess
import sys

import pytest

from vidlit.__main__ import main
from vidlit.errors import UserError
from vidlit.models.family import open_family
from vidlit.report.videos import InPage, samples
from vidlit.runs.record import RunRecord
from vidlit.sampling.own_prompts import read_own_prompts
from vidlit.stopping.schedule import audit_evaluations
from vidlit.video.buckets import Bucket

TABLE = "prompt,seed,resolution,num_frames\n{}\n"
ROWS = ("A red disc moves right.,7,64x64,9", "Two rings.,,,", "A red disc moves right.,8,64x64,9")


@pytest.fixture
def table(tmp_path):
    """Three prompts of two sizes."""
    path = tmp_path / "mine.csv"
    path.write_text(TABLE.format("\n".join(ROWS)))
    return path


def losses(run):
    """What a run has learned and seen, without how fast it was."""
    curves = RunRecord(run).curves
    return {name: curve.values.tolist() for name, curve in curves.items() if not name.startswith("perf/")}


def names(folder):
    return sorted(path.name for path in folder.glob("prompt_*.mp4"))


def test_they_are_sampled_at_each_audit_and_at_the_end_as_predict_would(quickstart, tmp_path, table, capsys):
    options = {"samples__num_steps": 2, "samples__guidance_scale": 2.0, "samples__every_num_checks": 2}
    options |= {"trainer__max_steps": 8, "overfit_stopping__restore": "last"}
    options |= {"data__encoding__dtype": "float32", "data__store": tmp_path / "exact"}  # predict rounds no captions
    assert main(quickstart(run__name="without", **options)) == 0
    assert main(quickstart(samples__prompts=table, **options)) == 0
    run = tmp_path / "runs" / "quickstart" / "0"
    assert losses(run) == losses(tmp_path / "runs" / "without" / "0")  # training knows nothing of them
    assert RunRecord(run).curve("perf/audit_share").steps.tolist() == [8]  # they are counted

    red = "a_red_disc_moves_right.mp4"
    expected = [f"prompt_00_{red}", "prompt_01_two_rings.mp4", f"prompt_02_{red}"]
    assert [folder.name for folder in sorted((run / "samples").iterdir())] == ["step_000000", "step_000008"]
    for step in (0, 8):
        assert names(run / "samples" / f"step_{step:06d}") == expected
    end = run / "samples" / "step_000008"
    told = [json.loads((end / name).with_suffix(".json").read_text()) for name in expected]
    assert [(each["seed"], each["size"], each["step"]) for each in told] == [
        (7, "9x64x64", 8),
        (0, "17x64x64", 8),
        (8, "9x64x64", 8),
    ]
    assert (end / "prompt_contact_sheet.png").is_file()

    words = ["predict", "--config", str(run / "config.yaml"), "--ckpt_path", "last", "--prompts", str(table)]
    assert main([*words, "--output", str(tmp_path / "predicted")]) == 0
    for name in expected:
        predicted = tmp_path / "predicted" / name.removeprefix("prompt_")
        assert predicted.read_bytes() == (end / name).read_bytes(), name

    # the report lists them, over time, before those of the audits
    rows = samples(RunRecord(run), InPage(run / "report.html", 100))
    assert [(row["kind"], row["prompt"]) for row in rows] == [("prompt", row["prompt"]) for row in told]
    assert [[shot["step"] for shot in row["shots"]] for row in rows] == [[0, 8]] * 3


def test_a_run_goes_on_with_other_prompts_and_checks_as_it_would_have(quickstart, tmp_path, table, capsys):
    options = {"samples__num_steps": 1, "samples__num_audit": 2, "samples__audit_steps": 1}
    (tmp_path / "one.txt").write_text("\nA blue ring.\n")
    assert main(quickstart(run__name="whole", trainer__max_steps=12, **options)) == 0
    assert main(quickstart(trainer__max_steps=8, samples__prompts=table, **options)) == 0
    capsys.readouterr()
    words = quickstart(trainer__max_steps=12, samples__prompts=tmp_path / "one.txt", **options)
    assert main([*words, "--ckpt_path=last"]) == 0
    assert "samples.prompts" in capsys.readouterr().out  # the change is said
    run = tmp_path / "runs" / "quickstart" / "0"
    made = {step: names(run / "samples" / f"step_{step:06d}") for step in RunRecord(run).samples}
    assert len(made[0]) == 3
    assert made[max(made)] == ["prompt_00_a_blue_ring.mp4"]
    there, here = losses(tmp_path / "runs" / "whole" / "0"), losses(run)
    for name in ("val/log_ratio", "train/loss", "exposure/mean"):
        assert here[name] == there[name], name


@pytest.mark.slow
def test_two_ranks_make_the_videos_of_one(quickstart, tmp_path, table):
    options = {"samples__num_steps": 2, "samples__prompts": table, "trainer__max_steps": 2, "data__batches__size": 2}
    assert main(quickstart(run__name="one", **options)) == 0
    words = quickstart(run__name="two", trainer__devices=2, trainer__strategy="ddp", **options)
    done = subprocess.run([sys.executable, "-m", "vidlit", *words], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    one, two = (tmp_path / "runs" / name / "0" / "samples" / "step_000000" for name in ("one", "two"))
    assert len(names(one)) == 3
    assert names(two) == names(one)
    for name in names(one):
        assert (two / name).read_bytes() == (one / name).read_bytes(), name


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ("A disc.,1,63x64,9", r"--samples.prompts \S*mine.csv line 3 \('A disc.'\): .*63"),
        ("A disc.,one,64x64,9", r"mine.csv line 3: seed and num_frames must be whole numbers"),
        (",1,64x64,9", r"mine.csv line 3: the prompt is empty"),
    ],
)
def test_a_broken_row_is_told_before_training(quickstart, tmp_path, row, told, capsys):
    path = tmp_path / "mine.csv"
    path.write_text(TABLE.format("A ring.,,,\n" + row))
    assert main(quickstart(samples__prompts=path)) == 2
    error = capsys.readouterr().err
    assert re.search(f"vidlit: error: (\\S* )?\\S*{told}", error), error
    assert not (tmp_path / "runs" / "quickstart" / "0" / "metrics.csv").exists()


@pytest.mark.parametrize("name", ["mine.json", "a prompt"])
def test_other_files_and_words_are_refused(name):
    with pytest.raises(UserError, match=r"--samples.prompts .*: give a text file"):
        read_own_prompts(name)


def test_a_file_that_is_not_there_is_told(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"--samples.prompts .*mine.txt: no such file"):
        read_own_prompts(tmp_path / "mine.txt")
    monkeypatch.setenv("FOLDER", str(tmp_path))
    (tmp_path / "mine.txt").write_text("A ring.\n\nA disc.")
    found = read_own_prompts("$FOLDER/mine.txt")
    assert [(prompt.text, prompt.place) for prompt in found] == [
        ("A ring.", f"{tmp_path / 'mine.txt'} line 1"),
        ("A disc.", f"{tmp_path / 'mine.txt'} line 3"),
    ]


def test_they_make_audits_rarer(quickstart, demo, tmp_path, table, monkeypatch):
    costs = []
    monkeypatch.setattr("vidlit.signals.sample_videos.audit_interval", lambda cost, *_: costs.append(cost) or 100)
    options = {"samples__num_steps": 3, "samples__guidance_scale": 2.0, "trainer__max_steps": 4}
    options |= {"data__split__val_fraction": 0.5, "data__buckets": "[17x48x80]"}
    assert main(quickstart(samples__prompts=table, **options)) == 0
    family = open_family(str(demo.dir / "base"))
    small, large = (
        Bucket.parse(text).tokens(family.compression[0], family.pixel_multiple) for text in ("9x64x64", "17x48x80")
    )
    assert small < large
    assert costs == [pytest.approx((2 * small / large + 1) * audit_evaluations(1, 6))]
