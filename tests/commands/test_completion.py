"""The scripts, in a real shell."""

import shutil
import subprocess

import pytest

from vidlit.__main__ import main

ASK = """
source {script}
ask() {{ COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _vidlit; echo "${{COMPREPLY[@]}}"; }}
ask {words}
"""


@pytest.fixture
def complete(tmp_path, capsys):
    """What bash answers to a TAB after these words."""
    assert main(["completion", "bash"]) == 0
    script = tmp_path / "vidlit.bash"
    script.write_text(capsys.readouterr().out)

    def answer(*words):
        text = ASK.format(script=script, words=" ".join(f"'{word}'" for word in ("vidlit", *words)))
        done = subprocess.run(["bash", "-c", text], capture_output=True, text=True, check=True, cwd=tmp_path)
        assert done.stderr == ""
        return done.stdout.split()

    return answer


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
def test_bash_completes_commands_options_and_values(complete, tmp_path):
    assert complete("pl") == ["plan"]
    assert complete("fit", "--data.stor") == ["--data.store"]
    assert complete("predict", "--promp") == ["--prompts"]
    assert complete("fit", "--promp") == []
    assert complete("fit", "--export.base_parts", "co") == ["copy"]
    assert complete("fit", "--export.base_parts", "=", "co") == ["copy"]
    assert complete("fit", "--config", "quick") == ["quickstart"]
    (tmp_path / "mine.yaml").touch()
    assert complete("fit", "--config", "mi") == ["mine.yaml"]


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_get_a_script(shell, capsys, tmp_path):
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert "export.base_parts" in script
    if shutil.which(shell):
        (tmp_path / "script").write_text(script)
        done = subprocess.run([shell, "-n", str(tmp_path / "script")], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_a_shell_nobody_knows_is_one_line(capsys):
    assert main(["completion", "tcsh"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
