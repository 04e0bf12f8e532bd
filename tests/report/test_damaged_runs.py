"""Pages of runs whose files were cut, changed by hand or come from a stranger: made, or told in one line."""

import json
import shutil

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vidlit.errors import UserError
from vidlit.report import write_report
from vidlit.runs.directory import RunDirectory
from vidlit.runs.record import RunRecord


@pytest.fixture
def run(finished_run, tmp_path):
    """A copy without what only makes pages long."""
    copied = shutil.copytree(
        finished_run, tmp_path / "runs" / "0", ignore=shutil.ignore_patterns("*.ckpt", "weights", "*.html")
    )
    return RunDirectory(copied)


FILES = (
    "summary.json",
    "decisions.jsonl",
    "exposure.csv",
    "metrics.csv",
    "config.yaml",
    "signals.json",
    "dataset.csv",
    "left_out.csv",
)
DAMAGE = {
    "half a summary": ("summary.json", '{"stopped_by": "max_steps",'),
    "a summary without what pages show": ("summary.json", '{"stopped_by": "max_steps"}'),
    "a summary that is a list": ("summary.json", "[1, 2]"),
    "numbers that are words": ("summary.json", '{"stopped_by": "x", "exposures": "many", "stop_step": {}}'),
    "decisions without verdicts": ("decisions.jsonl", '{"step": 4}\n'),
    "a decision that is a list": ("decisions.jsonl", "[4]\n"),
    "another table": ("exposure.csv", "a,b\n1,2\n"),
    "no number": ("exposure.csv", "clip_id,video,split,exposures\na,b,train,many\n"),
    "signals that are none": ("signals.json", '{"a": 1}'),
    "a config that is a list": ("config.yaml", "- a\n- b\n"),
    "no YAML": ("config.yaml", "a: [\n"),
    "a bomb": (
        "config.yaml",
        "a: &a [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40)).replace("*a0", "*a"),
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_file_of_a_run_is_one_line(run, name):
    file, text = DAMAGE[name]
    (run.path / file).write_text(text)
    with pytest.raises(UserError) as caught:
        write_report([run.path])
    line = str(caught.value)
    assert str(run.path) in line
    assert len(line.splitlines()) == 1
    assert len(line) < 700


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_file_cut_or_changed_anywhere_is_read_or_told(run, data):
    path = run.path / data.draw(st.sampled_from([name for name in FILES if (run.path / name).is_file()]))
    content = bytearray(path.read_bytes())
    position = data.draw(st.integers(0, len(content)))
    changed = content[:position] + data.draw(st.binary(max_size=3)) + content[position + data.draw(st.integers(0, 3)) :]
    told = ""
    try:
        path.write_bytes(changed if data.draw(st.booleans()) else content[:position])
        write_report([run.path])
    except UserError as error:
        told = str(error)
    finally:
        path.write_bytes(content)
    assert len(told.splitlines()) <= 1


def test_a_page_shows_no_file_from_outside_the_run(run, tmp_path):
    sample = next(path for paths in RunRecord(run.path).samples.values() for path in paths)
    private = tmp_path / "private.mp4"
    private.write_bytes(b"private film" * 100)
    (tmp_path / "private.json").write_text(json.dumps({"prompt": "a private caption"}))
    (sample.parent / "9_stolen.mp4").symlink_to(private)
    decisions = run.read_decisions()
    for decision in decisions:
        for verdict in decision["verdicts"]:
            if verdict["signal"] == "copies":
                verdict["evidence"] |= {"pair": str(private), "sample": "../../private.mp4", "copies": 1}
    run.decisions.write_text("".join(json.dumps(decision) + "\n" for decision in decisions))
    linked = {"left_out.csv": "name,what,reason\nsecret name,x,y\n", "config.yaml": "secret: option\n"}
    for name, content in linked.items():
        (tmp_path / name).write_text(content)
        (run.path / name).unlink()
        (run.path / name).symlink_to(tmp_path / name)
    text = write_report([run.path]).read_text()
    assert "secret" not in text
    assert "private film" not in text
    assert "cHJpdmF0ZSBmaWxt" not in text  # the same in base64
    assert "private.mp4" not in text.replace("../../private.mp4", "")
    assert "a private caption" not in text
