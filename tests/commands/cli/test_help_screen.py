import pytest

from vidlit.__main__ import main
from vidlit.commands import summaries
from vidlit.commands.cli.help_screen import SCREENS, all_commands, one_command
from vidlit.commands.options.checking import is_known
from vidlit.commands.options.option_list import option_lists


def test_every_command_has_a_line():
    assert {"fit", "plan", "report", "completion"} < set(summaries())
    for name, summary in summaries().items():
        assert f"  {name} " in all_commands()
        assert summary.endswith("."), name
    assert max(map(len, all_commands().splitlines())) <= 80


@pytest.mark.parametrize("name", SCREENS)
def test_a_command_has_one_screen_of_options_that_exist(name):
    lines = one_command(name).splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 80
    unknown = [o for options in SCREENS[name].values() for o in options if not is_known(o, option_lists()[name])]
    assert unknown == []


def test_every_command_that_reads_yaml_has_a_screen():
    assert set(SCREENS) == {name for name, options in option_lists().items() if options.reads_yaml}


def test_help_all_shows_the_rest(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["plan", "--help-all"])
    assert ended.value.code == 0
    assert "--trainer.gradient_clip_algorithm" in capsys.readouterr().out
    assert main(["plan", "--help"]) == 0
    printed = capsys.readouterr().out
    assert "--help-all" in printed
    assert "--trainer.gradient_clip_algorithm" not in printed
