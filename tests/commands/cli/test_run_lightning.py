import io

import pytest

from vidlit.__main__ import main
from vidlit.callbacks.graceful_interrupt import GracefulInterrupt
from vidlit.commands.cli.run_lightning import loading
from vidlit.training.module import VideoDiffusionModule


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_is_told_what_loads_and_the_line_is_gone_afterwards(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with loading("torch"):
        assert terminal.getvalue() == "loading torch ..."
    assert terminal.getvalue().endswith("\r\033[K")


def test_a_file_is_told_nothing(monkeypatch):
    file = io.StringIO()
    monkeypatch.setattr("sys.stderr", file)
    with loading("torch"):
        pass
    assert file.getvalue() == ""


@pytest.mark.parametrize("how", ["interrupted", "failed"])
def test_a_run_that_is_cut_short_has_a_report(quickstart, tmp_path, monkeypatch, capsys, how):
    step, taken = VideoDiffusionModule.training_step, []

    def training_step(self, batch, batch_idx):
        taken.append(batch_idx)
        if len(taken) == 6 and how == "interrupted":
            next(each for each in self.trainer.callbacks if isinstance(each, GracefulInterrupt))._note(2, None)
        if len(taken) == 6 and how == "failed":
            raise RuntimeError("the cat sat on the keyboard")
        return step(self, batch, batch_idx)

    monkeypatch.setattr(VideoDiffusionModule, "training_step", training_step)
    assert main(quickstart(run__report=True)) == {"interrupted": 130, "failed": 1}[how]
    page = (tmp_path / "runs" / "quickstart" / "0" / "report.html").read_text()
    assert {"interrupted": "Interrupted at step 6 of 12", "failed": "Failed at step 5 of 12"}[how] in page
    assert "checkpoints/last.ckpt" in page
    assert {"interrupted": "saved. Go on with --ckpt_path", "failed": "the cat sat"}[how] in capsys.readouterr().err
