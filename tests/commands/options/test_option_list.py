import json

from vidlit.commands.options.option_list import FILE, Option, gather


def test_the_packaged_list_is_what_the_parsers_have():
    packaged, now = json.loads(FILE.read_text()), json.loads(json.dumps(gather()))
    advice = "options have changed: run `python -m vidlit.commands.options.option_list` and commit what it writes"
    assert packaged == now, advice


def test_an_option_is_read_as_it_was_written():
    option = Option(kinds=["int", "null"], choices=["a"], fields={"rank": Option(is_open=True)})
    assert Option.from_json(json.loads(json.dumps(option.as_json()))) == option
