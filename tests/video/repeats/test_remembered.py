"""Near-duplicates are sought once for a set of files, and anew where anything is not as it was."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.video.repeats.test_duplicates import looks
from vidlit.video.frames import VideoInfo
from vidlit.video.inspection import Inspection
from vidlit.video.repeats import remembered
from vidlit.video.repeats.duplicates import tie_groups

INFO = VideoInfo("video", 96, 64, 3.0, 4.0, 12)


def inspected(**numbers):
    """Of the film of its tens, with the last bits of each picture changed by its units."""
    found = {}
    for video, number in numbers.items():
        films = np.random.default_rng(number // 10).integers(0, 2**63, 6)
        found[video] = Inspection(f"{number:064x}", INFO, looks(*[int(each) ^ number % 10 for each in films]))
    return found


@pytest.fixture
def sought(monkeypatch):
    """Names of the videos that are compared with all, of each search."""
    calls = []
    real = remembered.find_near_duplicates

    def find(known, kept=(), new=None):
        calls.append(sorted(known if new is None else new))
        return real(known, kept, new)

    monkeypatch.setattr(remembered, "find_near_duplicates", find)
    return calls


def test_a_set_is_sought_once(tmp_path, sought):
    cache = tmp_path / "files.json"
    known = inspected(a=10, b=11, c=20)
    first = remembered.near_duplicates(known, cache)
    assert [pair[:2] for pair in first] == [("a", "b")]
    assert remembered.near_duplicates(known, cache) == first
    assert sought == [["a", "b", "c"]]
    assert remembered.near_duplicates(known | inspected(c=30), cache) == first
    assert sought[1:] == [["c"]], "another content"
    assert remembered.near_duplicates({"d": known["a"], "b": known["b"]}, cache)[0][:2] == ("b", "d")
    assert sought[2:] == [["b", "d"]], "another name, and what the one that is gone was tied to"
    more = inspected(e=12, f=40)
    assert len(remembered.near_duplicates({"d": known["a"], "b": known["b"], **more}, cache)) == 2
    assert sought[3:] == [["e", "f"]], "new ones alone"


def film(number, start=0, length=24):
    """A part of a film: four pictures a second, each of some noise of its own."""
    pictures = np.random.default_rng(number).integers(0, 2**63, 24)[start : start + length]
    noise = np.random.default_rng([number, start, length]).integers(0, 64, len(pictures))
    return looks(*[int(picture) ^ (1 << int(bit)) for picture, bit in zip(pictures, noise, strict=True)])


FILMS = st.tuples(st.integers(0, 5), st.sampled_from([(0, 24), (0, 23), (4, 12), (8, 16)]))
SETS = st.lists(st.dictionaries(st.sampled_from("abcdefghij"), FILMS, max_size=10), min_size=2, max_size=5)


@settings(max_examples=60, deadline=None)
@given(SETS)
def test_what_is_sought_bit_by_bit_is_what_is_sought_at_once(tmp_path_factory, sets):
    """Whatever comes, goes and is replaced: the same videos are tied."""
    cache = tmp_path_factory.mktemp("cache") / "files.json"
    for films in sets:
        known = {
            name: Inspection(f"{number}{part}", INFO, film(number, *part)) for name, (number, part) in films.items()
        }
        groups = [(name, name) for name in known]
        bit_by_bit = remembered.near_duplicates(known, cache)
        at_once = remembered.near_duplicates(known, None)
        assert tie_groups(groups, [pair[:2] for pair in bit_by_bit]) == tie_groups(
            groups, [pair[:2] for pair in at_once]
        )
        assert len(bit_by_bit) == len(at_once), "a pair for each that is tied"


@pytest.mark.parametrize("damage", ["", "[]", "[" * 100_000, '{"of": 3}', "truncate", '{"pairs": [["a", "x", 0]]}'])
def test_what_is_damaged_is_sought_anew(tmp_path, sought, damage):
    cache = tmp_path / "files.json"
    known = inspected(a=10, b=11)
    first = remembered.near_duplicates(known, cache)
    path = tmp_path / "repeats.json"
    whole = path.read_text()
    path.write_text(
        whole[:-4]
        if damage == "truncate"
        else json.dumps(json.loads(whole) | json.loads(damage))
        if damage.startswith('{"pairs')
        else damage
    )
    assert remembered.near_duplicates(known, cache) == first
    assert len(sought) == 2
    assert path.read_text() == whole


def test_without_a_place_to_remember_it_is_sought_each_time(tmp_path, sought):
    known = inspected(a=10, b=20)
    (tmp_path / "file").write_text("")
    for cache in (None, tmp_path / "file" / "files.json"):
        remembered.near_duplicates(known, cache)
        remembered.near_duplicates(known, cache)
    assert len(sought) == 4
