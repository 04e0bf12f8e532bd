"""Near-duplicates are sought once for a set of files, and anew where anything is not as it was."""

import json

import numpy as np
import pytest

from tests.video.repeats.test_duplicates import looks
from vidlit.video.frames import VideoInfo
from vidlit.video.inspection import Inspection
from vidlit.video.repeats import remembered

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
    calls = []
    real = remembered.find_near_duplicates
    monkeypatch.setattr(remembered, "find_near_duplicates", lambda found: calls.append(sorted(found)) or real(found))
    return calls


def test_a_set_is_sought_once(tmp_path, sought):
    cache = tmp_path / "files.json"
    known = inspected(a=10, b=11, c=20)
    first = remembered.near_duplicates(known, cache)
    assert [pair[:2] for pair in first] == [("a", "b")]
    assert remembered.near_duplicates(known, cache) == first
    assert sought == [["a", "b", "c"]]
    assert remembered.near_duplicates(known | inspected(c=30), cache) == first, "another content"
    assert remembered.near_duplicates({"d": known["a"], "b": known["b"]}, cache)[0][:2] == ("b", "d"), "another name"
    assert len(sought) == 3


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
