import io

import pytest
from rich.console import Console

from vidlit.runs.wording import say

PATH = "runs/" + 8 * "a_long_name/" + "weights"


@pytest.mark.parametrize("width", [80, 60, 30])
def test_a_terminal_breaks_lines_between_words_alone(width):
    text = f"Step 100 is kept: its validation loss is -25.9 % against the base model's. Weights: {PATH} [bold] :smile:"
    shown = io.StringIO()
    say(text, Console(file=shown, force_terminal=True, width=width, color_system=None))
    lines = shown.getvalue().splitlines()
    assert " ".join(lines) == text
    assert all(len(line) <= width or line == PATH for line in lines)
    assert len(lines) > 2


def test_what_is_no_terminal_gets_one_line():
    shown = io.StringIO()
    say(30 * "word ", Console(file=shown, width=60))
    assert shown.getvalue() == 30 * "word " + "\n"
