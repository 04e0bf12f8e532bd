import io
import json
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
    assert f"run: {run}\n" in printed
    assert re.search(r"^base: .*/base$", printed, re.MULTILINE)
    assert re.search(r"^device: CPU, \d+ cores, \d+ GB$", printed, re.MULTILINE)
    assert "precision: 32-true\n" in printed
    assert "learning rate: 0.002 (AdamW), after 2 steps of warm-up\n" in printed
    assert "adapter: none: the weights themselves are trained\n" in printed
    assert "warning: few validation recordings (3): the stop was measured with 6 and more." in printed
    assert printed.count("Trained all 4 steps in") == 1
    assert printed.count(f"weights: {run / 'weights'}\n") == 1
    assert "report:" not in printed  # none was made

    # One check, which is the best: more steps may be better still.
    summary = json.loads((run / "summary.json").read_text())
    assert summary["still_improving"] == (summary["best_step"] == 4) == ("raise --trainer.max_steps" in printed)
    more = f"--ckpt_path {run / 'checkpoints' / 'last.ckpt'} --trainer.max_steps 8"
    assert (f"go on with: {more}\n" in printed) == summary["still_improving"]
    assert main([*quickstart(trainer__max_steps=8), "--ckpt_path=last"]) == 0
    assert "steps: at most 8 of 2 samples, from step 4\n" in capsys.readouterr().out


def test_an_adapter_trains_a_part(quickstart, capsys):
    assert main([*quickstart(trainer__max_steps=4), "--model.adapter.rank=2"]) == 0
    printed = capsys.readouterr().out
    assert "adapter: LoRA of rank 2, alpha 16\n" in printed
    (share,) = re.findall(r"trained \(([\d.]+) %\)", printed)
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
