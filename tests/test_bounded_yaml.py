"""YAML from a stranger: what it stands for is bounded, and measuring it takes no longer than reading it."""

import time
from itertools import pairwise

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from vidlit.bounded_yaml import MAX_BYTES, TooLarge, check_size, compose, explain, load_yaml, read_yaml
from vidlit.commands.cli.configs import packaged_configs
from vidlit.commands.options.checking import check
from vidlit.errors import UserError

LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in pairwise("abcdefghij")
)
MERGES = "a0: &a0 {k: 1}\n" + "".join(f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}]}}\n" for n in range(1, 40))
BOMBS = {
    "aliases of aliases": LAUGHS,
    "merges of merges": MERGES,
    "merged a thousand times": "a: &a {x: {y: 1}}\nb: {<<: [" + ", ".join(["*a"] * 90_000) + "]}",
    "keys of aliases": "a: &a [" + "x, " * 999 + "x]\nb: [" + "*a, " * 999 + "*a]",
    "deep lists": "[" * 500_000,
    "deep mappings": "{a: " * 200_000,
    "deep indentation": "\n".join(" " * depth + "a:" for depth in range(1000)),
    "deep questions": "? " * 200_000,
    "many values": "[" + "a, " * 300_000 + "a]",
    "one within itself": "a: &a [*a]",
    "long": f"a: {'x' * (MAX_BYTES + 1)}",
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_at_once(name):
    began = time.process_time()
    with pytest.raises(TooLarge):
        load_yaml(BOMBS[name])
    with pytest.raises(TooLarge):
        compose(BOMBS[name])
    assert time.process_time() - began < 5


def test_a_bomb_given_as_a_config_is_one_line(tmp_path):
    path = tmp_path / "laughs.yaml"
    path.write_text(LAUGHS)
    for words in (["fit", "--config", str(path)], ["fit", "--config", "quickstart", f"--model.adapter={LAUGHS}"]):
        with pytest.raises(UserError, match="is not read as YAML: it stands for more than 100,000 values") as caught:
            check(words)
        assert len(str(caught.value)) < 300
    with pytest.raises(UserError, match=r"laughs\.yaml is not read as YAML"):
        read_yaml(path)


nested = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text("ab \n:'\"-", max_size=8),
    lambda each: st.lists(each, max_size=4) | st.dictionaries(st.text("ab", min_size=1), each, max_size=4),
    max_leaves=30,
)


@settings(max_examples=40, deadline=None)
@given(nested)
def test_what_is_no_bomb_is_read_as_it_is(value):
    shared = {"first": value, "again": [value, value]}  # dumped with aliases
    assert load_yaml(yaml.safe_dump(shared)) == shared


@settings(max_examples=80, deadline=None)
@given(st.text("{}[]*&a!|>-:,?#%@`'\" \n\t\0\ud800", max_size=40))
def test_whatever_a_text_holds_it_is_read_or_told_in_one_line(text):
    told = ""
    try:
        load_yaml(text)
    except yaml.YAMLError as error:
        told = explain("x.yaml", error)
    assert len(told.splitlines()) <= 1


@pytest.mark.parametrize("text", ["a: !!python/object/apply:os.system [true]", "a: 2024-99-99", "\ud800"])
def test_what_yaml_cannot_stand_for_is_no_yaml(text):
    with pytest.raises(yaml.YAMLError):
        load_yaml(text)


def test_shipped_configs_are_far_from_the_bounds():
    for path in packaged_configs().values():
        check_size(path.read_text())
        assert path.stat().st_size < MAX_BYTES / 50
