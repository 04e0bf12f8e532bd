import io
import logging
import re

from rich.console import Console

from vidlit.__main__ import main
from vidlit.callbacks.run_overview import print_facts
from vidlit.sampling.sampling_progress import track_sampling


def test_a_fit_says_what_it_does_and_did(quickstart, tmp_path, capsys):
    assert main(quickstart(trainer__max_steps=4)) == 0
    printed = capsys.readouterr().out
    assert "clips: 6 of 3 recordings for training, 6 of 3 recordings for validation\n" in printed
    assert re.search(r"^buckets: (\d+x48x80|\d+x64x64) \(\d\)", printed, re.MULTILINE)
    # 4 steps of 2 samples over 3 videos; 10 exposures each are 15 steps, 50 are 75
    assert "steps: at most 4 of 2 samples, from step 0\n" in printed
    forecast = "2.67 of each video at the last step: conservative (conservative up to step 15, moderate up to 75)"
    assert f"exposures: {forecast}\n" in printed
    assert re.search(r"^parameters: (1\.2\d M) of \1 trained \(100 %\)$", printed, re.MULTILINE)
    run = tmp_path / "runs" / "quickstart" / "0"
    assert re.search(r"^memory: 0\.02 GB for weights", printed, re.MULTILINE)
    assert "stopped by: max_steps, at step 4\n" in printed
    assert f"weights: {run / 'weights'}\n" in printed
    assert "report:" not in printed  # none was made


def test_an_adapter_trains_a_part(quickstart, capsys):
    assert main([*quickstart(trainer__max_steps=4), "--model.adapter.rank=2"]) == 0
    (share,) = re.findall(r"trained \(([\d.]+) %\)", capsys.readouterr().out)
    assert 0 < float(share) < 20


def test_a_table_on_a_terminal():
    written = io.StringIO()
    print_facts([("clips", "[6] of 3")], Console(file=written, force_terminal=True, width=60))
    assert re.search(r"clips.*\[6\] of 3", written.getvalue())
    assert "clips:" not in written.getvalue()


def test_sampling_goes_through_everything_once():
    assert list(track_sampling([[0, 1], [2]], shown=True)) == [[0, 1], [2]]


def test_verbose_lets_lightning_speak(quickstart, caplog, monkeypatch):
    monkeypatch.setenv("VIDLIT_VERBOSE", "")
    # Lightning keeps its messages from the root logger where that had no handler when Lightning was imported.
    for name in (
        "lightning",
        "lightning.pytorch",
        "lightning.pytorch.utilities",
        "lightning.pytorch.utilities.rank_zero",
    ):
        caplog.set_level(logging.INFO, logger=name)
        monkeypatch.setattr(logging.getLogger(name), "propagate", True)
        monkeypatch.setattr(logging.getLogger(name), "disabled", False)
    assert main([*quickstart(trainer__max_steps=4), "-v"]) == 0
    assert "GPU available" in caplog.text
