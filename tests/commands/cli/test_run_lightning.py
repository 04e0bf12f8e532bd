import io

from vidlit.commands.cli.run_lightning import loading


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_is_told_what_loads_and_the_line_is_gone_afterwards(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    with loading("torch"):
        assert terminal.getvalue() == "loading torch ..."
    assert terminal.getvalue().endswith("\r\033[K")


def test_a_file_is_told_nothing(monkeypatch):
    file = io.StringIO()
    monkeypatch.setattr("sys.stderr", file)
    with loading("torch"):
        pass
    assert file.getvalue() == ""
