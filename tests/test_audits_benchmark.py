"""The runs whose audits are known: what the table counts, and which clips they take. No run is trained here."""

import json

import pytest

from benchmarks.audits import __main__ as audits
from benchmarks.audits.runs import Kind, copy_real, mean_motion, write_procedural
from benchmarks.audits.table import Outcome, collapsed, copied, first, outcome, run_line, summary_table

STEPS = (0, 100, 200, 300)


def row(kind="copying", seed=1, near=(0, 0, 0, 0), distance=(1.0, 1.0, 1.0, 1.0), alike=(0.0,) * 4, variety=(0.0,) * 4):
    """A run of eight training and eight validation prompts; each audit's numbers are of all training prompts."""
    audits = []
    for number, step in enumerate(STEPS):
        mine = [distance[number] * (1 + 0.01 * k) for k in range(8)] + [1 + 0.01 * k for k in range(8)]
        audits.append(
            {
                "step": step,
                "near": [1] * near[number] + [0] * (8 - near[number]),
                "alike": alike[number],
                "distances": mine,
                "ratios": mine,
                "variety": variety[number],
            }
        )
    trained = [1] * 8 + [0] * 8
    return {
        "kind": kind,
        "seed": seed,
        "clips": "procedural",
        "best_step": 100,
        "trained": trained,
        "groups": list(range(16)),
        "few_held_out": False,
        "audits": audits,
    }


COPYING = row(near=(0, 1, 2, 8), distance=(1.0, 0.6, 0.4, 0.3))
COLLAPSING = row("one clip", alike=(0.0, 0.1, 0.3, 0.9), variety=(0.0, -0.2, -0.5, -0.9))
HONEST = row("honest", variety=(-0.5, -0.1, -0.4, -0.2))  # one warning, not in time for anything


def test_the_first_step_of_a_sign_is_never_that_of_the_base_model():
    assert first(STEPS, [True, False, True, True]) == 200
    assert first(STEPS, [True, False, False, False]) is None


def test_what_is_true_is_told_by_shares():
    assert copied(COPYING) == [False, False, True, True]
    assert copied(row(near=(2, 2, 2, 2))) == [False] * 4  # so near the base model came, too
    assert collapsed(COLLAPSING) == [False, False, True, True]


def test_a_stop_comes_one_audit_after_the_first_copies():
    found = outcome(COPYING, "copies")
    assert found == Outcome(shown=200, warned=100, stopped=300, last=300)
    assert found.in_time
    assert not found.early


def test_a_warning_after_the_first_audit_is_not_in_time():
    assert not Outcome(shown=200, warned=300, stopped=None, last=300).in_time
    assert not Outcome(shown=200, warned=None, stopped=None, last=300).in_time


@pytest.mark.parametrize("shown", [None, 200])
def test_a_stop_before_the_sign_is_early(shown):
    assert Outcome(shown, 100, 100, 300).early


def cell(table, name, column):
    (line,) = [line for line in table.splitlines() if line.startswith(f"| {name}")]
    return [each.strip() for each in line.strip("|").split("|")][column]


def test_the_tables_count_runs_and_audits():
    table = summary_table([COPYING, COLLAPSING, HONEST, {**HONEST, "seed": 2}])
    assert cell(table, "copies: runs warned", 1) == "-"
    assert cell(table, "copies: runs warned", 2) == "1 of 1"
    assert cell(table, "runs without copies: stopped", 3) == "0 of 3"
    assert cell(table, "collapse: runs warned", 2) == "1 of 1"
    assert cell(table, "runs without collapse: stopped", 3) == "0 of 3"
    assert cell(table, "honest", 2) == "2"
    # of plenty of data three audits a run, of the others those up to the best step
    assert cell(table, "audits on plenty of data", 2) == "0 of 5"
    assert cell(table, "... or warned", 2) == "1 of 5"


def test_a_run_is_a_line():
    line = run_line(COPYING)
    assert "copies shown 200, warned 100, stopped 300" in line
    assert "diversity shown -, warned -, stopped -" in line


def test_the_stored_table_is_what_the_signals_say_of_the_stored_runs(capsys):
    audits.main(["--stored"])
    assert capsys.readouterr().out.strip() == audits.TABLE.read_text().strip()
    documented = (audits.TABLE.parents[3] / "docs" / "science.md").read_text()
    assert audits.TABLE.read_text().split("\n\n")[1].strip() in documented
    rows = json.loads(audits.STORED.read_text())
    assert {row["seed"] % 2 for row in rows} == {0, 1}


def test_still_clips_are_chosen_by_how_much_they_move(tmp_path):
    clips = write_procedural(Kind(4, held_out=2), 0, tmp_path / "clips")
    motion = {path.name: mean_motion(path) for path in clips.glob("*.mp4")}
    chosen = copy_real(Kind(1, held_out=1, motion="still"), 0, clips, tmp_path / "chosen")
    assert {path.name for path in chosen.glob("*.mp4")} == set(sorted(motion, key=lambda name: motion[name])[:2])
    frozen = write_procedural(Kind(1, held_out=1, motion="still", one_caption=True), 0, tmp_path / "frozen")
    assert max(map(mean_motion, frozen.glob("*.mp4"))) < 0.5 < min(motion.values())
    assert (frozen / "metadata.csv").read_text().count("A video.") == 2
