"""Signals and callbacks from outside the package: the pages' examples, named on the command line."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vidlit import plugins
from vidlit.__main__ import main
from vidlit.errors import UserError
from vidlit.runs import logged_names
from vidlit.runs.closing import closing_paragraph
from vidlit.runs.directory import RunDirectory
from vidlit.signals.overfit_stopping import check_policy

PAGES = Path(__file__).parents[1] / "docs/extending"


@pytest.fixture(autouse=True)
def forget_plugins(monkeypatch):
    """No plugin of one test is there in the next, nor are the metrics that it logs."""
    monkeypatch.setattr(logged_names, "_PLUGGED", {})
    yield
    for name in ("my_rules", "my_log", "second_copies"):
        sys.modules.pop(name, None)


def write(page, title, folder):
    """The code of a page, as the file that it is for."""
    (code,) = re.findall(
        rf'^```python title="{title}"\n(.*?)^```$', (PAGES / page).read_text(), re.MULTILINE | re.DOTALL
    )
    path = folder / title
    path.write_text(code)
    return path


@pytest.fixture
def my_rules(tmp_path):
    return write("signal.md", "my_rules.py", tmp_path)


def test_a_signal_from_outside_works_in_every_part_of_a_run(quickstart, tmp_path, my_rules, capsys):
    words = [*quickstart(trainer__max_steps=12), "--gradients.limit=1.0"]
    assert main([*words, f"--plugin={my_rules}"]) == 0
    run = RunDirectory(tmp_path / "runs/quickstart/0")
    said = capsys.readouterr().out

    # It stopped the run, and the closing text says so, and how to go on.
    summary = run.read_summary()
    assert (summary["stopped_by"], summary["stop_step"]) == ("gradients", 4)
    assert run.read_decisions()[-1]["verdicts"][-1]["evidence"]["limit"] == 1.0
    assert "Stopped at step 4 of 12" in said
    assert "by restless gradients. The longest gradient is" in said
    go_on = f"--ckpt_path {run.last_checkpoint} --plugin {my_rules} --overfit_stopping.policy.gradients warn"
    assert go_on in said

    # The model card and the report, made by a process that has not loaded the plugin.
    card = (run.weights / "README.md").read_text()
    assert "by restless gradients: gradients had become restless." in card
    made = subprocess.run(
        [sys.executable, "-m", "vidlit", "report", str(run.path)],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    page = Path(made.stdout.strip()).read_text()
    assert "by restless gradients" in page
    assert "Largest gradient against the usual one" in page

    # The dashboard has a chart for its metric.
    assert main(["dashboard", "--project=p", "--dry-run", "--plugin", str(my_rules)]) == 0
    assert "gradients/spread" in capsys.readouterr().out
    assert main(["dashboard", "--project=p", "--dry-run"]) == 0

    # A resumed run needs it, and says so: by the checkpoint's run, and by a saved config.
    again = [*quickstart(trainer__max_steps=8), f"--ckpt_path={run.last_checkpoint}"]
    assert main(again) == 2
    assert f"was begun with --plugin {my_rules}: add that to the command." in capsys.readouterr().err
    assert main(["fit", f"--config={run.config}", f"--ckpt_path={run.last_checkpoint}"]) == 2
    assert f"was begun with --plugin {my_rules}: add that to the command." in capsys.readouterr().err
    warn = ["--gradients.limit=1.0", "--overfit_stopping.policy.gradients=warn"]
    assert main([*again, *warn, "--plugin", str(my_rules)]) == 0
    assert run.read_summary()["stopped_by"] == "max_steps"
    saved = torch.load(run.last_checkpoint, weights_only=True)["callbacks"]["Gradients"]["norms"]
    assert len(saved) == 8


def test_a_callback_from_outside_takes_part_in_a_fit(quickstart, tmp_path):
    my_log = write("callback.md", "my_log.py", tmp_path)
    words = quickstart(trainer__max_steps=4, check_log__file_name="notes.txt")
    assert main([*words, "--plugin", str(my_log)]) == 0
    assert re.fullmatch(r"4 \d\.\d{4} of \d clips\n", (tmp_path / "runs/quickstart/0/notes.txt").read_text())


def test_a_yaml_file_cannot_name_a_plugin(quickstart, tmp_path, my_rules, capsys):
    config = tmp_path / "evil.yaml"
    config.write_text(f"plugin: {my_rules}\n")
    assert main([*quickstart(), f"--config={config}"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "named on the command line only" in line
    assert "my_rules" not in sys.modules


def test_classes_of_a_plugin_and_no_others_may_be_named(quickstart, tmp_path, my_rules, capsys, monkeypatch):
    """What is not a plugin is not even imported."""
    monkeypatch.syspath_prepend(tmp_path)
    named = "--trainer.callbacks=[{class_path: my_rules.Gradients}]"
    assert main([*quickstart(), named]) == 2
    assert "my_rules" in capsys.readouterr().err
    assert "my_rules" not in sys.modules


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("missing.py", None, "no such file"),
        ("my-rules.py", "", "rename|such as my_rules.py"),
        ("json.py", "", "there is a module called json already"),
        ("broken.py", "x = 1\nraise KeyError('a')\n", r"KeyError: 'a' \(broken.py, line 2\)"),
    ],
)
def test_a_plugin_that_cannot_be_loaded_is_one_line(tmp_path, name, text, said):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=said), plugins.active([str(tmp_path / name)]):
        raise AssertionError
    assert Path(name).stem == "json" or Path(name).stem not in sys.modules


def test_a_module_that_is_not_there_is_one_line():
    with (
        pytest.raises(UserError, match=r"--plugin no\.such\.rules: No module named 'no'"),
        plugins.active(["no.such.rules"]),
    ):
        raise AssertionError


def test_an_installed_package_names_its_plugin_by_an_entry_point(tmp_path, monkeypatch, my_rules):
    metadata = tmp_path / "rules-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: rules\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[vidlit.plugins]\nsteady = my_rules\n")
    monkeypatch.syspath_prepend(tmp_path)
    with plugins.active(["steady"]):
        assert plugins.modules() == ["my_rules"]
        assert [kind.__name__ for kind in plugins.callbacks().values()] == ["Gradients"]
        assert list(plugins.callbacks()) == ["gradients"]
    assert plugins.callbacks() == {}


def test_a_signal_cannot_take_the_name_of_another(tmp_path):
    path = tmp_path / "second_copies.py"
    path.write_text(
        "from vidlit.signals.signal import Signal\nclass Mine(Signal):\n    name = 'copies'\n"
        "    def verdict(self): ...\n"
    )
    with plugins.active([str(path)]), pytest.raises(UserError, match="there is a signal called copies already"):
        plugins.callbacks()


def test_the_option_is_taken_out_wherever_it_stands():
    assert plugins.take(["fit", "--plugin", "a.py", "--x=1", "--plugin=b.c"]) == (["fit", "--x=1"], ["a.py", "b.c"])
    with pytest.raises(UserError, match="needs a name"):
        plugins.take(["fit", "--plugin"])


def test_the_policy_names_signals_that_there_are():
    assert check_policy({"copies": "warn", "divergence": False}) == {"copies": "warn", "divergence": "off"}
    with pytest.raises(
        UserError, match=r"policy\.copys: there is no such signal\. Did you mean copies\? Signals: copies"
    ):
        check_policy({"copys": "warn"})
    for mode in ("maybe", True):
        with pytest.raises(UserError, match="must be stop, warn or off"):
            check_policy({"copies": mode})


def test_a_run_says_what_its_signals_are(finished_run):
    directory = RunDirectory(finished_run)
    signals = {each["name"]: each for each in json.loads(directory.signals.read_text())}
    assert list(signals) == ["divergence", "exposure", "drift", "copies", "diversity"]
    assert signals["divergence"]["title"] == "overfitting"
    summary = {**directory.read_summary(), "stopped_by": "divergence+exposure"}
    text = closing_paragraph(summary, directory)
    assert "by overfitting and exposures." in text
    assert text.endswith("--overfit_stopping.policy.divergence warn --exposure.hard_cap null")
